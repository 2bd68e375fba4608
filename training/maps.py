"""Condition maps that are drawn from the picture at training time, and stored maps in the form that trainers know.

Pure functions over arrays; what is random comes from `rng`. No library but numpy, SciPy and Pillow is used.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import map_coordinates

INTENSITY_WEIGHTS = np.array(
    [
        (0.299, 0.587, 0.114),
        (0.2126, 0.7152, 0.0722),
        (1 / 3, 1 / 3, 1 / 3),
        (0.5, 0.5, 0.0),
        (0.0, 0.5, 0.5),
        (0.5, 0.0, 0.5),
    ]
)
"""Weights of red, green and blue for Composer's intensity, [N, 3]. Its set is not published: this one is our choice."""

Region = Literal["strokes", "rectangles", "uncrop"]
REGIONS: Mapping[Region, float] = {"strokes": 0.7, "rectangles": 0.2, "uncrop": 0.1}
"""Shapes of masked regions and their probabilities: VideoComposer's."""

DESIGN_SIDE = 512
"""Side of the canvas, in pixels, for which VideoComposer states the sizes of masked regions."""


def spatial_palette(pixels: NDArray[np.uint8], cell: int = 64) -> NDArray[np.uint8]:
    """Coarse colours, as T2I-Adapter's colour adapter takes them: bicubic down by `cell`, nearest up.

    Args:
        pixels: [H, W, 3] uint8.
        cell: side of a patch of one colour, in pixels.
    """
    height, width = pixels.shape[:2]
    small = Image.fromarray(pixels).resize((max(1, width // cell), max(1, height // cell)), Image.Resampling.BICUBIC)
    return np.asarray(small.resize((width, height), Image.Resampling.NEAREST))


def intensity(pixels: NDArray[np.uint8], weights: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Grey values of [H, W, 3] uint8 for weights [3] of red, green and blue that add up to 1: [H, W] uint8."""
    return np.rint(pixels @ weights).clip(0, 255).astype(np.uint8)


def shuffle_content(pixels: NDArray[np.uint8], rng: np.random.Generator, scale: int = 256) -> NDArray[np.uint8]:
    """Move the content of a picture by a smooth random field, as ControlNet's shuffle does: style without layout.

    Args:
        pixels: [H, W, 3] uint8.
        rng: draws the field.
        scale: distance of its independent values, in pixels of a picture whose shorter side has 512.
    """
    height, width = pixels.shape[:2]
    step = scale * min(height, width) / DESIGN_SIDE
    knots = round(height / step) + 1, round(width / step) + 1
    places = []
    for extent in (height, width):
        coarse = Image.fromarray(rng.random(knots).astype(np.float32))
        field = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64)
        spread = max(float(np.ptp(field)), 1e-9)
        places.append((field - field.min()) / spread * (extent - 1))
    moved = [map_coordinates(pixels[..., channel], places, order=1) for channel in range(3)]
    return np.stack(moved, axis=2).astype(np.uint8)


def tile(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Take the detail from a picture: its mean over squares of `factor` x `factor` pixels, enlarged bilinearly."""
    height, width = pixels.shape[:2]
    small = Image.fromarray(pixels).resize((max(1, width // factor), max(1, height // factor)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))


def draw_region(
    rng: np.random.Generator, height: int, width: int, shapes: Mapping[Region, float] = REGIONS
) -> NDArray[np.bool_]:
    """Draw the region of a picture that is masked, [height, width] bool: True is to be filled in.

    Strokes are 1 to 5 paths of up to 5 segments, each 10 to 210 pixels long, with a width of 5 to 105 pixels;
    rectangles are 1 to 4 with sides of 30 to 150 pixels, 10 pixels from the border at least; uncrop masks one half.
    The pixels are those of a canvas of 512 x 512, and are scaled to the picture.

    Args:
        rng: draws shape and place.
        height: of the picture, in pixels.
        width: of the picture, in pixels.
        shapes: the probability of each shape; they add up to 1.
    """
    canvas = Image.new("1", (width, height))
    pen = ImageDraw.Draw(canvas)
    shape = rng.choice(list(shapes), p=list(shapes.values()))
    scale = min(height, width) / DESIGN_SIDE
    if shape == "strokes":
        for _ in range(int(rng.integers(1, 6))):
            _stroke(pen, rng, height, width, scale)
    elif shape == "rectangles":
        margin = 10 * scale
        for _ in range(int(rng.integers(1, 5))):
            w, h = rng.uniform(30, 150, 2) * scale
            x, y = (
                rng.uniform(margin, max(margin, width - margin - w)),
                rng.uniform(margin, max(margin, height - margin - h)),
            )
            pen.rectangle((x, y, x + w, y + h), fill=1)
    else:
        side = int(rng.integers(4))
        boxes = (
            (0, 0, width // 2 - 1, height),
            (width // 2, 0, width, height),
            (0, 0, width, height // 2 - 1),
            (0, height // 2, width, height),
        )
        pen.rectangle(boxes[side], fill=1)
    return np.asarray(canvas, bool)


def _stroke(pen: ImageDraw.ImageDraw, rng: np.random.Generator, height: int, width: int, scale: float) -> None:
    x, y = float(rng.uniform(0, width)), float(rng.uniform(0, height))
    for _ in range(int(rng.integers(1, 6))):
        turn, length, brush = rng.uniform(0, 2 * np.pi), rng.uniform(10, 210) * scale, rng.uniform(5, 105) * scale
        end_x = float(np.clip(x + length * np.sin(turn), 0, width))
        end_y = float(np.clip(y + length * np.cos(turn), 0, height))
        pen.line((x, y, end_x, end_y), fill=1, width=max(1, round(brush)))
        for cx, cy in ((x, y), (end_x, end_y)):
            pen.ellipse((cx - brush / 2, cy - brush / 2, cx + brush / 2, cy + brush / 2), fill=1)
        x, y = end_x, end_y


def controlnet_normal(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn a stored normal map into the one that ControlNet was trained with, [H, W, 3] uint8.

    There, x and y are the slopes of nearness to the right and downwards (annotator/midas), so that x points the other
    way and y as here; the channels are reversed before training, to z, y, x.
    """
    x, y, z = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    return np.stack([z, y, 255 - x], axis=2)
