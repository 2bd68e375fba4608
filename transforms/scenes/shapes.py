"""Silhouettes of the sample scenes' eighteen nouns, as polygons in the unit square."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Points = NDArray[np.float64]
"""Corners (x, y), [N, 2] float64 in the unit square; y points down."""

Part = tuple[Points, bool]
"""A polygon, and whether it is added to the silhouette (True) or cut out of it (False)."""

OVERSAMPLING = 4
"""Silhouettes are drawn this many times larger and averaged, so coverage has steps of 1/16 of a pixel."""


def _ellipse(cx: float, cy: float, rx: float, ry: float, start: float = 0.0, stop: float = 360.0) -> Points:
    angles = np.radians(np.linspace(start, stop, 49))
    return np.stack([cx + rx * np.cos(angles), cy + ry * np.sin(angles)], axis=1)


def _polygon(*corners: tuple[float, float]) -> Points:
    return np.array(corners, dtype=np.float64)


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> Points:
    return _polygon((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def _star() -> Points:
    angles = np.radians(np.arange(10) * 36 - 90)
    radius = np.where(np.arange(10) % 2 == 0, 0.52, 0.22)
    return np.stack([0.5 + radius * np.cos(angles), 0.53 + radius * np.sin(angles)], axis=1)


def _heart() -> Points:
    t = np.linspace(0, 2 * np.pi, 60)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([0.5 + x / 34, 0.47 + y / 32], axis=1)


def _flower() -> list[Part]:
    angles = np.radians(np.arange(5) * 72 - 90)
    petals = [(_ellipse(0.5 + 0.2 * np.cos(a), 0.3 + 0.2 * np.sin(a), 0.14, 0.14), True) for a in angles]
    stem = [(_rectangle(0.45, 0.4, 0.55, 1.0), True), (_ellipse(0.68, 0.78, 0.16, 0.08), True)]
    return [*petals, (_ellipse(0.5, 0.3, 0.14, 0.14), True), *stem]


def _umbrella() -> list[Part]:
    dome = [(_ellipse(0.5, 0.5, 0.5, 0.45, 180, 360), True)]
    scallops = [(_ellipse(x, 0.5, 0.125, 0.07), False) for x in (0.125, 0.375, 0.625, 0.875)]
    handle = [(_rectangle(0.45, 0.45, 0.55, 0.92), True), (_ellipse(0.4, 0.9, 0.15, 0.1, 0, 180), True)]
    return [*dome, *scallops, *handle]


SHAPES: dict[str, list[Part]] = {
    "ball": [(_ellipse(0.5, 0.5, 0.5, 0.5), True)],
    "box": [(_rectangle(0.06, 0.3, 0.94, 1.0), True), (_rectangle(0.0, 0.08, 1.0, 0.3), True)],
    "star": [(_star(), True)],
    "heart": [(_heart(), True)],
    "moon": [(_ellipse(0.5, 0.5, 0.5, 0.5), True), (_ellipse(0.74, 0.42, 0.4, 0.42), False)],
    "tree": [
        (_polygon((0.5, 0.0), (0.82, 0.38), (0.18, 0.38)), True),
        (_polygon((0.5, 0.2), (0.95, 0.78), (0.05, 0.78)), True),
        (_rectangle(0.4, 0.75, 0.6, 1.0), True),
    ],
    "house": [
        (_polygon((0.5, 0.0), (1.0, 0.45), (0.9, 0.45), (0.9, 1.0), (0.1, 1.0), (0.1, 0.45), (0.0, 0.45)), True),
        (_rectangle(0.72, 0.04, 0.85, 0.35), True),
        (_rectangle(0.41, 0.65, 0.6, 1.0), False),
    ],
    "cup": [
        (_ellipse(0.76, 0.5, 0.24, 0.25), True),
        (_ellipse(0.76, 0.5, 0.12, 0.13), False),
        (_polygon((0.0, 0.1), (0.76, 0.1), (0.66, 0.95), (0.1, 0.95)), True),
    ],
    "fish": [(_ellipse(0.4, 0.5, 0.4, 0.28), True), (_polygon((0.68, 0.5), (1.0, 0.2), (1.0, 0.8)), True)],
    "flower": _flower(),
    "bottle": [
        (_rectangle(0.4, 0.0, 0.6, 0.4), True),
        (_ellipse(0.5, 0.45, 0.24, 0.17), True),
        (_rectangle(0.26, 0.45, 0.74, 1.0), True),
    ],
    "mushroom": [(_ellipse(0.5, 0.5, 0.5, 0.46, 180, 360), True), (_rectangle(0.34, 0.48, 0.66, 0.97), True)],
    "umbrella": _umbrella(),
    "boat": [
        (_polygon((0.0, 0.66), (1.0, 0.66), (0.8, 0.96), (0.2, 0.96)), True),
        (_rectangle(0.44, 0.05, 0.53, 0.7), True),
        (_polygon((0.53, 0.05), (0.95, 0.56), (0.53, 0.56)), True),
    ],
    "ring": [(_ellipse(0.5, 0.5, 0.5, 0.5), True), (_ellipse(0.5, 0.5, 0.28, 0.28), False)],
    "kite": [
        (_polygon((0.5, 0.0), (0.88, 0.32), (0.5, 0.74), (0.12, 0.32)), True),
        (_polygon((0.5, 0.72), (0.7, 0.82), (0.7, 1.0), (0.5, 0.88), (0.3, 1.0), (0.3, 0.82)), True),
    ],
    "hat": [
        (_ellipse(0.5, 0.76, 0.5, 0.16), True),
        (_polygon((0.28, 0.76), (0.33, 0.16), (0.67, 0.16), (0.72, 0.76)), True),
    ],
    "key": [
        (_ellipse(0.25, 0.5, 0.25, 0.25), True),
        (_ellipse(0.25, 0.5, 0.12, 0.12), False),
        (_rectangle(0.45, 0.43, 1.0, 0.57), True),
        (_rectangle(0.72, 0.55, 0.8, 0.74), True),
        (_rectangle(0.9, 0.55, 1.0, 0.8), True),
    ],
}

NOUNS = tuple(SHAPES)


def draw_silhouette(noun: str, size: float, angle: float, mirrored: bool, softness: float) -> NDArray[np.uint8]:
    """Draw one silhouette, cropped to the pixels it touches.

    Args:
        noun: key of `SHAPES`.
        size: side of the unit square in pixels.
        angle: clockwise rotation in degrees.
        mirrored: whether left and right are swapped, before the rotation.
        softness: standard deviation of a Gaussian blur, in pixels.

    Returns:
        Its alpha, [h, w] uint8.
    """
    margin = 2 + int(np.ceil(3 * softness))
    side = int(np.ceil(size * 1.5)) + 2 * margin
    canvas = Image.new("L", (side * OVERSAMPLING, side * OVERSAMPLING))
    draw = ImageDraw.Draw(canvas)
    place = _placement(size, angle, mirrored, side)
    for points, added in SHAPES[noun]:
        draw.polygon([tuple(p) for p in place(points)], fill=255 if added else 0)
    alpha = canvas.reduce(OVERSAMPLING)
    if softness:
        alpha = alpha.filter(ImageFilter.GaussianBlur(softness))
    return np.asarray(alpha.crop(alpha.getbbox()))


def _placement(size: float, angle: float, mirrored: bool, side: int) -> Callable[[Points], Points]:
    turn = np.radians(angle)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    mirror = np.array([-1.0 if mirrored else 1.0, 1.0])

    def place(points: Points) -> Points:
        placed: Points = (((points - 0.5) * mirror) @ rotation.T * size + side / 2) * OVERSAMPLING
        return placed

    return place
