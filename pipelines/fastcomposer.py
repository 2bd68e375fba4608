"""FastComposer datasets: captioned pictures whose phrases are tied to the subjects that they name.

Xiao et al. 2023, "FastComposer: Tuning-Free Multi-Subject Image Generation with Localized Attention", section 5.1:
a dependency parser chunks the caption into noun phrases, a panoptic model segments the picture, and a greedy
algorithm pairs the two by the similarity of phrase and segment.

    subjectloom build fastcomposer --input PICTURES --output OUT

64 sample scenes become 64 samples within half a minute on two cores, the loading of the models included.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipelines.recipe import BuildConfig, Recipe, check_similarity
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from transforms.listing import Listing
    from transforms.models.presets import Models
    from transforms.step import Step


class FastComposerConfig(BuildConfig):
    """What can be chosen about a FastComposer dataset; the defaults follow the paper where it says."""

    expand_plurals: bool = Field(
        default=True,
        description='rewrite "two women" as "a woman and a woman" (section 5.1); --keep-plurals for false',
        json_schema_extra={"negative": "keep-plurals"},
    )
    similarity: Literal["clip", "clip-label", "label"] = Field(
        default="clip",
        description="of a phrase and a segment: clip (phrase and crop), clip-label (the paper's product of that and "
        "of phrase and class name), label (head noun and class name, no model)",
    )
    segmenter: Literal["panoptic", "sam", "annotations"] | None = Field(
        default=None,
        description="where segments come from: panoptic (a model, section 5.1), sam (SAM's automatic masks, which have "
        "no class names) or the source's annotations; none: those where there are any, else panoptic",
    )
    plurals: Literal["union", "one", "leave-out"] = Field(
        default="union",
        description='mask of a phrase for several things, as "a group of people" or "some dogs": the union of their '
        "segments of one class, one of them, or none; without class names always one",
    )
    threshold: float | None = Field(
        default=None, description="lowest similarity of a match, -1 to 1; none: the preset's (the paper does not say)"
    )
    only: tuple[str, ...] = Field(
        default=(),
        description='classes or head nouns of the subjects ("person", "dog"), or "things" for all classes but stuff as '
        '"grass"; none: all',
    )
    never: tuple[str, ...] = Field(default=(), description='classes or head nouns that are no subjects ("sky")')
    candidates: bool = Field(
        default=True,
        description="keep what the models found beside the shards: --resume with another threshold, min_area, only, "
        "never or plurals runs no model",
    )
    min_area: float = Field(
        default=0.002,
        ge=0,
        le=1,
        description="smallest mask of a phrase, as a share of the picture's area; smaller segments only join a union",
    )


def settle(config: FastComposerConfig, models: "Models", listing: "Listing") -> FastComposerConfig:
    """Fill in the preset's threshold and where segments come from.

    Refuses to segment what is annotated, and to compare class names that are not.
    """
    segmenter = config.segmenter or ("annotations" if listing.has_segments else "panoptic")
    if listing.has_segments and segmenter != "annotations":
        raise ConfigError(
            f"{listing.kind} has masks of its own, which are the segments: leave out --segmenter {segmenter}"
        )
    if segmenter == "annotations" and not listing.has_segments:
        raise ConfigError(f"{listing.kind} has no masks of its own: choose --segmenter panoptic or sam")
    is_named = listing.has_labels if listing.has_segments else segmenter == "panoptic"
    check_similarity(config.similarity, listing, is_named=is_named)
    threshold = models.thresholds[config.similarity] if config.threshold is None else config.threshold
    # Without class names, the others of a group are not known.
    plurals = "one" if config.plurals == "union" and not is_named else config.plurals
    return config.model_copy(update={"segmenter": segmenter, "threshold": threshold, "plurals": plurals})


def steps(config: FastComposerConfig, models: "Models", listing: "Listing") -> "Sequence[Step]":
    """Return the steps in the order in which the paper describes them."""
    from transforms.regions.match import MatchPhrases, Names
    from transforms.regions.segment import DropSmallSegments, SegmentEverything, SegmentPictures
    from transforms.regions.similarity import ScoreSimilarity
    from transforms.text.phrases import ExtractPhrases
    from transforms.text.several_captions import KeepMostLinked, TakeCaptions

    assert config.threshold is not None
    join_plurals = config.plurals == "union"
    segmenter = None if listing.has_segments else models.segmenter
    segment: Step = SegmentPictures(segmenter, config.min_area, join_plurals, models.hosting)
    drop: list[Step] = []
    if config.segmenter == "sam":
        # Most of SAM's masks are too small: CLIP would score them for nothing.
        segment = SegmentEverything(models.sam, models.everything, config.min_area, models.hosting)
    elif config.captions in ("first", "longest"):
        # Behind the models, so that another min_area needs none of them again.
        segment = SegmentPictures(segmenter, hosting=models.hosting)
        drop = [DropSmallSegments(config.min_area, join_plurals)]
    read = [TakeCaptions(config.captions), ExtractPhrases(models.parser, config.expand_plurals)]
    names = Names(frozenset(config.only), frozenset(config.never))
    return [
        # Segments are found once, whatever the number of captions.
        *([segment, *read] if config.captions in ("most-linked", "all") else [*read, segment]),
        ScoreSimilarity(config.similarity, models.clip, models.hosting),
        *drop,
        MatchPhrases(config.threshold, config.plurals, config.min_area, names),
        *([KeepMostLinked()] if config.captions == "most-linked" else []),
    ]


def find(config: FastComposerConfig, models: "Models", masked: bool) -> "Sequence[Step]":
    """Return the steps that tie a caption to the segment that it names."""
    from transforms.regions.match import MatchPhrases
    from transforms.regions.named import NameSubject
    from transforms.regions.segment import SegmentPictures
    from transforms.regions.similarity import ScoreSimilarity

    assert config.threshold is not None
    if masked:
        return [NameSubject(models.parser)]
    return [
        NameSubject(models.parser),
        SegmentPictures(models.segmenter, config.min_area, config.plurals == "union", models.hosting),
        ScoreSimilarity(config.similarity, models.clip, models.hosting),
        MatchPhrases(config.threshold, config.plurals, config.min_area),
    ]


RECIPE = Recipe(name="fastcomposer", config=FastComposerConfig, settle=settle, steps=steps, find=find, scored="matches")
