"""BLIP-Diffusion datasets: a picture and, as the model's input, its subject on another background.

Li, Li and Hoi 2023, "BLIP-Diffusion: Pre-trained Subject Representation for Controllable Text-to-Image Generation and
Editing", sections 3.2 and 4.1. Pictures with one salient subject that is not a person are kept. CLIPSeg looks for the
subject; where it is sure the trimap is foreground, where it is less sure unknown, the rest background. Closed-form
matting solves for the subject's alpha, and the subject is blended onto a random background. The composite is the
input, the picture the target: the model learns the subject and not what was behind it.

    subjectloom build blip-diffusion --input PICTURES --output OUT --backgrounds BACKGROUNDS

Pictures with masks (COCO) need no CLIPSeg; those with boxes (Open Images) need no phrases.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from pipelines.recipe import BuildConfig, Recipe, refuse_most_linked

if TYPE_CHECKING:
    from transforms.listing import Listing
    from transforms.models.presets import Models
    from transforms.step import Step


class BlipDiffusionConfig(BuildConfig):
    """What can be chosen about a BLIP-Diffusion dataset; a default that is not the paper's says where it is from."""

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
        description="anything with this share of the largest thing's area, or more, is a second subject",
    )  # fmt: skip
    people: bool = Field(default=False, description="take people as subjects too (section 4.1 removes them)")
    min_centrality: float = Field(
        default=0.5, ge=0, le=1,
        description="of an annotated subject: 1 in the middle of the picture, 0 in a corner (not in the paper)",
    )  # fmt: skip
    min_wholeness: float = Field(
        default=0.9, ge=0, le=1,
        description="of an annotated subject, its largest connected piece has more than this share (not in the paper)",
    )  # fmt: skip
    max_border: float = Field(
        default=0.05, ge=0,
        description="of an annotated subject's width and height, the share on the picture's border (not in the paper)",
    )  # fmt: skip
    lower: float | None = Field(
        default=None, ge=0, le=1, description="CLIPSeg's confidence below which is background; none: the preset's"
    )
    upper: float | None = Field(
        default=None, ge=0, le=1, description="CLIPSeg's confidence above which is subject; none: the preset's"
    )
    band: int = Field(
        default=3, ge=1, description="least half-width of the unknown band along edges, pixels: hair stays open"
    )
    scale: tuple[float, float] = Field(
        default=(1.0, 1.0), description="bounds of the factor by which the subject is resized (not in the paper)"
    )
    move: bool = Field(default=False, description="move the subject to a random place (not in the paper)")
    flip: float = Field(default=0.0, ge=0, le=1, description="probability that the subject is mirrored")
    blending: Literal["srgb", "linear"] = Field(
        default="srgb", description="blend sRGB values, for which the alpha was solved, or linear light (linear)"
    )
    caption_prompt: str = Field(default="", description='what a captioner continues, such as "a photo of"')
    caption_beams: int = Field(default=5, ge=1, description="width of the captioner's search (LAVIS' default)")
    caption_tokens: int = Field(default=30, ge=1, description="longest new caption, tokens (LAVIS' default)")

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale is {list(self.scale)}: write two positive numbers, the smaller one first")
        if self.min_area >= self.max_area:
            raise ValueError(f"min_area {self.min_area} must be below max_area {self.max_area}")
        if self.lower is not None and self.upper is not None and self.lower >= self.upper:
            raise ValueError(f"lower {self.lower} must be below upper {self.upper}")
        return self


def settle(config: BlipDiffusionConfig, models: "Models", _: "Listing") -> BlipDiffusionConfig:
    """Fill in the preset's bounds of the trimap; refuse to compare links."""
    refuse_most_linked(config)
    lower, upper = models.trimap
    update = {
        "lower": lower if config.lower is None else config.lower,
        "upper": upper if config.upper is None else config.upper,
    }
    return BlipDiffusionConfig(**{**config.model_dump(), **update})


def steps(config: BlipDiffusionConfig, models: "Models", listing: "Listing") -> "Sequence[Step]":
    """Return the steps in the order in which the paper describes them."""
    from transforms.matting.backgrounds import list_backgrounds
    from transforms.matting.composite import Composition, LayOnBackgrounds
    from transforms.matting.cutout import DrawTrimaps, SolveMattes, TrimapBounds
    from transforms.models.settings import Wording
    from transforms.regions.heatmaps import FindHeatmaps
    from transforms.regions.subject import ChooseSubject, DropSmallPictures, Filters
    from transforms.text.captions import WriteCaptions
    from transforms.text.phrases import ExtractPhrases
    from transforms.text.several_captions import TakeCaptions

    assert config.lower is not None
    assert config.upper is not None
    bounds = TrimapBounds(config.lower, config.upper)
    # A mask without a class name does not say what the subject is: then the caption does.
    has_named_masks = listing.has_segments and listing.has_labels
    take = TakeCaptions(config.captions)
    find_subject: list[Step] = []
    has_phrases = not has_named_masks and not listing.has_boxes
    if has_phrases:
        # Numbered plurals stay as they are: a sample of this recipe has one subject.
        find_subject += [take, ExtractPhrases(models.parser, plurals=False)]
    if not has_named_masks:
        find_subject.append(FindHeatmaps(models.clipseg, models.hosting))
    filters = Filters(
        config.min_side, config.min_area, config.max_area, config.rival, config.people,
        config.min_centrality, config.min_wholeness, config.max_border,
    )  # fmt: skip
    composition = Composition(config.scale, config.move, config.flip, config.blending)
    return [
        DropSmallPictures(config.min_side),
        WriteCaptions(
            models.captioner,
            Wording(config.caption_prompt, config.caption_beams, config.caption_tokens),
            models.hosting,
        ),
        *find_subject,
        ChooseSubject(filters, (config.lower + config.upper) / 2),
        DrawTrimaps(bounds, config.band),
        SolveMattes(),
        # Where captions do not say what the subject is, its matte is solved once, whatever their number.
        *([] if has_phrases else [take]),
        LayOnBackgrounds(list_backgrounds(config.backgrounds), composition, config.seed),
    ]  # fmt: skip


def find(config: BlipDiffusionConfig, models: "Models", masked: bool) -> "Sequence[Step]":
    """Return the steps that lay the subject on another background; one of any size and kind, at any place."""
    from transforms.matting.backgrounds import Backgrounds
    from transforms.matting.composite import Composition, LayOnBackgrounds
    from transforms.matting.cutout import DrawTrimaps, SolveMattes, TrimapBounds
    from transforms.regions.heatmaps import FindHeatmaps
    from transforms.regions.named import NameSubject
    from transforms.regions.subject import ChooseSubject, Filters

    assert config.lower is not None
    assert config.upper is not None
    return [
        NameSubject(models.parser),
        *([] if masked else [FindHeatmaps(models.clipseg, models.hosting)]),
        ChooseSubject(Filters(rival=config.rival, people=True), (config.lower + config.upper) / 2),
        DrawTrimaps(TrimapBounds(config.lower, config.upper), config.band),
        SolveMattes(),
        LayOnBackgrounds(Backgrounds(), Composition(), config.seed),
    ]


RECIPE = Recipe(
    name="blip-diffusion", config=BlipDiffusionConfig, settle=settle, steps=steps, find=find, subjects=1,
    writes_captions=True, scored="matte",
)  # fmt: skip
