"""Closed-form matting: the alpha of the unknown pixels of a trimap.

Levin, Lischinski and Weiss, "A Closed-Form Solution to Natural Image Matting" (TPAMI 2008). The solver is in
`transforms.matting.laplacian`; it is compiled by numba, which `compile_matting` loads.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float64]


def closed_form_alpha(image: Floats, trimap: NDArray[np.uint8]) -> Floats:
    """Estimate alpha: [H, W] float64 in [0, 1]; 1 and 0 where the trimap is foreground and background.

    In a picture with a side of less than 3 pixels, alpha is that of the nearest known pixel; if no pixel is known,
    it is 0.5 everywhere.

    Args:
        image: [H, W, 3] float64 in [0, 1], sRGB.
        trimap: [H, W] uint8: 0 background, 128 unknown, 255 foreground.

    Raises:
        ValueError: a shape, dtype or value is another.
    """
    _check(image, trimap)
    if (trimap == 128).all():
        return np.full(trimap.shape, 0.5)
    if min(trimap.shape) < 3:
        return _nearest(trimap)
    from transforms.matting.laplacian import solve

    return solve(np.ascontiguousarray(image), trimap)


@cache
def compile_matting() -> None:
    """Compile the functions of this module; a process calls it before it measures how long a matte takes."""
    image = np.tile(np.linspace(0, 1, 8)[:, None], (8, 1, 3))
    trimap = np.repeat(np.array([255, 255, 255, 128, 128, 0, 0, 0], np.uint8)[None], 8, axis=0)
    estimate_foreground(image, closed_form_alpha(image, trimap))


def _check(image: Floats, trimap: NDArray[np.uint8]) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.float64:
        raise ValueError(f"the image must be [H, W, 3] float64, it is {list(image.shape)} {image.dtype}")
    if trimap.shape != image.shape[:2] or trimap.dtype != np.uint8:
        raise ValueError(f"the trimap must be {list(image.shape[:2])} uint8, it is {list(trimap.shape)} {trimap.dtype}")
    if not np.isfinite(image.sum()):
        raise ValueError("the image holds NaN or infinity")
    invalid = np.setdiff1d(np.flatnonzero(np.bincount(trimap.ravel(), minlength=256)), (0, 128, 255))
    if invalid.size:
        raise ValueError(f"the trimap holds {invalid[0]}: its values are 0, 128 and 255")


def _nearest(trimap: NDArray[np.uint8]) -> Floats:
    known = trimap != 128
    where = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    nearest: Floats = (trimap[tuple(where)] == 255).astype(np.float64)
    return nearest


def estimate_foreground(image: Floats, alpha: Floats) -> Floats:
    """Estimate the colours of the foreground alone, without the old background that shines through at its edges.

    Germer et al., "Fast Multi-Level Foreground Estimation" (2020), as PyMatting computes it.

    Args:
        image: [H, W, 3] float64 in [0, 1].
        alpha: [H, W] float64 in [0, 1].

    Returns:
        [H, W, 3] float64 in [0, 1]; where alpha is 0 the colours are those of the nearest foreground.
    """
    from pymatting import estimate_foreground_ml

    foreground: Floats = estimate_foreground_ml(image, alpha)
    return foreground
