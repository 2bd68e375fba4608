"""BLIP-Diffusion datasets: a picture and, as the model's input, its subject on another background.

Li, Li and Hoi 2023, "BLIP-Diffusion: Pre-trained Subject Representation for Controllable Text-to-Image Generation and
Editing", sections 3.2 and 4.1. Pictures with one salient subject that is no person are kept. CLIPSeg looks for the
subject; where it is sure the trimap is foreground, where it is less sure unknown, the rest background. Closed-form
matting solves for the subject's alpha, and the subject is blended onto a random background. The composite is the
input, the picture the target: the model learns the subject and not what was behind it.

    subjectloom build blip-diffusion --input PICTURES --output OUT --backgrounds BACKGROUNDS

Pictures with masks (COCO) need no CLIPSeg; those with boxes (Open Images) need no phrases.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import apache_beam as beam
from pydantic import Field, model_validator

from schemas.dataset import Part, StrictModel
from schemas.samples.blip_diffusion import LAYOUT
from transforms.matting.backgrounds import Backgrounds
from transforms.matting.composite import Blending, Composition, LayOnBackgrounds
from transforms.matting.cutout import DrawTrimaps, SolveMattes, TrimapBounds
from transforms.models.presets import Models
from transforms.models.settings import Wording
from transforms.progress import CountRecords
from transforms.read import ReadBatches
from transforms.regions.heatmaps import FindHeatmaps
from transforms.regions.subject import ChooseSubject, DropSmallPictures, Filters
from transforms.sources.records import Chunk
from transforms.text.captions import WriteCaptions
from transforms.text.phrases import ExtractPhrases
from transforms.write import WriteDataset


class BlipDiffusionConfig(StrictModel):
    """What can be chosen about a BLIP-Diffusion dataset; what the paper leaves open says how it was chosen."""

    backgrounds: str = Field(
        default="",
        description="folder, glob or tars of pictures; none: painted ones (the paper: 59,000 from the web)",
    )
    min_side: int = Field(
        default=64, ge=1, description="shorter side of a picture, pixels; below it an edge is a large part of a subject"
    )
    min_area: float = Field(
        default=0.03, ge=0, le=1,
        description="smallest subject, as a share of the picture: 39 x 39 of the 224 x 224 pixels that an encoder sees",
    )  # fmt: skip
    max_area: float = Field(
        default=0.7, ge=0, le=1,
        description="largest subject: more leaves little room for the background (MIP-Adapter's loader has the same)",
    )  # fmt: skip
    rival: float = Field(
        default=0.5, gt=0, le=1,
        description="what has this share of the largest thing's area, or more, is a second subject: half draws the eye",
    )  # fmt: skip
    people: bool = Field(default=False, description="take people as subjects too (section 4.1 removes them)")
    lower: float | None = Field(
        default=None, ge=0, le=1, description="CLIPSeg's confidence below which is background; none: the preset's"
    )
    upper: float | None = Field(
        default=None, ge=0, le=1, description="CLIPSeg's confidence above which is subject; none: the preset's"
    )
    band: int = Field(
        default=3,
        ge=1,
        description="least half-width of the unknown band along edges, pixels: hair stays open",
    )
    scale: tuple[float, float] = Field(
        default=(1.0, 1.0), description="bounds of the subject's change of size (the paper tells of none)"
    )
    move: bool = Field(default=False, description="let the subject change its place (the paper does not say)")
    flip: float = Field(default=0.0, ge=0, le=1, description="probability that the subject is mirrored")
    blending: Blending = Field(
        default="srgb", description="blend sRGB values, of which the alpha was solved, or in linear light (linear)"
    )
    caption_prompt: str = Field(default="", description='what a captioner goes on from, as "a photo of"')
    caption_beams: int = Field(default=5, ge=1, description="width of the captioner's search (LAVIS' default)")
    caption_tokens: int = Field(default=30, ge=1, description="longest new caption, tokens (LAVIS' default)")
    samples_per_shard: int = Field(default=1000, ge=1, description="records read into one shard")
    batch_size: int = Field(default=8, ge=1, description="pictures that go through a model together")
    seed: int = Field(default=0, ge=0, description="seed of backgrounds and placements, together with a record's key")

    @model_validator(mode="after")
    def _check_bounds(self) -> "BlipDiffusionConfig":
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale is {list(self.scale)}: write two positive numbers, the smaller one first")
        if self.min_area >= self.max_area:
            raise ValueError(f"min_area {self.min_area} must be below max_area {self.max_area}")
        if self.lower is not None and self.upper is not None and self.lower >= self.upper:
            raise ValueError(f"lower {self.lower} must be below upper {self.upper}")
        return self


@dataclass(eq=False)
class BuildBlipDiffusion(beam.PTransform):
    """The recipe: from the chunks of a source to the shards in `output`, each with its part.

    `annotation` is what marks the things in the source's pictures: "masks", "boxes" or "" for nothing. `config` says
    all that a preset may leave to choose (`with_thresholds`). `fingerprints` names every shard by its number;
    `progress` is a local file that `CountRecords` appends to.
    """

    chunks: Sequence[Chunk]
    config: BlipDiffusionConfig
    models: Models
    backgrounds: Backgrounds
    annotation: str
    output: str
    fingerprints: Mapping[int, str]
    progress: str = ""

    def expand(self, root: beam.Pipeline) -> beam.PCollection[Part]:
        """Chain the steps in the order in which the paper tells them."""
        config, models = self.config, self.models
        expected = {chunk.shard: chunk.expected for chunk in self.chunks if chunk.expected is not None}
        sure = trimap_bounds(config)
        wording = Wording(config.caption_prompt, config.caption_beams, config.caption_tokens)
        filters = Filters(config.min_side, config.min_area, config.max_area, config.rival, config.people)
        batches = (
            root
            | "read" >> ReadBatches(self.chunks, config.batch_size, needs_captions=models.captioner is None)
            | "size" >> DropSmallPictures(config.min_side)
            | "captions" >> WriteCaptions(models.captioner, wording)
        )
        if not self.annotation:
            # Numbered plurals stay as they are: this recipe's sample has one subject, and the caption is its text.
            batches |= "phrases" >> ExtractPhrases(models.parser, plurals=False)
        if self.annotation != "masks":
            batches |= "confidence" >> FindHeatmaps(models.clipseg)
        return (
            batches
            | "subject" >> ChooseSubject(filters, (sure.lower + sure.upper) / 2)
            | "trimap" >> DrawTrimaps(sure, config.band)
            | "matte" >> SolveMattes()
            | "composite" >> LayOnBackgrounds(
                self.backgrounds,
                Composition(config.scale, config.move, config.flip, config.blending),
                config.seed,
            )
            | "count" >> CountRecords(self.progress)
            | "write" >> WriteDataset(self.output, LAYOUT, self.fingerprints, expected)
        )  # fmt: skip


def with_thresholds(config: BlipDiffusionConfig, models: Models) -> BlipDiffusionConfig:
    """Fill in the preset's confidences where the config leaves them open."""
    lower, upper = models.trimap
    update = {
        "lower": lower if config.lower is None else config.lower,
        "upper": upper if config.upper is None else config.upper,
    }
    return BlipDiffusionConfig(**{**config.model_dump(), **update})


def trimap_bounds(config: BlipDiffusionConfig) -> TrimapBounds:
    """Return the trimap's two confidences of a config in which both are set."""
    assert config.lower is not None
    assert config.upper is not None
    return TrimapBounds(config.lower, config.upper)
