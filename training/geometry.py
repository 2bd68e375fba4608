"""The one geometry of a sample: its picture and its masks are mirrored, cropped and scaled by the same numbers."""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from schemas.errors import RecordError
from schemas.masks import Mask
from schemas.rejects import Reason

Box = tuple[float, float, float, float]
"""[x, y, w, h] in pixels."""


@dataclass(frozen=True)
class Square:
    """How a picture of `width` x `height` pixels becomes a square of `side`.

    The height is scaled to `side`; what is wider is cut on both sides, what is narrower stands between black bars.
    That is FastComposer's `CenterCropOrPadSides` in one step: nothing is resampled twice.
    """

    width: int
    height: int
    side: int
    mirrored: bool

    @property
    def scale(self) -> float:
        """Pixels of the square for each of the picture."""
        return self.side / self.height

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The part of the picture that is seen: left, top, right, bottom in its pixels."""
        cut = max(0.0, (self.width - self.height) / 2)
        return cut, 0.0, self.width - cut, float(self.height)

    @property
    def span(self) -> tuple[int, int]:
        """The columns of the square that show it, [first, last)."""
        width = min(self.side, max(1, round(self.width * self.side / self.height)))
        first = (self.side - width) // 2
        return first, first + width

    def of_picture(self, picture: Image.Image) -> NDArray[np.uint8]:
        """Show a picture, decoded whole or reduced, in the square: [side, side, 3] uint8."""
        first, last = self.span
        scale = reduction(self.height, picture.height)
        left, top, right, bottom = (edge / scale for edge in self.box)
        square = np.zeros((self.side, self.side, 3), np.uint8)
        part = picture.resize((last - first, self.side), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
        square[:, first:last] = np.asarray(part)
        return square[:, ::-1] if self.mirrored else square

    def of_mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Show a mask [H, W] bool in the square, [side, side] bool: the nearest pixel, so that it stays a mask."""
        first, last = self.span
        left, _, right, _ = self.box
        columns = left + (np.arange(last - first) + 0.5) * (right - left) / (last - first)
        rows = (np.arange(self.side) + 0.5) * self.height / self.side
        square = np.zeros((self.side, self.side), bool)
        square[:, first:last] = mask[rows.astype(int)[:, None], columns.astype(int)]
        return square[:, ::-1] if self.mirrored else square


@dataclass(frozen=True)
class Window:
    """How the square of `length` pixels at (`x`, `y`) of a picture, which is `height` pixels high, becomes `side`."""

    height: int
    x: int
    y: int
    length: int
    side: int
    mirrored: bool

    @property
    def scale(self) -> float:
        """Pixels of the square for each of the picture."""
        return self.side / self.length

    def of_picture(self, picture: Image.Image) -> NDArray[np.uint8]:
        """Show a picture, decoded whole or reduced, in the square: [side, side, 3] uint8."""
        scale = reduction(self.height, picture.height)
        seen = self.x / scale, self.y / scale, (self.x + self.length) / scale, (self.y + self.length) / scale
        square = np.asarray(picture.resize((self.side, self.side), Image.Resampling.BILINEAR, box=seen))
        return square[:, ::-1] if self.mirrored else square

    def of_mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Show a mask [H, W] bool in the square, [side, side] bool: the nearest pixel, so that it stays a mask."""
        places = ((np.arange(self.side) + 0.5) / self.scale).astype(int)
        square = mask[(self.y + places)[:, None], self.x + places]
        return square[:, ::-1] if self.mirrored else square

    def of_box(self, box: Box) -> Box:
        """Show a box, what is seen of it, in pixels of the square; its width or height is 0 where nothing is."""
        x, y, w, h = box
        edges = np.array([x - self.x, y - self.y, x + w - self.x, y + h - self.y]) * self.scale
        left, top, right, bottom = edges.clip(0, self.side).tolist()
        if self.mirrored:
            left, right = self.side - right, self.side - left
        return left, top, right - left, bottom - top


def window_of(width: int, height: int, box: Box, rng: np.random.Generator | None = None) -> tuple[int, int, int]:
    """The largest square of a picture, as near its middle as lets it hold `box`: x, y and side in pixels.

    A box longer than the square fills it. With `rng` any square that holds the box, or is filled by it, is as likely.
    """
    length = min(width, height)
    x, y, w, h = box
    return _start(width, length, x, w, rng), _start(height, length, y, h, rng), length


def _start(whole: int, length: int, start: float, extent: float, rng: np.random.Generator | None) -> int:
    low, high = sorted((start + extent - length, start))
    if rng is not None:
        first, last = (min(max(edge, 0), whole - length) for edge in (math.ceil(low), math.floor(high)))
        return int(rng.integers(first, last, endpoint=True))
    return min(max(round(min(max((whole - length) / 2, low), high)), 0), whole - length)


def reduction(length: int, decoded: int) -> int:
    """By how much a JPEG's side of `length` pixels was reduced when it was decoded to `decoded`: 1, 2, 4 or 8.

    Decoded sizes are rounded up, so their quotient is less: the last pixel shows more than there is.
    """
    return 1 << round(math.log2(length / decoded))


def open_jpeg(data: bytes, width: int, height: int) -> Image.Image:
    """Read the header of a JPEG of `width` x `height` pixels.

    Raises:
        RecordError: it is none, or of another size.
    """
    try:
        picture = Image.open(BytesIO(data), formats=("JPEG",))
    except (OSError, Image.DecompressionBombError) as error:
        raise RecordError(Reason.UNDECODABLE_IMAGE, "no JPEG, or a huge one") from error
    if picture.size != (width, height):
        stated = f"{width} x {height}"
        raise RecordError(
            Reason.UNDECODABLE_IMAGE, f"{picture.width} x {picture.height} pixels, its record says {stated}"
        )
    return picture


def decode(
    picture: Image.Image, square: Square | Window, boxes: Sequence[tuple[int, int, int, int]], reference: int
) -> Image.Image:
    """Decode an opened JPEG no larger than needed: it gives a half, a quarter or an eighth of the size for less work.

    Needed is what the square shows, and of each box [x, y, w, h] as many pixels as its reference has.

    Raises:
        RecordError: its data are damaged.
    """
    scale = max([square.scale, *(reference / max(box[2:]) for box in boxes)])
    if scale < 1:
        picture.draft("RGB", (math.ceil(picture.width * scale), math.ceil(picture.height * scale)))
    try:
        return picture.convert("RGB")
    except (OSError, SyntaxError, IndexError, struct.error) as error:  # by where the bytes stop making sense
        raise RecordError(Reason.UNDECODABLE_IMAGE, str(error)) from error


def to_pixels(mask: Mask, area: int) -> NDArray[np.bool_]:
    """Decode a mask, [H, W] bool; raise a ValueError where it cannot be, or has not `area` pixels.

    What runs leave over, pycocotools fills with whatever was in memory; counting is the cheap way to see it.
    """
    pixels = mask.to_array()
    if np.count_nonzero(pixels) != area:
        raise ValueError(f"a mask has {np.count_nonzero(pixels)} pixels, its record says {area}")
    return pixels
