"""MIP-Adapter datasets: pictures of several objects, each with its name, box and mask; the best of all of them.

Huang et al. 2024, "Resolving Multi-Condition Confusion for Finetuning-Free Personalized Image Generation": SA-1B's
pictures with captions; boxes of the caption's nouns by a grounding detector, masks by SAM; of all pictures those whose
objects fit their names and differ from each other, by the object quality score. What the published loader does not
take is left out here, once (`transforms.regions.gates`).

    subjectloom build mip-adapter --input PICTURES --output OUT [--best 100000]
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from pipelines.recipe import BuildConfig, Recipe, check_similarity, scoring
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from transforms.listing import Listing
    from transforms.models.presets import Models
    from transforms.selection.cut import Cut
    from transforms.step import Step


class MipAdapterConfig(BuildConfig):
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
    max_area: float = Field(default=0.7, ge=0, le=1, description="its box's share of the picture lies below")
    min_aspect: float = Field(default=0.3, gt=0, description="its box's width over height lies above")
    max_aspect: float = Field(default=3.0, gt=0, description="its box's width over height lies below")
    fill: float = Field(default=0.6, ge=0, le=1, description="its mask covers at least this share of its box")
    crowd: int = Field(default=5, ge=1, description="most things in its box, itself and the background included")
    overlap: float = Field(
        default=0.8, ge=0, le=1, description="most that a better object's box shares with it, of the smaller one's area"
    )
    most: int | None = Field(default=None, ge=2, description="objects kept of a picture; none: all")
    min_quality: float | None = Field(default=None, description="lowest quality of a sample, -2 to 2; none: any")
    best: int = Field(default=100_000, ge=1, description="samples kept of the whole dataset, those of highest quality")
    duplicates: Annotated[int, Field(ge=0, le=63)] | Literal["exact"] | None = Field(
        default=3,
        description="bits of 64 in which the perceptual hashes of near duplicates may differ, of which only the best "
        "is kept; exact: only those of the same bytes; none: all are kept",
    )
    candidates: bool = Field(
        default=True,
        description="keep what the models found beside the shards: --resume with other gates or another --best runs no "
        "model",
    )
    caption_prompt: str = Field(default="", description='what a captioner continues, such as "a photo of"')
    caption_beams: int = Field(default=5, ge=1, description="width of the captioner's search (LAVIS' default)")
    caption_tokens: int = Field(default=30, ge=1, description="longest new caption, tokens (LAVIS' default)")


def settle(config: MipAdapterConfig, models: "Models", listing: "Listing") -> MipAdapterConfig:
    """Choose the grounding, and fill in the preset's threshold where phrases are grounded by masks.

    Refuses samples of all captions of a picture if only one of its near duplicates is kept.
    """
    if config.captions == "all" and config.duplicates is not None:
        raise ConfigError(
            f"captions = 'all' makes several samples of one picture, of which duplicates = {config.duplicates} would "
            "keep one: add --duplicates none"
        )
    grounding = config.grounding or ("detector" if models.detector is not None else "masks")
    update: dict[str, object] = {"grounding": grounding}
    if grounding == "detector":
        if models.detector is None:
            raise ConfigError("grounding = detector needs one: choose --preset hub, or --model detector=FOLDER_OR_NAME")
    else:
        check_similarity(config.similarity, listing, is_named=listing.has_segments and listing.has_labels)
        update["threshold"] = models.thresholds[config.similarity] if config.threshold is None else config.threshold
    return config.model_copy(update=update)


def steps(config: MipAdapterConfig, models: "Models", listing: "Listing") -> "Sequence[Step]":
    """Return the steps that make the candidates; which of them are kept is decided by `cut`."""
    from transforms.models.settings import Wording
    from transforms.regions.gates import ApplyGates, Gates
    from transforms.selection.phash import HashPictures
    from transforms.selection.quality import EmbedObjects, ScoreQuality
    from transforms.text.captions import WriteCaptions
    from transforms.text.phrases import ExtractPhrases
    from transforms.text.several_captions import KeepMostLinked, TakeCaptions

    wording = Wording(config.caption_prompt, config.caption_beams, config.caption_tokens)
    gates = Gates(
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
    segment, ground = _ground(config, models, listing)
    # Numbered plurals stay as they are: an object's name must stand in the caption.
    read = [TakeCaptions(config.captions), ExtractPhrases(models.parser, plurals=False)]
    return [
        WriteCaptions(models.captioner, wording, models.hosting),
        # Segments are found once, whatever the number of captions.
        *([*segment, *read] if config.captions in ("most-linked", "all") else [*read, *segment]),
        *ground,
        EmbedObjects(models.clip, models.hosting),
        ApplyGates(gates),
        *scoring(config, models, "objects"),
        *([KeepMostLinked()] if config.captions == "most-linked" else []),
        ScoreQuality(config.min_quality),
        HashPictures(config.duplicates == "exact"),
    ]


def _ground(config: MipAdapterConfig, models: "Models", listing: "Listing") -> "tuple[Sequence[Step], Sequence[Step]]":
    """Return the steps that find segments, where they come first, and those that tie phrases to the picture."""
    from transforms.regions.ground import GroundPhrases, TakeMatches
    from transforms.regions.match import MatchPhrases
    from transforms.regions.segment import SegmentEverything, SegmentPictures
    from transforms.regions.similarity import ScoreSimilarity

    if config.grounding == "detector":
        assert models.detector is not None
        # Where the source has masks, detected boxes take theirs from it.
        sam = None if listing.has_segments else models.sam
        return [], [GroundPhrases(models.detector, sam, config.box_threshold, models.hosting)]
    assert config.threshold is not None
    # A mask covers at most its box: with less, no box could pass the gates.
    smallest = config.min_area * config.fill
    if listing.has_segments:
        segment: Step = SegmentPictures(None, smallest)
    else:
        segment = SegmentEverything(models.sam, models.everything, smallest, models.hosting)
    score = ScoreSimilarity(config.similarity, models.clip, models.hosting)
    return [segment], [score, MatchPhrases(config.threshold), TakeMatches()]


def find(config: MipAdapterConfig, models: "Models", masked: bool) -> "Sequence[Step]":
    """Return the steps that ground a caption in its picture; objects of any size, which pass no gate."""
    from transforms.listing import Listing
    from transforms.regions.ground import TakeMatches
    from transforms.regions.named import NameSubject

    if masked:
        return [NameSubject(models.parser), TakeMatches()]
    segment, ground = _ground(config.model_copy(update={"min_area": 0.0}), models, Listing("folder", ()))
    return [NameSubject(models.parser), *segment, *ground]


def cut(config: MipAdapterConfig) -> "Cut":
    """Keep the best samples, and of near duplicates only the best."""
    from transforms.selection.cut import Cut

    return Cut(config.best, 0 if config.duplicates == "exact" else config.duplicates)


RECIPE = Recipe(
    name="mip-adapter", config=MipAdapterConfig, settle=settle, steps=steps, find=find, cut=cut, writes_captions=True,
    scored=None,
)  # fmt: skip
