"""The mask value type: COCO compressed RLE, as pycocotools, SA-1B and FiftyOne read it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from schemas.boxes import BBox

__all__ = ["BBox", "Mask", "intersection_over_union"]


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
        """Take `{"size": [h, w], "counts": str}`; uncompressed counts (a list) are compressed."""
        height, width = rle["size"]
        counts = rle["counts"]
        if isinstance(counts, list):
            counts = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]
        if isinstance(counts, bytes):
            counts = counts.decode("ascii")
        return cls(size=(int(height), int(width)), counts=counts)

    @classmethod
    def from_polygons(cls, polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> Self:
        """Fill COCO's polygons, each [x, y, x, y, ...] in pixels, of a picture of `size` (height, width).

        Raises:
            ValueError: there is no polygon, or one has fewer than three corners or half a corner.
        """
        if not polygons or not all(len(p) >= 6 and len(p) % 2 == 0 and np.isfinite(p).all() for p in polygons):
            raise ValueError("a polygon needs three corners or more, each of two finite numbers")
        rle = coco.merge(coco.frPyObjects([list(map(float, p)) for p in polygons], *size))
        return cls(size=size, counts=rle["counts"].decode("ascii"))

    def to_json(self) -> dict[str, Any]:
        """Return `{"size": [h, w], "counts": str}`."""
        return {"size": list(self.size), "counts": self.counts}

    def check(self) -> None:
        """Raise a ValueError unless the runs add up to the picture's pixels.

        pycocotools leaves pixels that no run covers uninitialised, so masks that come from files are checked first.
        """
        runs = _runs(self.counts)
        if sum(runs) != self.size[0] * self.size[1] or min(runs, default=0) < 0:
            raise ValueError(f"its runs cover {sum(runs):,} pixels of a picture of {self.size[1]} x {self.size[0]}")

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
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("the string of run lengths breaks off within a number")
    return runs
