"""One geometry per sample: picture, masks, boxes and points are cropped, scaled and mirrored by the same numbers."""

import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from schemas.errors import RecordError
from schemas.masks import Mask
from schemas.rejects import Reason

Box = tuple[float, float, float, float]
"""[x, y, w, h] in pixels."""

SIDES = re.compile(r"\b(?:(?:left|right)(?:most|hand|handed|wards?)?|(?:counter|anti)?clockwise)\b", re.IGNORECASE)
"""Words of a caption that mirroring its picture would make false."""
WRITING = re.compile(
    r"[\"“”]|\b(?:sign(?:s|age|post|posts|board|boards)?|(?:hand)?(?:writing|written)|reads|says|saying|lettering"
    r"|licen[cs]e plates?|labell?ed|numbered|(?:text|letter|word|number|logo|label|poster|banner|billboard|scoreboard"
    r"|newspaper|magazine|map|clock|calendar)s?)\b",
    re.IGNORECASE,
)
"""Words of a caption whose picture is likely to show letters or digits, which mirroring would make unreadable."""


@dataclass(frozen=True)
class Crop:
    """A part of a picture, shown in columns `span` of a square; the other columns are black.

        picture                              square
        +-----------------------+            +-----------+
        |    +---------+        |            |  :     :  |
        |    |  part   |        |   ----->   |  :part :  |  side
        |    +---------+        |            |  :     :  |
        +-----------------------+            +-----------+
                                                span

    Attributes:
        height: of the whole picture, in pixels: shows by which factor a decoded picture is reduced.
        part: left, top, right, bottom of the part, in pixels of the whole picture.
        side: of the square, in pixels.
        span: columns of the square that show the part, [first, last). All rows do.
        mirrored: whether the square is flipped left to right in the end.
    """

    height: int
    part: tuple[float, float, float, float]
    side: int
    span: tuple[int, int]
    mirrored: bool

    @property
    def scale(self) -> float:
        """Pixels of the square per pixel of the picture, along its height."""
        return self.side / (self.part[3] - self.part[1])

    def crop_picture(
        self, picture: Image.Image, resample: Image.Resampling = Image.Resampling.BILINEAR
    ) -> NDArray[np.uint8]:
        """Crop a picture, decoded at full size or reduced: [side, side, 3] uint8."""
        first, last = self.span
        scale = reduction(self.height, picture.height)
        left, top, right, bottom = (edge / scale for edge in self.part)
        square = np.zeros((self.side, self.side, 3), np.uint8)
        resized = picture.resize((last - first, self.side), resample, box=(left, top, right, bottom))
        square[:, first:last] = np.asarray(resized)
        return square[:, ::-1] if self.mirrored else square

    def crop_mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Crop a mask [H, W] bool by taking the nearest pixel: [side, side] bool."""
        first, last = self.span
        rows, columns = self._nearest()
        square = np.zeros((self.side, self.side), bool)
        # pycocotools decodes masks column by column: taking columns first copies whole ones.
        square[:, first:last] = mask.T.take(columns, axis=0).T.take(rows, axis=0)
        return square[:, ::-1] if self.mirrored else square

    def crop_labels(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Crop a map of labels [H, W] by taking the nearest pixel: [side, side] of the same type, 0 in the bars."""
        first, last = self.span
        rows, columns = self._nearest()
        square = np.zeros((self.side, self.side), labels.dtype)
        square[:, first:last] = labels[rows[:, None], columns]
        return square[:, ::-1] if self.mirrored else square

    def crop_values(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Crop a map [H, W, C] as the picture is cropped, without rounding: [side, side, C] float32, 0 in the bars."""
        first, last = self.span
        square = np.zeros((self.side, self.side, values.shape[2]), np.float32)
        size, resample = (last - first, self.side), Image.Resampling.BILINEAR
        for channel in range(values.shape[2]):
            plane = Image.fromarray(np.ascontiguousarray(values[..., channel], np.float32))
            square[:, first:last, channel] = np.asarray(plane.resize(size, resample, box=self.part))
        return square[:, ::-1] if self.mirrored else square

    def _nearest(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and columns of the picture that are nearest to those of the square within its span."""
        first, last = self.span
        left, top, right, bottom = self.part
        columns = left + (np.arange(last - first) + 0.5) * (right - left) / (last - first)
        rows = top + (np.arange(self.side) + 0.5) * (bottom - top) / self.side
        return rows.astype(np.int64), columns.astype(np.int64)

    def crop_points(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Move points [N, 2], x and y in pixels of the picture, to pixels of the square; they may lie outside it."""
        left, top, right, _ = self.part
        first, last = self.span
        x = first + (points[:, 0] - left) * ((last - first) / (right - left))
        y = (points[:, 1] - top) * self.scale
        return np.stack([self.side - x if self.mirrored else x, y], axis=1)

    def crop_box(self, box: Box) -> Box:
        """Crop a box to its visible part, in pixels of the square; its width or height is 0 if nothing is visible."""
        x, y, w, h = box
        corners = self.crop_points(np.array([[x, y], [x + w, y + h]], float))
        low, high = (self.side - self.span[1], self.side - self.span[0]) if self.mirrored else self.span
        (left, right), (top, bottom) = np.sort(corners[:, 0]).clip(low, high), corners[:, 1].clip(0, self.side)
        return float(left), float(top), float(right - left), float(bottom - top)


def crop_height(width: int, height: int, side: int, *, mirrored: bool) -> Crop:
    """Scale a picture's height to `side`; cut a wider one on both sides, put a narrower one between black bars.

    This is FastComposer's `CenterCropOrPadSides` in a single resampling.
    """
    cut = max(0.0, (width - height) / 2)
    columns = min(side, max(1, round(width * side / height)))
    first = (side - columns) // 2
    return Crop(height, (cut, 0.0, width - cut, float(height)), side, (first, first + columns), mirrored)


def crop_window(height: int, window: tuple[int, int, int], side: int, *, mirrored: bool) -> Crop:
    """Scale the square window (x, y, length) of a picture of `height` to `side`, in pixels."""
    x, y, length = window
    return Crop(height, (x, y, x + length, y + length), side, (0, side), mirrored)


def sizes_of(width: int, crop: Crop) -> tuple[int, int, int, int, int, int]:
    """What Stable Diffusion XL is told about a crop of a picture of `width`, in pixels.

    Height and width of the picture, distance of the square from the top and from the left edge once the picture is
    scaled (and mirrored), height and width of the square: Podell et al. (2023), "SDXL", section 2.2.
    """
    left, top, right, _ = crop.part
    start = width - right if crop.mirrored else left
    return crop.height, width, round(top * crop.scale), round(start * crop.scale), crop.side, crop.side


def crop_middle(width: int, height: int, side: int, *, mirrored: bool) -> Crop:
    """Scale the largest square in the middle of a picture to `side`: diffusers' `Resize` and `CenterCrop` in one."""
    return crop_window(height, window_of(width, height, (0, 0, width, height)), side, mirrored=mirrored)


def window_of(width: int, height: int, box: Box, rng: np.random.Generator | None = None) -> tuple[int, int, int]:
    """The largest square window of a picture that holds `box`: x, y and length in pixels.

    A window shorter than the box lies inside it. Of the windows that qualify the one nearest to the picture's middle is
    returned, or, with `rng`, any of them with equal probability.
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


def draw_mirrored(caption: str, rng: np.random.Generator) -> bool:
    """Draw whether a picture is mirrored: half of the time, but never if its caption names a side or something written.

    A mirrored picture contradicts "to the left of", and a sign in it cannot be read. That a word has another sense
    ("right now") costs no more than a picture that is always shown as it is. East and west are not among the words: a
    picture does not show them. Writing that the caption does not mention is not noticed.
    """
    return bool(rng.random() < 0.5) and not SIDES.search(caption) and not WRITING.search(caption)


def reduction(length: int, decoded: int) -> int:
    """The factor by which a JPEG's side of `length` pixels was reduced when decoded to `decoded`: 1, 2, 4 or 8.

    Decoded sizes are rounded up, so the quotient is a little smaller: the last pixel covers more than the picture.
    """
    return 1 << round(math.log2(length / decoded))


def open_jpeg(data: bytes, width: int, height: int) -> Image.Image:
    """Read the header of a JPEG.

    Raises:
        RecordError: `data` is not a JPEG, or its size is not `width` x `height` pixels.
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


def decode(picture: Image.Image, crop: Crop, boxes: Sequence[tuple[int, int, int, int]], reference: int) -> Image.Image:
    """Decode an opened JPEG at full size, a half, a quarter or an eighth, whichever is the smallest that suffices.

    The crop needs as many pixels as its square has, and each of `boxes` [x, y, w, h] as many as a reference of
    `reference` pixels. Decoding at a reduced size takes less time.

    Raises:
        RecordError: the data are damaged.
    """
    scale = max([crop.scale, *(reference / max(box[2:]) for box in boxes)])
    if scale < 1:
        picture.draft("RGB", (math.ceil(picture.width * scale), math.ceil(picture.height * scale)))
    try:
        return picture.convert("RGB")
    except (OSError, SyntaxError, IndexError, struct.error) as error:  # depends on where the bytes are damaged
        raise RecordError(Reason.UNDECODABLE_IMAGE, str(error)) from error


def to_pixels(mask: Mask, area: int) -> NDArray[np.bool_]:
    """Decode a mask to [H, W] bool.

    Raises:
        ValueError: the mask cannot be decoded or does not have `area` pixels. pycocotools fills pixels that the runs do
            not cover with arbitrary memory; counting is a cheap way to notice.
    """
    pixels = mask.to_array()
    if np.count_nonzero(pixels) != area:
        raise ValueError(f"a mask has {np.count_nonzero(pixels)} pixels, its record says {area}")
    return pixels
