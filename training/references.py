"""A subject's reference: its crop out of the picture, the background noise, disturbed so that it is no copy.

What is disturbed, how often and how much is FastComposer's (fastcomposer/transforms.py). Turning, mirroring and
warping are one resampling here, not three: a third of the time, and the crop stays sharper.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from training.geometry import reduction

WARP, KNOTS = 1.0, 18
"""The elastic warp: spread of the shifts in pixels of 224, and on how many rows and columns of knots they are drawn.

Between the knots they are as large and as smooth as those of torchvision's ElasticTransform (white noise of alpha 50,
blurred with sigma 5), for a hundredth of its time.
"""
WHITE = 255


def cut_out(
    pixels: NDArray[np.uint8], mask: NDArray[np.bool_], bbox: tuple[int, int, int, int], rng: np.random.Generator | None
) -> NDArray[np.uint8]:
    """Cut a subject out of its picture, noise or white around it: [h, w, 3] uint8.

    Args:
        pixels: the picture, whole or reduced, [h', w', 3] uint8.
        mask: the subject, [H, W] bool, at full size.
        bbox: [x, y, w, h] in pixels of the mask.
        rng: draws the noise, uniform over all bytes; without it all around is white.
    """
    x, y, width, height = bbox
    scale = reduction(mask.shape[0], pixels.shape[0])
    rows, columns = _cover(y, height, scale), _cover(x, width, scale)
    crop = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    inside = mask[_middle(rows, scale, mask.shape[0])[:, None], _middle(columns, scale, mask.shape[1])][..., None]
    return np.where(inside, crop, np.uint8(WHITE) if rng is None else rng.integers(0, 256, crop.shape, np.uint8))


def _cover(start: int, length: int, scale: int) -> NDArray[np.intp]:
    """Number the reduced pixels that show the pixels [start, start + length)."""
    return np.arange(start // scale, -(-(start + length) // scale))


def _middle(reduced: NDArray[np.intp], scale: int, length: int) -> NDArray[np.intp]:
    """Find the pixel in the middle of each reduced one; the last may lie beyond `length`."""
    return np.minimum(reduced * scale + scale // 2, length - 1)


def to_square(crop: NDArray[np.uint8], side: int, grey: int = 0) -> Image.Image:
    """Scale a crop into the middle of a square of `side` pixels, of one `grey` from black, 0, to `WHITE`."""
    height, width = crop.shape[:2]
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    square = Image.new("RGB", (side, side), (grey, grey, grey))
    square.paste(
        Image.fromarray(crop).resize(size, Image.Resampling.BILINEAR), ((side - size[0]) // 2, (side - size[1]) // 2)
    )
    return square


def disturb(crop: NDArray[np.uint8], side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Turn a crop into a reference of `side` x `side` pixels that is no copy of it: [side, side, 3] uint8.

    With probability 0.5 nearer by up to 2 (the lower part cut off), 0.75 turned by up to 30 degrees, 0.5 mirrored,
    0.5 warped, 0.5 in other colours, 0.5 blurred, 0.1 grey.
    """
    if rng.random() < 0.5:
        nearer = rng.uniform(1, 2)
        height, width = (max(1, round(length / nearer)) for length in crop.shape[:2])
        left = (crop.shape[1] - width) // 2
        crop = crop[:height, left : left + width]
    reference = _move(to_square(crop, side), rng)
    if rng.random() < 0.5:
        reference = _recolour(reference, rng)
    if rng.random() < 0.5:
        reference = reference.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2)))
    if rng.random() < 0.1:
        reference = reference.convert("L").convert("RGB")
    return np.asarray(reference)


def _move(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    turned, mirrored, warped = rng.random(3) < (0.75, 0.5, 0.5)
    if mirrored:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    angle = rng.uniform(-30, 30) if turned else 0.0
    if not warped:
        return picture.rotate(angle, Image.Resampling.BILINEAR) if turned else picture
    side = picture.width
    turn = torch.tensor(np.deg2rad(angle))
    cos, sin = turn.cos(), turn.sin()
    matrix = torch.stack([torch.stack([cos, sin, cos * 0]), torch.stack([-sin, cos, cos * 0])]).float()
    grid = F.affine_grid(matrix[None], [1, 3, side, side], align_corners=False)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
    moved = F.grid_sample(
        pixels, grid + draw_shifts(side, rng).permute(0, 2, 3, 1), mode="bilinear", align_corners=False
    )
    return Image.fromarray(moved[0].round().to(torch.uint8).permute(1, 2, 0).numpy())


def draw_shifts(side: int, rng: np.random.Generator) -> torch.Tensor:
    """Draw smooth shifts along x and y, [1, 2, side, side] float32, where 2 is the picture's side."""
    knots = torch.from_numpy(rng.normal(0, WARP * 2 / 224, (1, 2, KNOTS, KNOTS))).float()
    return F.interpolate(knots, (side, side), mode="bicubic", align_corners=False)


def _recolour(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    brightness, contrast, saturation = rng.uniform(0.5, 1.5, 3)
    hue = int(rng.integers(-128, 128))
    for change, amount in (
        (ImageEnhance.Brightness, brightness),
        (ImageEnhance.Contrast, contrast),
        (ImageEnhance.Color, saturation),
    ):
        picture = change(picture).enhance(float(amount))
    bands = list(picture.convert("HSV").split())
    bands[0] = bands[0].point([(value + hue) % 256 for value in range(256)])
    return Image.merge("HSV", bands).convert("RGB")
