"""Composer's colours: a smoothed histogram over a fixed palette, in CIELab.

The palette is that of sergeyk/rayleigh, in the shape that Composer (Huang et al. 2023, section 3.1) states: 11 hues, 5
saturations, 5 lights, and greys.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from skimage.color import hsv2rgb, rgb2lab

HUES = (0, 0.0833, 0.166, 0.25, 0.333, 0.5, 0.56333, 0.666, 0.73, 0.803, 0.916)
SIDE = 256
"""Longest side of the picture whose colours are counted, in pixels."""


@cache
def palette_colors(saturations: int = 5, lights: int = 5) -> NDArray[np.float64]:
    """The palette's colours in RGB, [N, 3] float64 in [0, 1]: 12 (saturations + 2 lights) of them.

    Each hue has colours of full light and growing saturation, the pure colour, colours of growing darkness, and pale
    ones of growing darkness; greys follow.
    """
    count = saturations + 2 * lights
    saturation = [
        *np.linspace(0, 1, saturations + 2)[1:-1],
        1,
        *np.ones(lights),
        *(np.ones(lights - 1) * 0.4),
    ]
    darker = np.linspace(1, 0.2, lights + 2)[1:-1]
    light = [*np.ones(saturations), 1, *darker, *darker[:-1]]
    rows = [np.stack([np.full(count, hue), saturation, light], axis=1) for hue in HUES]
    colored: NDArray[np.float64] = hsv2rgb(np.concatenate(rows)[None])[0]
    greys = np.repeat(np.linspace(1, 0, count)[:, None], 3, axis=1)
    return np.concatenate([colored, greys])


def color_histogram(
    pixels: NDArray[np.uint8], sigma: float = 10.0, saturations: int = 5, lights: int = 5
) -> NDArray[np.float32]:
    """The share of each of the palette's colours in a picture: [N] float32, adding up to 1.

    Each pixel counts for the nearest colour in CIELab; then each colour's share becomes the mean of those near it,
    under a Gaussian of `sigma`. Shares below 1e-5 become 0. These means do not add up to 1 (rayleigh's
    `smooth_histogram` leaves them so), and are divided by their sum.

    Args:
        pixels: [H, W, 3] uint8.
        sigma: in units of CIELab; 0 for no smoothing.
        saturations: see `palette_colors`.
        lights: see `palette_colors`.
    """
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    lab = rgb2lab(np.asarray(picture)).reshape(-1, 3)
    tree, spread = _tree(saturations, lights), _spread(sigma, saturations, lights)
    shares = np.bincount(tree.query(lab)[1], minlength=len(spread)) / len(lab)
    smooth = spread @ shares
    smooth[smooth < 1e-5] = 0
    return (smooth / smooth.sum()).astype(np.float32)


@cache
def _lab(saturations: int, lights: int) -> NDArray[np.float64]:
    colors: NDArray[np.float64] = rgb2lab(palette_colors(saturations, lights)[None])[0]
    return colors


@cache
def _tree(saturations: int, lights: int) -> cKDTree:
    return cKDTree(_lab(saturations, lights))


@cache
def _spread(sigma: float, saturations: int, lights: int) -> NDArray[np.float64]:
    """The weight of each colour's count in the mean of each, [N, N]; rows add up to 1."""
    colors = _lab(saturations, lights)
    if not sigma:
        return np.eye(len(colors))
    weights = np.exp(-(cdist(colors, colors) ** 2) / (2 * sigma**2))
    normalised: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return normalised
