"""What a recipe is: the format of its samples, its config, and the steps between reading and writing.

Importing a recipe loads its config and nothing else, so that a wrong option is an error at once: `settle` and `steps`
import the transforms that they use, and the format of the samples is looked up when it is needed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Generic, Literal, Self, TypeVar

from pydantic import Field, model_validator

from schemas.errors import ConfigError, choices
from schemas.strict import StrictModel

if TYPE_CHECKING:
    from schemas.samples.base import SampleFormat
    from transforms.listing import Listing
    from transforms.models.presets import Models
    from transforms.selection.cut import Cut
    from transforms.selection.scores import Kind
    from transforms.step import Step


Captions = Literal["first", "longest", "most-linked", "all"]
"""Which captions of a picture are used, where the source has several."""


class BuildConfig(StrictModel):
    """What can be chosen about the datasets of every recipe."""

    samples_per_shard: int = Field(default=1000, ge=1, description="records read into one shard")
    shard_bytes: int = Field(
        default=10**9, ge=1, description="most bytes of a shard's pictures; larger tars are cut into parts of this size"
    )
    batch_size: int = Field(default=8, ge=1, description="pictures that go through a model together")
    seed: int = Field(default=0, ge=0, description="seed of all that is random, together with a record's key")
    captions: Captions = Field(
        default="first",
        description="of a picture with several: first, longest (in characters), most-linked (the one with the most "
        "phrases tied to a segment; recipes that tie them), or all (a sample of each)",
    )

    read_attempts: int = Field(
        default=5, ge=1, description="times that a file is tried to be read, with pauses of 0.5, 1, 2 ... seconds"
    )
    read_failures: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="largest share of consecutive records that cannot be read; with more, 20 at least, the run stops",
    )
    unread: Literal["retry", "leave-out"] = Field(
        default="retry",
        description="what becomes of a record that cannot be read: its shard is not finished and --resume tries again "
        "(retry), or it is left out for good",
    )
    follow_links: bool = Field(
        default=False, description="read what links in the source lead to, also outside of its folder"
    )
    candidates: bool = Field(
        default=False,
        description="keep what the models found beside the shards: --resume with another threshold runs no model",
    )
    scores: tuple[str, ...] = Field(
        default=(),
        description="axes that pictures and subjects are scored on: side, sharpness, aesthetic, pwatermark, nsfw; "
        "share, wholeness, crop_aesthetic (docs/scores.md)",
    )
    gates: dict[str, tuple[float | None, float | None]] = Field(
        default_factory=dict,
        description="lowest and highest value that passes on an axis, null for no bound: {side: [480, null]}",
    )
    max_iou: float | None = Field(
        default=None, ge=0, le=1,
        description="of two subjects whose masks have a higher intersection over union, the larger stays; none: both",
    )  # fmt: skip
    most_subjects: int | None = Field(default=None, ge=1, description="most subjects of a picture; none: all")
    best_by: str = Field(
        default="", description="axis by which most_subjects are chosen, the highest first; none: the largest"
    )

    duplicates: Annotated[int, Field(ge=0, le=63)] | Literal["exact"] | None = Field(
        default=None,
        description="bits of 64 in which the perceptual hashes of near duplicates may differ, of which only the "
        "largest picture is kept, of equals the first; exact: only those of the same bytes; none: all are kept",
    )

    @model_validator(mode="after")
    def _check_axes(self) -> Self:
        for axis in (*self.scores, *self.gates, *([self.best_by] if self.best_by else [])):
            if axis not in AXES:
                raise ValueError(f"there is no axis {axis!r}{choices(axis, AXES)}")
        for axis, (low, high) in self.gates.items():
            if low is not None and high is not None and low > high:
                raise ValueError(f"the gate {axis}: {low} must not be above {high}")
        if self.best_by and self.most_subjects is None:
            raise ValueError("best_by chooses most_subjects: give both, or neither")
        return self


AXES = ("side", "sharpness", "aesthetic", "pwatermark", "nsfw", "share", "wholeness", "crop_aesthetic")
"""The axes of scores (`transforms.selection.scores`)."""

RATED = frozenset({"aesthetic", "crop_aesthetic"})
"""Axes that need the aesthetic predictor."""

LATER_FIELDS = frozenset({"scores", "gates", "max_iou", "most_subjects", "best_by", "duplicates"})
"""Fields that earlier releases did not have: with their defaults, a shard is the one that those made."""

RUN_FIELDS = frozenset({"candidates", "read_attempts", "read_failures", "unread", "follow_links", "shard_bytes"})
"""Fields that do not change the bytes of a given shard, so that they may differ when a run is resumed."""

Config = TypeVar("Config", bound=BuildConfig)


def refuse_most_linked(config: BuildConfig) -> None:
    """Raise a ConfigError if captions are to be compared by their links, for a recipe that has none."""
    if config.captions == "most-linked":
        raise ConfigError(
            "captions = 'most-linked' needs phrases that are linked to segments, as fastcomposer and mip-adapter have "
            "them: choose --captions first, longest or all"
        )


def scoring(config: BuildConfig, models: "Models", kind: "Kind") -> "list[Step]":
    """Return the step that scores pictures and their subjects and cuts by the config's gates; none if nothing is asked.

    Raises:
        ConfigError: an axis needs the aesthetic predictor, and there is none.
    """
    axes = tuple(dict.fromkeys([*config.scores, *config.gates, *filter(None, [config.best_by])]))
    if not axes and config.max_iou is None and config.most_subjects is None:
        return []
    from transforms.selection.scores import Rules, ScoreSubjects

    if (needed := sorted(RATED.intersection(axes))) and models.aesthetic is None:
        raise ConfigError(
            f"the axis {needed[0]} needs the aesthetic predictor, which this preset does not have: choose --preset "
            "hub, or give --model aesthetic=FILE"
        )
    rules = Rules(axes, config.gates, config.max_iou, config.most_subjects, config.best_by)
    return [ScoreSubjects(rules, kind, models.clip, models.aesthetic, models.hosting)]


def hashing(config: BuildConfig) -> "list[Step]":
    """Return the step that hashes pictures, of whose duplicates one is kept (`without_duplicates`); none if all are.

    Raises:
        ConfigError: several samples of one picture are asked for, of which only one would be kept.
    """
    if config.duplicates is None:
        return []
    if config.captions == "all":
        raise ConfigError(
            f"captions = 'all' makes several samples of one picture, of which duplicates = {config.duplicates} would "
            "keep one: add --duplicates none"
        )
    from transforms.selection.phash import HashPictures

    return [HashPictures(config.duplicates == "exact")]


def without_duplicates(config: BuildConfig) -> "Cut | None":
    """Keep the largest of near duplicates, if the config asks for it."""
    if config.duplicates is None:
        return None
    from transforms.selection.cut import Cut

    return Cut(None, 0 if config.duplicates == "exact" else config.duplicates, "pixels")


@dataclass(frozen=True)
class Recipe(Generic[Config]):
    """A recipe.

    Attributes:
        name: by which commands, shards and `FORMATS` call it.
        config: what can be chosen about it.
        settle: fills in what a config leaves open, from the preset and the source; raises a ConfigError where the
            config contradicts them.
        steps: the steps between reading and writing, in order, for a settled config.
        cut: which samples are kept when all of them are scored; None keeps all.
        find: the steps that find, in a photograph whose caption names its one subject, this subject, as `steps` find
            those of a dataset; without what only selects samples. They are called with a settled config, models and
            whether the example's one segment is the subject's mask. None: samples have no subjects.
        subjects: most subjects of a sample; None: any number.
        draws: whether a prompt and references are all that its model needs to draw.
        needs_captions: returns whether, with a settled config, pictures without a caption are rejected.
        scored: where its examples have their subjects, to be scored and cut by the config's gates behind its steps;
            "none" scores pictures alone, None leaves it to the steps.
        writes_captions: whether its steps write the captions that the source lacks, where the preset has a captioner.
    """

    name: str
    config: type[Config]
    settle: Callable[[Config, "Models", "Listing"], Config]
    steps: Callable[[Config, "Models", "Listing"], "Sequence[Step]"]
    cut: Callable[[Config], "Cut | None"] = without_duplicates
    find: Callable[[Config, "Models", bool], "Sequence[Step]"] | None = None
    subjects: int | None = None
    draws: bool = True
    needs_captions: Callable[[Config], bool] = lambda _: True
    writes_captions: bool = False
    scored: "Kind | None" = "none"

    def all_steps(self, config: Config, models: "Models", listing: "Listing") -> "list[Step]":
        """Return the recipe's steps, and those that every recipe has: scores with their gates, and hashes."""
        scored = [] if self.scored is None else scoring(config, models, self.scored)
        hashed = hashing(config) if self.cut is without_duplicates else []
        return [*self.steps(config, models, listing), *scored, *hashed]

    @property
    def format(self) -> "SampleFormat":
        """What its samples are."""
        from schemas.samples import FORMATS

        return FORMATS[self.name]


def check_similarity(similarity: str, listing: "Listing", *, is_named: bool) -> None:
    """Raise a ConfigError if class names are to be compared and the segments have none (`is_named` is false)."""
    if similarity != "clip" and not is_named:
        origin = listing.kind if listing.has_segments else "SAM"
        raise ConfigError(
            f"the segments of {origin} have no class names, which similarity = {similarity!r} compares with: "
            "choose --similarity clip"
        )
