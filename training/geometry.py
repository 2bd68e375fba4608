"""The one geometry of a sample: its picture and its masks are mirrored, cropped and scaled by the same numbers."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image


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
        """Show a picture, decoded at any scale, in the square: [side, side, 3] uint8."""
        first, last = self.span
        scale = picture.width / self.width, picture.height / self.height
        left, top, right, bottom = self.box
        seen = (left * scale[0], top * scale[1], right * scale[0], bottom * scale[1])
        square = np.zeros((self.side, self.side, 3), np.uint8)
        part = picture.resize((last - first, self.side), Image.Resampling.BILINEAR, box=seen)
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
