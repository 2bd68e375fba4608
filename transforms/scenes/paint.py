"""Colours, textures and backgrounds of the sample scenes."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 38),
    "orange": (245, 135, 18),
    "yellow": (250, 219, 30),
    "green": (30, 150, 50),
    "blue": (32, 84, 214),
    "purple": (128, 40, 170),
    "pink": (250, 130, 190),
    "white": (250, 250, 250),
    "black": (22, 22, 26),
    "brown": (112, 62, 22),
}

TEXTURES = ("plain", "striped", "dotted", "checkered")


def paint_texture(rng: np.random.Generator, height: int, width: int, color: str, texture: str) -> NDArray[np.float32]:
    """Paint a patch of one colour and texture, [height, width, 3] float32 in [0, 255].

    The second tone of a texture is a lighter shade of the colour, for light colours a darker one. Brightness falls from
    the upper left to the lower right.
    """
    base = np.array(COLORS[color], dtype=np.float32) + rng.uniform(-8, 8, 3).astype(np.float32)
    light = base.mean() > 170
    second = base * 0.62 if light else base + (255 - base) * 0.5
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    weight = _pattern(rng, xs, ys, texture)[..., None]
    shade = 1.1 - 0.22 * (xs / max(width, 1) + ys / max(height, 1))[..., None] / 2
    return np.clip((base * (1 - weight) + second * weight) * shade, 0, 255)


def _pattern(
    rng: np.random.Generator, xs: NDArray[np.float32], ys: NDArray[np.float32], texture: str
) -> NDArray[np.float32]:
    period = float(max(xs.shape)) / rng.uniform(5, 7)
    turn = rng.uniform(0, np.pi)
    u = (xs * np.cos(turn) + ys * np.sin(turn)) / period
    v = (ys * np.cos(turn) - xs * np.sin(turn)) / period
    if texture == "striped":
        pattern = (u % 1) < 0.5
    elif texture == "checkered":
        pattern = ((u % 1) < 0.5) ^ ((v % 1) < 0.5)
    elif texture == "dotted":
        pattern = ((u % 1) - 0.5) ** 2 + ((v % 1) - 0.5) ** 2 < 0.09
    else:
        pattern = np.zeros_like(xs, dtype=bool)
    return pattern.astype(np.float32)


def paint_background(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """Paint a textured background of muted colours, [height, width, 3] float32 in [0, 255]."""
    ground = rng.uniform(95, 190) + rng.uniform(-22, 22, 3)
    relief = _clouds(rng, height, width, int(rng.integers(2, 7))) * rng.uniform(10, 30)
    grain = _clouds(rng, height, width, int(rng.integers(24, 64))) * rng.uniform(2, 10)
    kind = rng.integers(4)
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    if kind == 0:  # boards
        relief += ((ys // (height / rng.uniform(4, 9))) % 2) * rng.uniform(6, 14)
    elif kind == 1:  # tiles
        side = width / rng.uniform(4, 9)
        relief -= (((xs % side) < 2) | ((ys % side) < 2)) * rng.uniform(8, 18)
    elif kind == 2:  # a vertical gradient
        relief += (ys / height - 0.5) * rng.uniform(-60, 60)
    tint = rng.uniform(-12, 12, 3) * _clouds(rng, height, width, 3)[..., None]
    return np.clip(ground + tint + (relief + grain)[..., None], 0, 255).astype(np.float32)


def _clouds(rng: np.random.Generator, height: int, width: int, cells: int) -> NDArray[np.float32]:
    """Smooth noise, interpolated from `cells` x `cells` random values: [height, width] float32 in about [-1, 1]."""
    knots = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.array(knots.resize((width, height), Image.Resampling.BICUBIC))
