"""Which objects of a picture are fit to learn from: the gates of MIP-Adapter's published loader.

The loader applies them whenever it draws a sample, and silently takes another picture where fewer than two objects
pass. Here they are applied once, and a picture that they leave without two differently named objects is a reject that
says why. Subject-Diffusion's loader has the same constants.

Two of the gates are not taken as they were published. There the box must be filled by its most frequent label, which
may be the background's: a box of nothing passes. Here the object's own mask must fill it. And there a box that holds
one label alone is refused, here it is not: a mask may well fill its box.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import apache_beam as beam
import numpy as np
from numpy.typing import NDArray

from schemas.errors import RecordError
from schemas.example import Example, Object
from schemas.masks import BBox
from schemas.rejects import Reason
from transforms.batch import Batch, advance, each

STAGE = "gates"

ORDER = (
    Reason.LOW_SCORE,
    Reason.SMALL_SUBJECT,
    Reason.LARGE_SUBJECT,
    Reason.OBJECT_ASPECT,
    Reason.UNFILLED_BOX,
    Reason.SPILLED_MASK,
    Reason.CROWDED_BOX,
    Reason.OVERLAPPING_OBJECTS,
)
"""The gates in the order in which an object meets them; the first one that refuses it is the one that counts."""


@dataclass(frozen=True)
class Gates:
    """What an object must be; "above" and "between" leave the bounds themselves out.

    The detector's score, in [0, 1], lies above `min_score`; the box's area, as a share of the picture's, between
    `min_area` and `max_area`; its width over its height between `min_aspect` and `max_aspect`. The mask covers at least
    `fill` of the box's area, and has no more pixels than the box in the whole picture. The box holds at most `crowd`
    things: objects whose masks reach into it, itself included, and the background where that shows. No box of a
    better object that is kept overlaps it by more than `overlap` of the smaller one's area. The `most` objects of
    highest score are kept; None keeps all.
    """

    min_score: float = 0.3
    min_area: float = 0.08
    max_area: float = 0.7
    min_aspect: float = 0.3
    max_aspect: float = 3.0
    fill: float = 0.6
    crowd: int = 5
    overlap: float = 0.8
    most: int | None = None


def passing(objects: Sequence[Object], gates: Gates) -> tuple[list[int], dict[Reason, int]]:
    """Send a picture's objects through the gates, in descending score, equal ones in their order.

    Returns:
        The indices of those that pass, in that order, uncut by `gates.most`; and how many each gate refused, gates
        that refused none left out.
    """
    masks = [one.mask.to_array() for one in objects]
    kept: list[int] = []
    refused = dict.fromkeys(ORDER, 0)
    for index in sorted(range(len(objects)), key=lambda i: (-objects[i].score, i)):
        reasons = _refusals(objects[index], masks[index], masks, [objects[i].bbox for i in kept], gates)
        first = next(reasons, None)
        if first is None:
            kept.append(index)
        else:
            refused[first] += 1
    return kept, {reason: count for reason, count in refused.items() if count}


def _refusals(
    one: Object, mask: NDArray[np.bool_], masks: Sequence[NDArray[np.bool_]], kept: Sequence[BBox], gates: Gates
) -> Iterator[Reason]:
    """Yield why an object is refused, in the order of the gates."""
    x, y, w, h = one.bbox
    box = w * h
    window = slice(y, y + h), slice(x, x + w)
    if one.score <= gates.min_score:
        yield Reason.LOW_SCORE
    if box / mask.size <= gates.min_area:
        yield Reason.SMALL_SUBJECT
    if box / mask.size >= gates.max_area:
        yield Reason.LARGE_SUBJECT
    if not gates.min_aspect < w / h < gates.max_aspect:
        yield Reason.OBJECT_ASPECT
    if int(mask[window].sum()) < gates.fill * box:
        yield Reason.UNFILLED_BOX
    if int(mask.sum()) > box:
        yield Reason.SPILLED_MASK
    if _count_things([other[window] for other in masks]) > gates.crowd:
        yield Reason.CROWDED_BOX
    if any(_overlap(one.bbox, other) > gates.overlap for other in kept):
        yield Reason.OVERLAPPING_OBJECTS


def _count_things(parts: Sequence[NDArray[np.bool_]]) -> int:
    """Count the masks that reach into a box, and the background where none of them lies; `parts` are [h, w] bool."""
    background = not np.logical_or.reduce(parts).all()
    return sum(bool(part.any()) for part in parts) + background


def _overlap(a: BBox, b: BBox) -> float:
    """The area that two boxes share, over the smaller one's."""
    across = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    down = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(across, 0) * max(down, 0) / min(a[2] * a[3], b[2] * b[3])


def keep_passing(example: Example, gates: Gates) -> Example:
    """Keep the objects that pass, in the order in which they stand.

    Raises:
        RecordError: fewer than two differently named objects are left. The reason is that of the gate that refused
            most objects, the earlier one of equals; FEW_OBJECTS where there were no two names before the gates, or
            where only the cut to `gates.most` left no two.
    """
    names = [example.phrases[one.phrase].root for one in example.objects]
    if len(set(names)) < 2:
        raise RecordError(Reason.FEW_OBJECTS, f"{len(names)} found, {_told(names)}")
    passed, refused = passing(example.objects, gates)
    kept = sorted(passed[: gates.most])
    if len({names[i] for i in kept}) < 2:
        by_cut = len({names[i] for i in passed}) >= 2
        reason = Reason.FEW_OBJECTS if by_cut else max(refused, key=lambda reason: refused[reason])
        counts = ", ".join(f"{reason} {count}" for reason, count in refused.items())
        left = f"{len(kept)} of {len(names)} left, {_told([names[i] for i in kept])}"
        raise RecordError(reason, f"{left}; refused: {counts or 'none'}")
    return replace(example, objects=tuple(example.objects[i] for i in kept))


def _told(names: Sequence[str]) -> str:
    return f"two names are asked for ({', '.join(dict.fromkeys(names)) or 'none'})"


@dataclass(eq=False)
class ApplyGates(beam.PTransform):
    """Leave in `objects` those that pass the gates: PCollection[Batch] -> PCollection[Batch]."""

    gates: Gates

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Look at each example by itself."""
        return batches | "apply gates" >> beam.Map(self._apply)

    def _apply(self, batch: Batch) -> Batch:
        return advance(batch, STAGE, each(lambda example: keep_passing(example, self.gates)))
