"""Measures of how well predicted masks fit the true ones."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

LabelledMask = tuple[str, NDArray[np.bool_]]
"""A class name and its mask, [H, W] bool."""


def intersection_over_union(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Shared area over joint area of two [H, W] bool masks, in [0, 1]; 0 where both are empty."""
    either = int((a | b).sum())
    return int((a & b).sum()) / either if either else 0.0


def panoptic_quality(pictures: Iterable[tuple[Sequence[LabelledMask], Sequence[LabelledMask]]]) -> dict[str, float]:
    """Panoptic quality over (predicted, true) masks of many pictures.

    Kirillov et al. 2019, "Panoptic Segmentation", equation 1: a predicted and a true mask of one class match
    where their IoU exceeds 0.5, which no second pair can; PQ = sum of matched IoU / (TP + FP/2 + FN/2), per
    class, then averaged over the classes that occur. Returns `pq`, `sq` (mean IoU of the matches) and `rq`
    (TP / (TP + FP/2 + FN/2)), each averaged over classes, in [0, 1].
    """
    ious: dict[str, list[float]] = defaultdict(list)
    false: dict[str, int] = defaultdict(int)  # positives and negatives weigh the same
    for predicted, true in pictures:
        missed = list(true)
        for label, mask in predicted:
            hit = next((t for t in missed if t[0] == label and intersection_over_union(t[1], mask) > 0.5), None)
            if hit is None:
                false[label] += 1
            else:
                ious[label].append(intersection_over_union(hit[1], mask))
                missed = [t for t in missed if t is not hit]
        for label, _ in missed:
            false[label] += 1
    labels = sorted(ious.keys() | false.keys())
    if not labels:
        return {"pq": 0.0, "sq": 0.0, "rq": 0.0}
    rq = [len(ious[c]) / (len(ious[c]) + false[c] / 2) for c in labels]
    sq = [float(np.mean(ious[c])) if ious[c] else 0.0 for c in labels]
    pq = [s * r for s, r in zip(sq, rq, strict=True)]
    return {"pq": float(np.mean(pq)), "sq": float(np.mean(sq)), "rq": float(np.mean(rq))}
