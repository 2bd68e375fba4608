"""GLIGEN datasets: pictures whose boxes have a text and CLIP's embeddings of text and crop.

Li et al. 2023, "GLIGEN: Open-Set Grounded Text-to-Image Generation": boxes of a caption's phrases (grounding data), or
of annotated classes, without a caption (detection data).

    subjectloom build gligen --input PICTURES --output OUT
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipelines.recipe import BuildConfig, Recipe
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from transforms.listing import Listing
    from transforms.models.presets import Models
    from transforms.step import Step

PUBLISHED_NORM = 28.7
"""Mean norm of ViT-L/14's text states, to which the published code scales image embeddings."""
SAMPLE_NORM = 7.547
"""That of the sample CLIP, measured on 823 phrases of scenes (standard deviation 0.019)."""


class GligenConfig(BuildConfig):
    """What can be chosen about a GLIGEN dataset."""

    rows: Literal["phrases", "classes"] | None = Field(
        default=None,
        description="what names a box: a phrase of the caption, or an annotation's class, without a caption; none: "
        "classes for sources with boxes (open-images), else phrases",
    )
    grounding: Literal["detector", "segments"] | None = Field(
        default=None,
        description="with phrases, where their boxes are from: detector (Grounding DINO) or segments (the source's, or "
        "a segmenter's, matched by CLIP); none: segments if the source has them or the preset has no detector",
    )
    box_threshold: float = Field(default=0.25, ge=0, le=1, description="with a detector: lowest score of a box")
    threshold: float | None = Field(
        default=None, description="with segments: lowest similarity of phrase and crop, -1 to 1; none: the preset's"
    )
    norm: float | None = Field(
        default=None,
        gt=0,
        description="length of reprojected image embeddings: that of text embeddings; none: 28.7 as published for "
        "ViT-L/14, for the sample CLIP its measured mean",
    )


def settle(config: GligenConfig, models: "Models", listing: "Listing") -> GligenConfig:
    """Fill in what names the boxes and where they are from, the preset's threshold and the norm.

    Refuses classes of a source without any.
    """
    from transforms.models.presets import PRESETS

    named = listing.has_boxes or (listing.has_segments and listing.has_labels)
    rows = config.rows or ("classes" if listing.has_boxes else "phrases")
    if rows == "classes" and not named:
        raise ConfigError(f"{listing.kind} has no annotated classes: leave out --rows classes")
    if rows == "classes" and config.captions != "first":
        raise ConfigError("boxes of classes have no caption: leave out --captions")
    has_detector = models.detector is not None
    grounding = config.grounding or ("segments" if listing.has_segments or not has_detector else "detector")
    if grounding == "detector" and not has_detector:
        raise ConfigError("grounding = detector needs one: choose --preset hub, or --model detector=FOLDER_OR_NAME")
    is_sample = models.clip == PRESETS["sample"].clip
    update = {
        "rows": rows,
        "grounding": grounding,
        "threshold": models.thresholds["clip"] if config.threshold is None else config.threshold,
        "norm": config.norm or (SAMPLE_NORM if is_sample else PUBLISHED_NORM),
    }
    return config.model_copy(update=update)


def steps(config: GligenConfig, models: "Models", listing: "Listing") -> "Sequence[Step]":
    """Return the steps."""
    from transforms.regions.boxes import EmbedBoxes, GroundBoxes
    from transforms.text.phrases import ExtractPhrases
    from transforms.text.several_captions import KeepMostLinked, TakeCaptions

    assert config.rows is not None
    assert config.norm is not None
    finish: list[Step] = [GroundBoxes(config.rows), EmbedBoxes(models.clip, config.norm, models.hosting)]
    if config.rows == "classes":
        return finish
    # Numbered plurals stay as they are: "two dogs" is one phrase with two boxes.
    read = [TakeCaptions(config.captions), ExtractPhrases(models.parser, plurals=False)]
    segment, ground = _ground(config, models, listing)
    most_linked = [KeepMostLinked()] if config.captions == "most-linked" else []
    if config.captions in ("most-linked", "all"):  # segments are found once, whatever the number of captions
        return [*segment, *read, *ground, *most_linked, *finish]
    return [*read, *segment, *ground, *finish]


def _ground(config: GligenConfig, models: "Models", listing: "Listing") -> "tuple[Sequence[Step], Sequence[Step]]":
    """Return the steps that find segments, and those that tie phrases to them or to detected boxes."""
    from transforms.regions.ground import GroundPhrases
    from transforms.regions.match import MatchPhrases
    from transforms.regions.segment import SegmentPictures
    from transforms.regions.similarity import ScoreSimilarity

    assert config.threshold is not None
    if config.grounding == "detector":
        assert models.detector is not None
        return [], [GroundPhrases(models.detector, models.sam, config.box_threshold, models.hosting)]
    segmenter = None if listing.has_segments else models.segmenter
    # Without class names, the others of a group are not known.
    plurals: Literal["union", "one"] = "union" if listing.has_labels or not listing.has_segments else "one"
    return (
        [SegmentPictures(segmenter, hosting=models.hosting)],
        [ScoreSimilarity("clip", models.clip, models.hosting), MatchPhrases(config.threshold, plurals)],
    )


RECIPE = Recipe(
    name="gligen",
    config=GligenConfig,
    settle=settle,
    steps=steps,
    needs_captions=lambda config: config.rows != "classes",
)
