"""Trimaps: which pixels of a picture are the subject (255), background (0), or unknown and left to matting (128).

BLIP-Diffusion (Li, Li and Hoi 2023, section 4.1) draws them from CLIPSeg's confidences; a mask serves as well. Either
way at least `band` pixels on both sides of every edge are unknown: masks are drawn along an outline that hair and fur
cross, and where CLIPSeg's confidence jumps from low to high it has missed them too.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

UNKNOWN = 128

Bools = NDArray[np.bool_]


def trimap_of_mask(mask: Bools, band: int) -> NDArray[np.uint8]:
    """Leave `band` pixels unknown on either side of a mask's edge.

    Args:
        mask: [H, W] bool.
        band: at least 1.

    Returns:
        [H, W] uint8 of 0, 128 and 255. The border of the picture is no edge: a subject that it cuts off stays 255
        there. Parts thinner than `2 * band` are unknown throughout; an empty mask gives 0 everywhere, a full one 255.
    """
    return _open_edges(mask, ~mask, band)


def trimap_of_heatmap(heatmap: NDArray[np.floating], lower: float, upper: float, band: int) -> NDArray[np.uint8]:
    """Take confidences above `upper` for the subject and those below `lower` for background, with unknown edges.

    Args:
        heatmap: [H, W] confidences in [0, 1].
        lower: below `upper`.
        upper: a confidence equal to either bound is unknown.
        band: at least 1. Where the unknown part is at least `2 * band` pixels wide it stays as it is; elsewhere it
            grows evenly on both sides to that width.

    Returns:
        [H, W] uint8 of 0, 128 and 255, as `trimap_of_mask`.
    """
    return _open_edges(heatmap > upper, heatmap < lower, band)


def _open_edges(subject: Bools, background: Bools, band: int) -> NDArray[np.uint8]:
    """Make pixels near an edge unknown.

    Across an edge with `g` unknown pixels, the `d`-th pixel of the subject is at distance `d` from the nearest pixel
    that is not the subject and `d + g` from the background. It becomes unknown if d <= band - g / 2, rounded up: if the
    sum of the two distances is at most 2 * band + 1.
    """
    trimap = np.full(subject.shape, UNKNOWN, np.uint8)
    for sure, other, value in ((subject, background, 255), (background, subject, 0)):
        reach = _distance(~sure) + _distance(other)
        trimap[sure & (reach > 2 * band + 1)] = value
    return trimap


def _distance(target: Bools) -> NDArray[np.float64]:
    """Distance of each pixel to the nearest one of `target` [H, W] bool, in pixels; infinite if there is none."""
    if not target.any():
        return np.full(target.shape, np.inf)
    return np.asarray(ndimage.distance_transform_edt(~target), np.float64)
