"""Boxes [x, y, w, h] in pixels; x + w and y + h are exclusive ends."""

from collections.abc import Sequence

from schemas.masks import BBox


def union(boxes: Sequence[BBox]) -> BBox:
    """The smallest box around `boxes`, of which there must be at least one."""
    left, top = min(x for x, _, _, _ in boxes), min(y for _, y, _, _ in boxes)
    return left, top, max(x + w for x, _, w, _ in boxes) - left, max(y + h for _, y, _, h in boxes) - top
