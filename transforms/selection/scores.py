"""Scores of pictures and of their subjects on named axes, and the gates that cut by them.

Axes of a picture:
    side         its shorter side, pixels
    sharpness    variance of the Laplacian of its grey values (Pech-Pacheco et al. 2000, "Diatom autofocusing in
                 brightfield microscopy"); a blurred picture has a low one
    aesthetic    rating by LAION's predictor, about 1 to 10 (transforms.models.aesthetic)
    pwatermark, nsfw    probabilities that the source states in its JSON or columns, as LAION and DataComp do
Axes of a subject:
    share            its mask as a share of the picture
    wholeness        share of its pixels that are in its largest connected piece
    crop_aesthetic   rating of its masked crop

A picture that a gate refuses is a reject. A subject that a gate refuses is left out; a picture that has none left is a
reject. Rules between subjects follow: of two masks that share much, the larger stays; then the best few stay.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import apache_beam as beam
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from schemas.errors import RecordError
from schemas.example import Example
from schemas.images import decode_grey
from schemas.masks import Mask, intersection_over_union, union
from schemas.rejects import Reason
from transforms.batch import Batch, each
from transforms.models.settings import HOSTING, Hosting
from transforms.step import Step, map_batches, run_model

if TYPE_CHECKING:
    from transforms.models.aesthetic import Aesthetic

STAGE = "scores"

SUBJECT_AXES = ("share", "wholeness", "crop_aesthetic")
RATED = frozenset({"aesthetic", "crop_aesthetic"})
"""Axes that need the aesthetic predictor."""

Range = tuple[float | None, float | None]
"""Lowest and highest value that passes, both included; None: any."""

Kind = Literal["matches", "objects", "matte", "none"]
"""Where the subjects of an example are: its matched segments, its objects, its alpha; or it has none."""


@dataclass(frozen=True)
class Rules:
    """What is measured, and what passes.

    Attributes:
        axes: The axes that are measured and stored.
        gates: What passes on each axis that has a gate.
        max_iou: Of two subjects whose masks have a higher intersection over union, the larger stays; None: both.
        most: Number of subjects that stay; None: all.
        best_by: The axis by which these are chosen, the highest first; "": the largest stay.
    """

    axes: tuple[str, ...] = ()
    gates: Mapping[str, Range] = field(default_factory=dict)
    max_iou: float | None = None
    most: int | None = None
    best_by: str = ""


def sharpness_of(image: NDArray[np.uint8]) -> float:
    """The variance of the Laplacian of a picture's grey values, [H, W, 3] uint8 RGB; borders repeat their pixels."""
    grey = np.asarray(Image.fromarray(image).convert("L"), np.float64)
    return float(ndimage.laplace(grey, mode="nearest").var())


def wholeness_of(mask: NDArray[np.bool_]) -> float:
    """Share of a mask's pixels, [H, W] bool, in its largest piece; diagonal neighbours are connected. 0 if empty."""
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())[1:]
    return float(sizes.max() / sizes.sum()) if sizes.size else 0.0


def measure_picture(example: Example, axes: Sequence[str], rating: float | None = None) -> dict[str, float]:
    """Score a picture on those of `axes` that are a picture's; one that the source does not state is absent."""
    scores: dict[str, float] = {}
    for axis in axes:
        if axis == "side":
            scores[axis] = float(min(example.width, example.height))
        elif axis == "sharpness":
            scores[axis] = round(sharpness_of(example.pixels()), 4)
        elif axis == "aesthetic" and rating is not None:
            scores[axis] = rating
        elif axis in example.stated:
            scores[axis] = round(example.stated[axis], 4)
    return scores


def measure_subject(mask: Mask, axes: Sequence[str], rating: float | None = None) -> dict[str, float]:
    """Score a subject by its mask on those of `axes` that are a subject's."""
    scores: dict[str, float] = {}
    for axis in axes:
        if axis == "share":
            scores[axis] = round(mask.area / (mask.size[0] * mask.size[1]), 4)
        elif axis == "wholeness":
            scores[axis] = round(wholeness_of(mask.to_array()), 4)
        elif axis == "crop_aesthetic" and rating is not None:
            scores[axis] = rating
    return scores


def refused(scores: Mapping[str, float], gates: Mapping[str, Range]) -> str:
    """Return which gate refuses these scores, as text, "" if all pass; an axis without a score passes."""
    for axis, (low, high) in gates.items():
        value = scores.get(axis)
        if value is None:
            continue
        if low is not None and value < low:
            return f"{axis} {value:g} is below {low:g}"
        if high is not None and value > high:
            return f"{axis} {value:g} is above {high:g}"
    return ""


def choose_subjects(masks: Sequence[Mask], scores: Sequence[Mapping[str, float]], rules: Rules) -> list[int]:
    """Return the indices of the subjects that pass gates and rules, in their order."""
    kept = [i for i in range(len(masks)) if not refused(scores[i], rules.gates)]
    areas = [mask.area for mask in masks]
    if rules.max_iou is not None:
        apart: list[int] = []
        for i in sorted(kept, key=lambda i: (-areas[i], i)):
            if all(intersection_over_union(masks[i], masks[j]) <= rules.max_iou for j in apart):
                apart.append(i)
        kept = apart
    if rules.most is not None:
        by = [scores[i].get(rules.best_by, -np.inf) if rules.best_by else areas[i] for i in range(len(masks))]
        kept = sorted(kept, key=lambda i: (-by[i], i))[: rules.most]
    return sorted(kept)


def apply_rules(
    example: Example, rules: Rules, kind: Kind, rating: float | None = None, ratings: Sequence[float] = ()
) -> Example:
    """Score an example, fill `scores`, `subject_scores` and `measured`, and keep the subjects that pass.

    Args:
        example: The example.
        rules: What is measured, and what passes.
        kind: Where its subjects are.
        rating: The picture's, where it is an axis.
        ratings: The subjects', where they are an axis.

    Raises:
        RecordError: GATED_PICTURE, a gate refuses the picture; GATED_SUBJECTS, none of its subjects passes.
    """
    picture = measure_picture(example, rules.axes, rating)
    if problem := refused(picture, rules.gates):
        raise RecordError(Reason.GATED_PICTURE, problem)
    masks = subject_masks(example, kind)
    rated: Sequence[float | None] = ratings or [None] * len(masks)
    scores = [measure_subject(mask, rules.axes, r) for mask, r in zip(masks, rated, strict=True)]
    kept = choose_subjects(masks, scores, rules)
    if masks and not kept:
        problems = "; ".join(filter(None, (refused(one, rules.gates) for one in scores)))
        raise RecordError(Reason.GATED_SUBJECTS, f"none of {len(masks)} subjects passes: {problems}")
    measured: dict[str, tuple[float, ...]] = {axis: (value,) for axis, value in picture.items()}
    measured |= {axis: tuple(s[axis] for s in scores) for axis in SUBJECT_AXES if scores and axis in scores[0]}
    scored = replace(example, scores=picture, subject_scores=tuple(scores[i] for i in kept), measured=measured)
    return _keep(scored, kind, kept)


def subject_masks(example: Example, kind: Kind) -> list[Mask]:
    """Return the masks of an example's subjects: matched segments in the order of their phrases, or objects."""
    if kind == "objects":
        return [thing.mask for thing in example.objects]
    if kind == "matte":
        return [Mask.from_array(decode_grey(example.alpha) >= 128)]
    if kind == "none":
        return []
    matches = sorted(example.matches, key=lambda match: match.phrase)
    return [union([example.segments[i].mask for i in (match.segment, *match.others)]) for match in matches]


def _keep(example: Example, kind: Kind, kept: Sequence[int]) -> Example:
    if kind == "objects":
        return replace(example, objects=tuple(example.objects[i] for i in kept))
    if kind == "matches":
        matches = sorted(example.matches, key=lambda match: match.phrase)
        return replace(example, matches=tuple(matches[i] for i in kept))
    return example


def rate_all(aesthetic: "Aesthetic", examples: Sequence[Example], rules: Rules, kind: Kind) -> list[Example]:
    """Fill `ratings` of examples: of the picture and of the crops of its subjects, as far as they are axes."""
    from transforms.models.clip import embed_images, embed_segments

    pictures = [example.pixels() for example in examples]
    masks = [subject_masks(example, kind) if "crop_aesthetic" in rules.axes else [] for example in examples]
    whole = aesthetic.rate(embed_images(aesthetic.clip, pictures)) if "aesthetic" in rules.axes else None
    crops = iter(aesthetic.rate(embed_segments(aesthetic.clip, pictures, masks)).tolist())
    return [
        replace(
            example,
            ratings=(None if whole is None else float(whole[i]), tuple(next(crops) for _ in masks[i])),
        )
        for i, example in enumerate(examples)
    ]


def _load(clip: str, checkpoint: str, hosting: Hosting) -> "Aesthetic":
    from transforms.models.aesthetic import load_aesthetic
    from transforms.models.clip import load_clip

    return load_aesthetic(checkpoint, load_clip(clip, hosting.precision))


@dataclass(eq=False)
class ScoreSubjects(Step):
    """Score pictures and subjects, and apply the rules; see `apply_rules`.

    `clip` and `aesthetic` name the models that the axes of `RATED` need.
    """

    rules: Rules
    kind: Kind
    clip: str
    aesthetic: str | None
    hosting: Hosting = HOSTING

    def checkpoints(self) -> Mapping[str, str]:
        """CLIP and the predictor, if one of its axes is measured."""
        if not RATED & {*self.rules.axes}:
            return {}
        assert self.aesthetic is not None
        return {"clip": self.clip, "aesthetic": self.aesthetic}

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Rate the pictures where an axis needs it, then measure and cut each by itself."""
        rules, kind = self.rules, self.kind
        if self.aesthetic is not None and self.checkpoints():
            load = partial(_load, self.clip, self.aesthetic, self.hosting)
            rate: Callable[[Any, Sequence[Example]], list[Example]] = partial(rate_all, rules=rules, kind=kind)
            batches = run_model(batches, "ratings", load, rate, self.hosting)
        return map_batches(batches, STAGE, each(lambda example: apply_rules(example, rules, kind, *example.ratings)))
