"""Boxes [x, y, w, h] in whole pixels: the box of a mask, and how much two boxes share."""

import numpy as np
from numpy.typing import NDArray

BBox = tuple[int, int, int, int]
"""[x, y, w, h] in pixels of the stored image; x + w and y + h are exclusive ends."""

Corners = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels; right and bottom are exclusive ends."""


def box_of(mask: NDArray[np.bool_]) -> BBox:
    """The smallest box around the True pixels of `mask`, [H, W] bool; (0, 0, 0, 0) if there are none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return 0, 0, 0, 0
    return from_corners((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))


def to_corners(box: BBox) -> Corners:
    """[x, y, w, h] -> (left, top, right, bottom)."""
    x, y, w, h = box
    return x, y, x + w, y + h


def from_corners(corners: Corners) -> BBox:
    """(left, top, right, bottom) -> [x, y, w, h]."""
    left, top, right, bottom = corners
    return left, top, right - left, bottom - top


def window(box: BBox) -> tuple[slice, slice]:
    """The rows and columns of a box, to index an array [H, W, ...] with."""
    left, top, right, bottom = to_corners(box)
    return slice(top, bottom), slice(left, right)


def area(box: BBox) -> int:
    """Pixels in a box."""
    return box[2] * box[3]


def shared_area(a: BBox, b: BBox) -> int:
    """Pixels in both boxes."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def iou(a: BBox, b: BBox) -> float:
    """Intersection over union of two boxes, in [0, 1]; 0 if both are empty."""
    shared = shared_area(a, b)
    return shared / (area(a) + area(b) - shared) if shared else 0.0


def overlap(a: BBox, b: BBox) -> float:
    """Intersection of two boxes over the area of the smaller one, in [0, 1]; 0 if one is empty."""
    shared = shared_area(a, b)
    return shared / min(area(a), area(b)) if shared else 0.0


def union(a: BBox, b: BBox) -> BBox:
    """The smallest box around two boxes; an empty one (w or h is 0) adds nothing."""
    if not area(a) or not area(b):
        return a if area(a) else b
    (left, top, right, bottom), (left_b, top_b, right_b, bottom_b) = to_corners(a), to_corners(b)
    return from_corners((min(left, left_b), min(top, top_b), max(right, right_b), max(bottom, bottom_b)))
