"""Stand-in until the module of the data half is merged."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

INTENSITY_WEIGHTS = np.array([[0.299, 0.587, 0.114], [1 / 3, 1 / 3, 1 / 3]])


def spatial_palette(pixels: NDArray[np.uint8], cell: int = 64) -> NDArray[np.uint8]:
    h, w = pixels.shape[:2]
    small = Image.fromarray(pixels).resize((max(1, w // cell), max(1, h // cell)), Image.Resampling.BICUBIC)
    return np.asarray(small.resize((w, h), Image.Resampling.NEAREST))


def intensity(pixels: NDArray[np.uint8], weights: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.rint(pixels @ weights).clip(0, 255).astype(np.uint8)


def draw_region(rng: np.random.Generator, height: int, width: int) -> NDArray[np.bool_]:
    region = np.zeros((height, width), bool)
    region[: int(rng.integers(1, height))] = True
    return region
