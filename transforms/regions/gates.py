"""Which objects of a picture are fit to learn from: the gates of MIP-Adapter's published loader.

The loader applies them whenever it draws a sample, and silently draws another picture if fewer than two objects pass.
Here they are applied once; a picture without two differently named objects after them becomes a reject that says why.
Subject-Diffusion's loader has the same constants.

Two gates differ from the published ones. There, the most frequent label in the box must fill it, and that label may be
the background's: a box of nothing passes. Here, the object's own mask must fill it. There, a box with a single label is
refused; here it is not, as a mask may fill its box.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import apache_beam as beam
import numpy as np
from numpy.typing import NDArray

from schemas.boxes import BBox, area, overlap, window
from schemas.errors import RecordError
from schemas.example import Example, Object
from schemas.rejects import Reason
from transforms.batch import Batch, each
from transforms.step import Step, map_batches

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
"""The gates in the order in which they are applied; an object counts for the first one that refuses it."""


@dataclass(frozen=True)
class Gates:
    """Bounds on an object; "above" and "between" exclude the bounds themselves.

    Attributes:
        min_score: the detector's score, in [0, 1], is above.
        min_area: the box's area, as a share of the picture's, is above.
        max_area: and below.
        min_aspect: the box's width over its height is above.
        max_aspect: and below.
        fill: the mask covers at least this share of the box. It also has at most as many pixels, in the whole picture,
            as the box.
        crowd: most things in the box: objects whose masks reach into it, itself included, and the background if it is
            visible there.
        overlap: most that the box of a better object shares with it, as a share of the smaller box.
        most: number of objects of highest score that are kept; None: all.
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


def passing(objects: Sequence[Object], gates: Gates) -> tuple[list[int], dict[int, Reason]]:
    """Apply the gates to a picture's objects, in descending score; equal scores keep their order.

    Returns:
        The indices of the objects that pass, in that order, not yet limited to `gates.most`; and by index of each other
        object the gate that refused it.
    """
    masks = [thing.mask.to_array() for thing in objects]
    kept: list[int] = []
    refused: dict[int, Reason] = {}
    for index in sorted(range(len(objects)), key=lambda i: (-objects[i].score, i)):
        reasons = _refusals(objects[index], masks[index], masks, [objects[i].bbox for i in kept], gates)
        first = next(reasons, None)
        if first is None:
            kept.append(index)
        else:
            refused[index] = first
    return kept, refused


def _refusals(
    candidate: Object, mask: NDArray[np.bool_], masks: Sequence[NDArray[np.bool_]], kept: Sequence[BBox], gates: Gates
) -> Iterator[Reason]:
    """Yield the reasons to refuse an object, in the order of the gates.

    `mask` is its own, `masks` those of all objects of the picture, [H, W] bool each; `kept` holds the boxes of better
    objects.
    """
    _, _, w, h = candidate.bbox
    box = area(candidate.bbox)
    inside = window(candidate.bbox)
    if candidate.score <= gates.min_score:
        yield Reason.LOW_SCORE
    if box / mask.size <= gates.min_area:
        yield Reason.SMALL_SUBJECT
    if box / mask.size >= gates.max_area:
        yield Reason.LARGE_SUBJECT
    if not gates.min_aspect < w / h < gates.max_aspect:
        yield Reason.OBJECT_ASPECT
    if int(mask[inside].sum()) < gates.fill * box:
        yield Reason.UNFILLED_BOX
    if int(mask.sum()) > box:
        yield Reason.SPILLED_MASK
    if _count_things([other[inside] for other in masks]) > gates.crowd:
        yield Reason.CROWDED_BOX
    if any(overlap(candidate.bbox, other) > gates.overlap for other in kept):
        yield Reason.OVERLAPPING_OBJECTS


def _count_things(parts: Sequence[NDArray[np.bool_]]) -> int:
    """Count the masks that reach into a box, and the background if it is visible.

    `parts` are the masks inside the box, [h, w] bool each.
    """
    background = not np.logical_or.reduce(parts).all()
    return sum(bool(part.any()) for part in parts) + background


def keep_passing(example: Example, gates: Gates) -> Example:
    """Keep the objects that pass, in their order.

    Raises:
        RecordError: fewer than two differently named objects are left. The reason is that of the gate that refused
            most objects (of equals, the earlier one); FEW_OBJECTS if there were fewer than two names before the gates,
            or if only the limit `gates.most` left fewer.
    """
    names = [example.phrases[thing.phrase].root for thing in example.objects]
    if len(set(names)) < 2:
        raise RecordError(Reason.FEW_OBJECTS, f"{len(names)} found, {_two_names(names)}")
    passed, refused = passing(example.objects, gates)
    kept = sorted(passed[: gates.most])
    if len({names[i] for i in kept}) < 2:
        by_cut = len({names[i] for i in passed}) >= 2
        counts = Counter(refused.values())
        reason = Reason.FEW_OBJECTS if by_cut else max(counts, key=lambda gate: (counts[gate], -ORDER.index(gate)))
        dropped = [f"{names[i]} ({gate})" for i, gate in sorted(refused.items())]
        dropped += [f"{names[i]} (most {gates.most})" for i in passed[gates.most :]] if gates.most else []
        left = f"{len(kept)} of {len(names)} left, {_two_names([names[i] for i in kept])}"
        raise RecordError(reason, f"{left}; refused: {', '.join(dropped)}")
    return replace(example, objects=tuple(example.objects[i] for i in kept))


def _two_names(names: Sequence[str]) -> str:
    return f"two names are asked for ({', '.join(dict.fromkeys(names)) or 'none'})"


@dataclass(eq=False)
class ApplyGates(Step):
    """Remove objects that do not pass the gates from `objects`."""

    gates: Gates

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Gate each example by itself."""
        gates = self.gates
        return map_batches(batches, STAGE, each(lambda example: keep_passing(example, gates)))
