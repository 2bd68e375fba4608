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
    picture: Image.Image, square: Square, boxes: Sequence[tuple[int, int, int, int]], reference: int
) -> Image.Image:
    """Decode an opened JPEG no larger than needed: it gives a half, a quarter or an eighth of the size for less work.

    Needed is the height of the square, and of each box [x, y, w, h] as many pixels as its reference has.

    Raises:
        RecordError: its data are damaged.
    """
    scale = max([square.side / square.height, *(reference / max(box[2:]) for box in boxes)])
    if scale < 1:
        picture.draft("RGB", (int(np.ceil(square.width * scale)), int(np.ceil(square.height * scale))))
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
