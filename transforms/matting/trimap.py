"""Trimaps: what of a picture is surely the subject (255), surely background (0), or left to matting (128).

BLIP-Diffusion (Li, Li and Hoi 2023, section 4.1) draws them from CLIPSeg's confidences; any mask does as well. Both
leave at least `band` pixels unknown on either side of every edge: a mask is drawn along the outline that hair and
fur reach over, and where CLIPSeg goes from sure to sure in one step, it has overlooked them too.
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
        [H, W] uint8 of 0, 128 and 255. The picture's own border is no edge: a subject that it cuts off stays sure
        there. What is thinner than `2 * band` is unknown throughout; an empty mask gives 0 everywhere, a full one 255.
    """
    return _open_edges(mask, ~mask, band)


def trimap_of_confidence(confidence: NDArray[np.floating], lower: float, upper: float, band: int) -> NDArray[np.uint8]:
    """Take confidences above `upper` for the subject, those below `lower` for background, and open the edges.

    Args:
        confidence: [H, W] in [0, 1].
        lower: below `upper`.
        upper: a confidence equal to either bound is unknown.
        band: at least 1. Where the unknown part is `2 * band` pixels wide or more it stays as it is; elsewhere it
            grows evenly on both sides.

    Returns:
        [H, W] uint8 of 0, 128 and 255, as `trimap_of_mask`.
    """
    return _open_edges(confidence > upper, confidence < lower, band)


def _open_edges(subject: Bools, background: Bools, band: int) -> NDArray[np.uint8]:
    """Set what is near to an edge to unknown.

    The `d`-th pixel of the subject from an edge with `g` unknown pixels has distances `d` to what is not the subject
    and `d + g` to the background. It goes where d <= band - g / 2, rounded up: where their sum is at most 2 band + 1.
    """
    trimap = np.full(subject.shape, UNKNOWN, np.uint8)
    for sure, other, value in ((subject, background, 255), (background, subject, 0)):
        reach = _distance(~sure) + _distance(other)
        trimap[sure & (reach > 2 * band + 1)] = value
    return trimap


def _distance(target: Bools) -> NDArray[np.float64]:
    """Measure how far each pixel is from the nearest one of `target` [H, W], in pixels; infinite where none is."""
    if not target.any():
        return np.full(target.shape, np.inf)
    return np.asarray(ndimage.distance_transform_edt(~target), np.float64)
