"""The mask value type: COCO compressed RLE, as pycocotools, SA-1B and FiftyOne read it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from schemas.boxes import BBox

__all__ = ["MAX_LABELS", "BBox", "Mask", "cut_masks", "intersection_over_union", "label_map", "union"]

MAX_OUTLINE = 2**22
"""Longest outline of polygons, and their farthest coordinate, in pixels. pycocotools takes some 40 bytes per pixel of
outline, and its integers overflow from 4e8 on: a coordinate of 1e10 ends the process."""

MAX_LABELS = 255
"""Most masks of a label map: uint8 without 0."""

_MAX_DIGITS = 7
"""Most characters of a run length: 35 bits, more than any picture has pixels."""


@dataclass(frozen=True)
class Mask:
    """A binary mask as run lengths.

    `size` is (height, width) in pixels of the stored image, `counts` COCO's compressed run lengths
    (column-major, the first run counts zeros).
    """

    size: tuple[int, int]
    counts: str

    @classmethod
    def from_array(cls, mask: NDArray[np.bool_]) -> Self:
        """Encode `mask`, [H, W] bool."""
        rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
        return cls(size=(mask.shape[0], mask.shape[1]), counts=rle["counts"].decode("ascii"))

    @classmethod
    def from_json(cls, rle: Mapping[str, Any]) -> Self:
        """Take `{"size": [h, w], "counts": str}`; uncompressed counts (a list) are compressed.

        Raises:
            ValueError, TypeError, OverflowError: uncompressed counts are no numbers, or do not add up to the picture's
                pixels.
        """
        height, width = rle["size"]
        counts = rle["counts"]
        if isinstance(counts, list):
            # Before they are compressed, as pycocotools writes beyond its memory for a run of 2**29 and more.
            counts = list(map(int, counts))
            _check_runs(counts, (height, width))
            counts = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]
        if isinstance(counts, bytes):
            counts = counts.decode("ascii")
        return cls(size=(int(height), int(width)), counts=counts)

    @classmethod
    def from_polygons(cls, polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> Self:
        """Fill COCO's polygons, each [x, y, x, y, ...] in pixels, of a picture of `size` (height, width).

        Raises:
            ValueError: there is no polygon, one has fewer than three corners or half a corner, or their outlines are
                longer than `MAX_OUTLINE`.
        """
        if not polygons or not all(len(p) >= 6 and len(p) % 2 == 0 and np.isfinite(p).all() for p in polygons):
            raise ValueError("a polygon needs three corners or more, each of two finite numbers")
        corners = [np.reshape(np.asarray(polygon, dtype=np.float64), (-1, 2)) for polygon in polygons]
        is_near = all(np.abs(c).max() <= MAX_OUTLINE for c in corners)
        if not is_near or sum(map(_outline, corners)) > MAX_OUTLINE:
            raise ValueError(f"polygons of coordinates or outlines of more than {MAX_OUTLINE:,} pixels")
        rle = coco.merge(coco.frPyObjects([list(map(float, p)) for p in polygons], *size))
        return cls(size=size, counts=rle["counts"].decode("ascii"))

    def to_json(self) -> dict[str, Any]:
        """Return `{"size": [h, w], "counts": str}`."""
        return {"size": list(self.size), "counts": self.counts}

    def check(self) -> None:
        """Raise a ValueError unless the runs add up to the picture's pixels.

        pycocotools leaves pixels that no run covers uninitialised, so masks that come from files are checked first.
        """
        _check_runs(_runs(self.counts), self.size)

    def to_array(self) -> NDArray[np.bool_]:
        """Decode to [H, W] bool."""
        return np.asarray(coco.decode(self._rle()), dtype=bool)

    @property
    def area(self) -> int:
        """Pixels inside the mask."""
        return int(coco.area(self._rle()))

    @property
    def bbox(self) -> BBox:
        """The smallest box around the mask; (0, 0, 0, 0) for an empty one."""
        x, y, w, h = (int(v) for v in coco.toBbox(self._rle()))
        return x, y, w, h

    def _rle(self) -> dict[str, Any]:
        return {"size": list(self.size), "counts": self.counts.encode("ascii")}


def intersection_over_union(a: Mask, b: Mask) -> float:
    """Shared area over joint area of two masks of one size, in [0, 1]; 0 where both are empty."""
    if a.size != b.size:
        raise ValueError(f"masks of {a.size} and {b.size} (height, width) cannot be compared")
    both = int(coco.area(coco.merge([a._rle(), b._rle()], intersect=True)))
    either = a.area + b.area - both
    return both / either if either else 0.0


def union(masks: Sequence[Mask]) -> Mask:
    """The mask of all pixels that are in at least one of `masks`, one or more of one size; one alone stays as it is."""
    if len(masks) == 1:
        return masks[0]
    if len({mask.size for mask in masks}) != 1:
        raise ValueError("masks of several sizes, or no mask, have no union")
    rle = coco.merge([mask._rle() for mask in masks])
    return Mask(masks[0].size, rle["counts"].decode("ascii"))


def label_map(masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.uint8]:
    """Draw masks into one map, smaller ones in front of larger ones.

    Args:
        masks: [H, W] bool each, at most `MAX_LABELS`.

    Returns:
        [H, W] uint8: at each pixel the number of its mask, from 1, or 0 for none. Without masks it is [0, 0].
    """
    labels = np.zeros(masks[0].shape if masks else (0, 0), np.uint8)
    areas = [int(mask.sum()) for mask in masks]
    for index in sorted(range(len(masks)), key=lambda i: (-areas[i], i)):
        labels[masks[index]] = index + 1
    return labels


def _outline(corners: NDArray[np.float64]) -> float:
    """The pixels on the sides of a polygon of `corners` [N, 2], as pycocotools counts them."""
    return float(np.abs(np.roll(corners, -1, axis=0) - corners).max(axis=1).sum())


def _check_runs(runs: Sequence[int], size: tuple[int, int]) -> None:
    if sum(runs) != size[0] * size[1] or min(runs, default=0) < 0:
        raise ValueError(f"its runs cover {sum(runs):,} pixels of a picture of {size[1]} x {size[0]}")


def cut_masks(masks: Sequence[Mask], boxes: Sequence[BBox]) -> list[NDArray[np.bool_]]:
    """Decode the pixels of each mask inside a box that lies in its picture; less work than decoding the masks.

    Returns:
        [w, h] bool for each mask, columns first: run lengths go down the columns.
    """
    if not masks:
        return []
    runs, owner = _all_runs([mask.counts for mask in masks])
    rows = np.array([mask.size[0] for mask in masks])
    x, _, width, _ = np.array(boxes).T
    # Pixels are counted through all pictures; of each, the columns of its box are kept.
    pixels = np.array([mask.size[0] * mask.size[1] for mask in masks])
    before = np.cumsum(pixels) - pixels
    first, last = before + x * rows, before + (x + width) * rows
    ends = np.clip(np.cumsum(runs), first[owner], last[owner])
    starts = np.concatenate([[0], ends[:-1]])
    is_first = np.diff(owner, prepend=-1) > 0
    starts[is_first] = first
    place = np.arange(len(owner)) - np.flatnonzero(is_first)[owner]
    kept = np.repeat(place % 2 == 1, ends - starts)
    parts = np.split(kept, np.cumsum(width * rows)[:-1])
    return [
        part.reshape(w, -1)[:, y : y + h] if part.size else np.zeros((w, h), bool)
        for part, (_, y, w, h) in zip(parts, boxes, strict=True)
    ]


def _all_runs(counts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Decode the run lengths of several masks, which pycocotools wrote or `Mask.check` accepted (see `_runs`).

    Returns:
        The runs of all masks, and the index of the mask that each belongs to.
    """
    codes = np.frombuffer("".join(counts).encode("ascii"), np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(codes & 32 == 0)
    digits = np.diff(last, prepend=-1)
    starts = last + 1 - digits
    shift = 5 * (np.arange(len(codes)) - np.repeat(starts, digits))
    runs = np.add.reduceat((codes & 31) << shift, starts)
    runs -= np.where(codes[last] & 16, 1 << 5 * digits, 0)
    owner = np.searchsorted(np.cumsum([len(text) for text in counts]), last, side="right")
    place = np.arange(len(runs)) - np.searchsorted(owner, owner)
    # Each mask's runs of zeros, then those of ones. From the fourth run on, they are differences to the one before.
    order = np.lexsort((place, place % 2, owner))
    sums = np.cumsum(runs[order])
    begins = place[order] < 3
    offsets = (sums - runs[order])[begins]
    runs[order] = sums - offsets[np.cumsum(begins) - 1]
    return runs, owner


def _runs(counts: str) -> list[int]:
    """Decode COCO's string of run lengths.

    Five bits per character, lowest first, above 48 ("0"); the sixth bit says that more follow, the fifth of the last
    one is the sign. From the fourth run on, a number is the difference to the run before the previous one.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"{character!r} is not a character of COCO's run lengths")
        value |= (bits & 31) << shift
        shift += 5
        if shift > 5 * _MAX_DIGITS:
            raise ValueError(f"a run length of more than {_MAX_DIGITS} characters")
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("the string of run lengths breaks off within a number")
    return runs
