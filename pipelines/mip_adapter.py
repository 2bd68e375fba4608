"""MIP-Adapter datasets: pictures of several objects, each with its name, box and mask; the best of all of them.

Huang et al. 2024, "Resolving Multi-Condition Confusion for Finetuning-Free Personalized Image Generation": SA-1B's
pictures with captions; boxes of the caption's nouns by a grounding detector, masks by SAM; of all pictures those whose
objects fit their names and differ from each other, by the object quality score. What the published loader does not
take is left out here, once (`transforms.regions.gates`).

    subjectloom build mip-adapter --input PICTURES --output OUT [--best 100000]
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import apache_beam as beam
from pydantic import Field

from schemas.dataset import Part, StrictModel
from schemas.samples.mip_adapter import LAYOUT
from transforms.models.presets import Models
from transforms.models.settings import Wording
from transforms.progress import CountRecords
from transforms.read import ReadBatches
from transforms.regions.gates import ApplyGates, Gates
from transforms.regions.ground import GroundPhrases, TakeMatches
from transforms.regions.match import MatchPhrases
from transforms.regions.segment import SegmentEverything, SegmentPictures
from transforms.regions.similarity import ScoreSimilarity
from transforms.selection.phash import HashPictures
from transforms.selection.quality import ScoreQuality
from transforms.sources.records import Chunk
from transforms.text.captions import WriteCaptions
from transforms.text.phrases import ExtractPhrases
from transforms.write import WriteDataset


class MipAdapterConfig(StrictModel):
    """What can be chosen about a MIP-Adapter dataset; the gates' defaults are the published loader's."""

    grounding: Literal["detector", "masks"] | None = Field(
        default=None,
        description="where phrases are: detector (Grounding DINO's boxes, filled by SAM or the source's masks) or "
        "masks (each phrase takes the mask most like it); none: detector where the preset has one",
    )
    box_threshold: float = Field(
        default=0.25, ge=0, le=1, description="lowest score of a detected box (Subject-Diffusion's)"
    )
    similarity: Literal["clip", "label"] = Field(
        default="clip",
        description="with masks: of a phrase and a segment, clip (phrase and crop) or label (head noun and class name)",
    )
    threshold: float | None = Field(
        default=None, description="with masks: lowest similarity of a match, -1 to 1; none: the preset's"
    )
    min_score: float = Field(default=0.3, ge=0, le=1, description="an object's score lies above")
    min_area: float = Field(default=0.08, ge=0, le=1, description="its box's share of the picture lies above")
    max_area: float = Field(default=0.7, ge=0, le=1, description="and below")
    min_aspect: float = Field(default=0.3, gt=0, description="its box's width over height lies above")
    max_aspect: float = Field(default=3.0, gt=0, description="and below")
    fill: float = Field(default=0.6, ge=0, le=1, description="its mask covers at least this share of its box")
    crowd: int = Field(default=5, ge=1, description="most things in its box, itself and the background included")
    overlap: float = Field(
        default=0.8, ge=0, le=1, description="most that a better object's box shares with it, of the smaller one's area"
    )
    most: int | None = Field(default=None, ge=2, description="objects kept of a picture; none: all")
    min_quality: float | None = Field(default=None, description="lowest quality of a sample, -2 to 2; none: any")
    best: int = Field(default=100_000, ge=1, description="samples kept of the whole dataset, those of highest quality")
    duplicates: int | None = Field(
        default=3,
        ge=0,
        le=63,
        description="bits of 64 in which the perceptual hashes of pictures that look the same may differ, of which "
        "only the best stays; none: all stay",
    )
    caption_prompt: str = Field(default="", description='what a captioner goes on from, as "a photo of"')
    caption_beams: int = Field(default=5, ge=1, description="width of the captioner's search (LAVIS' default)")
    caption_tokens: int = Field(default=30, ge=1, description="longest new caption, tokens (LAVIS' default)")
    samples_per_shard: int = Field(default=1000, ge=1, description="records read into one shard")
    batch_size: int = Field(default=8, ge=1, description="pictures that go through a model together")
    seed: int = Field(default=0, ge=0, description="seed of everything random; this recipe draws nothing at random")


@dataclass(eq=False)
class BuildMipAdapter(beam.PTransform):
    """The recipe up to the candidates: from the chunks of a source to the shards in `output`, each with its part.

    Which of them stay is decided when all are scored (`transforms.selection.cut`). `is_annotated` says that the
    source's pictures come with masks; `config.grounding` is set. `fingerprints` names every shard by its number;
    `progress` is a local file that `CountRecords` appends to.
    """

    chunks: Sequence[Chunk]
    config: MipAdapterConfig
    models: Models
    is_annotated: bool
    output: str
    fingerprints: Mapping[int, str]
    progress: str = ""

    def expand(self, root: beam.Pipeline) -> beam.PCollection[Part]:
        """Chain the steps."""
        config, models = self.config, self.models
        expected = {chunk.shard: chunk.expected for chunk in self.chunks if chunk.expected is not None}
        wording = Wording(config.caption_prompt, config.caption_beams, config.caption_tokens)
        batches = (
            root
            | "read" >> ReadBatches(self.chunks, config.batch_size, needs_captions=models.captioner is None)
            | "captions" >> WriteCaptions(models.captioner, wording)
            # Numbered plurals stay as they are: an object's name must stand in the caption.
            | "phrases" >> ExtractPhrases(models.parser, plurals=False)
        )
        return (
            self._ground(batches)
            | "gates" >> ApplyGates(gates_of(config))
            | "quality" >> ScoreQuality(models.clip, config.min_quality)
            | "look" >> HashPictures()
            | "count" >> CountRecords(self.progress)
            | "write" >> WriteDataset(self.output, LAYOUT, self.fingerprints, expected)
        )

    def _ground(self, batches: beam.PCollection) -> beam.PCollection:
        config, models = self.config, self.models
        if config.grounding == "detector":
            assert models.detector is not None
            return batches | "ground" >> GroundPhrases(
                models.detector, None if self.is_annotated else models.sam, config.box_threshold
            )
        # A mask covers at most its box: with less, no box could pass the gates.
        smallest = config.min_area * config.fill
        if self.is_annotated:
            segment: beam.PTransform = SegmentPictures(None, smallest)
        else:
            segment = SegmentEverything(models.sam, models.everything, smallest)
        return (
            batches
            | "segments" >> segment
            | "similarity" >> ScoreSimilarity(config.similarity, models.clip)
            | "matches" >> MatchPhrases(mask_threshold(config, models))
            | "objects" >> TakeMatches()
        )


def mask_threshold(config: MipAdapterConfig, models: Models) -> float:
    """Return the lowest similarity of a phrase and its mask: the config's, or the preset's."""
    return models.thresholds[config.similarity] if config.threshold is None else config.threshold


def gates_of(config: MipAdapterConfig) -> Gates:
    """Return the gates that a config describes."""
    return Gates(
        min_score=config.min_score,
        min_area=config.min_area,
        max_area=config.max_area,
        min_aspect=config.min_aspect,
        max_aspect=config.max_aspect,
        fill=config.fill,
        crowd=config.crowd,
        overlap=config.overlap,
        most=config.most,
    )
