"""References: objects cut out of a picture for an image encoder, augmented so that they are no copies of it.

Kinds, probabilities and strengths of the augmentations are FastComposer's (fastcomposer/transforms.py). Rotation, flip
and warp are one resampling instead of three, which takes a third of the time and keeps the reference sharper.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, reduce
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter

from schemas.boxes import union
from schemas.errors import RecordError
from schemas.masks import BBox
from schemas.rejects import Reason
from schemas.samples.base import Segmentation
from training.geometry import Crop, reduction, to_pixels

WARP, KNOTS = 1.0, 18
"""The elastic warp: standard deviation of the shifts in 1/224 of the side, drawn on a grid of `KNOTS` x `KNOTS` knots.

Interpolated between the knots they are as large and as smooth as those of torchvision's ElasticTransform (white noise
of alpha 50, blurred with sigma 5), at a hundredth of the cost.
"""
NOISE_LEVELS = 255
"""The noise behind a reference is uniform from 0 to 254, as published."""
WHITE = 255
ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
SMALLEST = 1 / 4096
"""Share of the square below which an object counts as cut off: one of the 64 x 64 latents of Stable Diffusion."""


class Annotation(Protocol):
    """A phrase and its mask, as in the records of FastComposer and MIP-Adapter."""

    text: str
    start: int
    end: int
    area: int
    segmentation: Segmentation


@dataclass(frozen=True)
class Region:
    """An annotated object: its mask [H, W] bool and bounding box in the picture, and its mask in the cropped square."""

    mask: NDArray[np.bool_]
    bbox: BBox
    cropped: NDArray[np.bool_]


def check_annotation(annotation: Annotation, caption: str, width: int, height: int) -> None:
    """Check that an annotation fits its caption and its picture of `width` x `height` pixels.

    Raises:
        RecordError: the caption has another text at its span, or its mask has another size.
    """
    if caption[annotation.start : annotation.end] != annotation.text:
        where = f"{annotation.start} to {annotation.end} of the caption"
        raise RecordError(Reason.MISMATCHED_ANNOTATION, f"{annotation.text!r} is not the text at {where}")
    rows, columns = annotation.segmentation.size
    if (columns, rows) != (width, height):
        stated = f"{columns} x {rows} pixels, the picture {width} x {height}"
        raise RecordError(Reason.MISMATCHED_ANNOTATION, f"the mask of {annotation.text!r} has {stated}")


def find_region(annotation: Annotation, crop: Crop) -> Region | None:
    """Decode an annotation's mask and crop it; None if less than `SMALLEST` of the square is left.

    Raises:
        ValueError: the mask is damaged.
    """
    mask = annotation.segmentation.to_mask()
    pixels = to_pixels(mask, annotation.area)
    cropped = crop.crop_mask(pixels)
    is_shown = np.count_nonzero(cropped) >= SMALLEST * cropped.size
    return Region(pixels, mask.bbox, cropped) if is_shown else None


def draw_noise(
    size: tuple[int, int], decoded: tuple[int, int], boxes: Sequence[BBox], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Draw the noise behind the references of a picture: [h', w', 3] uint8, one field for all of them.

    References that overlap show the same noise where both have background, as in the published loader. The field is
    drawn for the picture at full size; for a picture decoded at a reduced size it is averaged, as the pixels are.

    Args:
        size: (H, W) of the picture at full size.
        decoded: (h', w') of the picture as decoded.
        boxes: of the references, in pixels at full size. The field is 0 outside the box that holds them all.
        rng: draws the noise.
    """
    noise = np.zeros((*decoded, 3), np.uint8)
    if not boxes:
        return noise
    x, y, width, height = reduce(union, boxes)
    scale = reduction(size[0], decoded[0])
    rows, columns = _cover(y, height, scale), _cover(x, width, scale)
    field = rng.integers(0, NOISE_LEVELS, (len(rows) * scale, len(columns) * scale, 3), np.uint8)
    averaged = field if scale == 1 else np.asarray(Image.fromarray(field).reduce(scale))
    noise[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = averaged
    return noise


def cut_out(
    pixels: NDArray[np.uint8], mask: NDArray[np.bool_], bbox: BBox, background: NDArray[np.uint8] | None
) -> NDArray[np.uint8]:
    """Cut an object out of its picture, surrounded by a background or by white: [h, w, 3] uint8.

    Args:
        pixels: the picture at full size or reduced, [h', w', 3] uint8.
        mask: the object, [H, W] bool, at full size.
        bbox: of the object, [x, y, w, h] in pixels of the mask.
        background: a picture of the shape of `pixels`; None for white.
    """
    x, y, width, height = bbox
    scale = reduction(mask.shape[0], pixels.shape[0])
    rows, columns = _cover(y, height, scale), _cover(x, width, scale)
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    inside = mask[y : y + height, x : x + width]
    if scale > 1:
        inside = mask[_middle(rows, scale, mask.shape[0])][:, _middle(columns, scale, mask.shape[1])]
    behind = np.uint8(WHITE) if background is None else background[window]
    # `where` on three channels takes three times as long as bit operations with bytes of 0 and 255.
    kept = np.repeat(inside * np.uint8(255), 3, axis=1).reshape(*inside.shape, 3)
    return behind ^ ((behind ^ pixels[window]) & kept)


def _cover(start: int, length: int, scale: int) -> NDArray[np.intp]:
    """Indices of the reduced pixels that cover the pixels [start, start + length)."""
    return np.arange(start // scale, -(-(start + length) // scale))


def _middle(reduced: NDArray[np.intp], scale: int, length: int) -> NDArray[np.intp]:
    """Index of the full-size pixel in the middle of each reduced one, kept below `length`."""
    return np.minimum(reduced * scale + scale // 2, length - 1)


def to_square(crop: NDArray[np.uint8], side: int, grey: int = 0) -> Image.Image:
    """Fit a crop into the middle of a square of `side` pixels; the rest has the level `grey`, 0 to 255."""
    height, width = crop.shape[:2]
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    square = Image.new("RGB", (side, side), (grey, grey, grey))
    square.paste(
        Image.fromarray(crop).resize(size, Image.Resampling.BILINEAR), ((side - size[0]) // 2, (side - size[1]) // 2)
    )
    return square


def augment(crop: NDArray[np.uint8], side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Make a crop into an augmented reference, [side, side, 3] uint8.

    Probabilities: 0.5 cut to the square at its top, 0.75 rotated by up to 30 degrees, 0.5 mirrored, 0.5 warped, 0.5
    recoloured, 0.5 blurred, 0.1 turned grey.

    The cut is what remains of the published zoom by up to 2: that enlarges the whole crop and cuts off what is below a
    square, so that nothing is cut off a crop as wide as it is high, or wider; then both are scaled to `side`.
    """
    if rng.random() < 0.5:
        crop = crop[: crop.shape[1]]
    reference = _move(to_square(crop, side), rng)
    if rng.random() < 0.5:
        reference = _recolour(reference, rng)
    if rng.random() < 0.5:
        reference = _blur(reference, rng.uniform(0.1, 2))
    if rng.random() < 0.1:
        reference = reference.convert("L").convert("RGB")
    return np.asarray(reference)


def _move(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    rotated, mirrored, warped = rng.random(3) < (0.75, 0.5, 0.5)
    if mirrored:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    angle = rng.uniform(-30, 30) if rotated else 0.0
    if not warped:
        return picture.rotate(angle, Image.Resampling.BILINEAR) if rotated else picture
    side = picture.width
    cos, sin = float(np.cos(np.deg2rad(angle))), float(np.sin(np.deg2rad(angle)))
    middles = (2 * torch.arange(side) + 1) / side - 1  # of the pixels, in `grid_sample`'s unit
    x, y = middles, middles[:, None]
    grid = torch.stack([cos * x + sin * y, cos * y - sin * x], dim=-1)[None]
    grid += draw_shifts(side, rng).permute(0, 2, 3, 1)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
    moved = F.grid_sample(pixels, grid, mode="bilinear", align_corners=False)
    return Image.fromarray(moved[0].round().to(torch.uint8).permute(1, 2, 0).numpy())


def draw_shifts(side: int, rng: np.random.Generator) -> torch.Tensor:
    """Draw smooth shifts along x and y, [1, 2, side, side] float32, in `grid_sample`'s unit: half the side."""
    knots = torch.from_numpy(rng.normal(0, WARP * 2 / 224, (1, 2, KNOTS, KNOTS))).float()
    weights = _bicubic_weights(side)
    return weights @ knots @ weights.T


@cache
def _bicubic_weights(side: int) -> torch.Tensor:
    """Weights of bicubic interpolation along one axis, [side, KNOTS]: two products take a tenth of the time."""
    return F.interpolate(torch.eye(KNOTS)[None, None], (side, KNOTS), mode="bicubic", align_corners=False)[0, 0]


def _recolour(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Change brightness, contrast, saturation and hue, in random order."""
    for change in rng.permutation(4):
        if change == len(ENHANCERS):
            picture = _turn_hue(picture, int(rng.integers(-128, 128)))
        else:
            picture = ENHANCERS[change](picture).enhance(float(rng.uniform(0.5, 1.5)))
    return picture


def _turn_hue(picture: Image.Image, turn: int) -> Image.Image:
    bands = list(picture.convert("HSV").split())
    bands[0] = bands[0].point([(value + turn) % 256 for value in range(256)])
    return Image.merge("HSV", bands).convert("RGB")


def _blur(picture: Image.Image, sigma: float) -> Image.Image:
    """Blur with a Gaussian of `sigma` pixels on 5 x 5 pixels: with the largest, 2, the cut narrows it to 1.3."""
    blurred = gaussian_filter(np.asarray(picture), sigma, output=np.float32, mode="mirror", radius=2, axes=(0, 1))
    return Image.fromarray(np.rint(blurred).astype(np.uint8))
