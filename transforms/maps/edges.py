"""Maps of edges and lines that need no weights: canny, sketch, scribble, lines. OpenCV does the filtering.

All of them are white on black, and soft: thresholds are drawn at training time.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 512
"""Shorter side of a picture, in pixels, for which widths are stated; they grow with the picture."""


def canny_gradient(pixels: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """The gradient where it is largest across an edge, 0 elsewhere: [H, W] uint16, up to 2,040.

    It is what `cv2.Canny` finds before its thresholds: |dx| + |dy| of Sobel 3 x 3, in each pixel of the channel where
    that is largest, thinned to local maxima (Canny 1986). `schemas.maps.canny_edges` applies the thresholds.

    Args:
        pixels: [H, W, 3] uint8.
    """
    dx, dy = (
        cv2.Sobel(pixels, cv2.CV_16S, horizontal, 1 - horizontal, borderType=cv2.BORDER_REPLICATE).astype(np.int32)
        for horizontal in (1, 0)
    )
    gradient = np.abs(dx) + np.abs(dy)
    channel = gradient.argmax(axis=2)[..., None]
    strongest_dx, strongest_dy = (
        np.ascontiguousarray(np.take_along_axis(d, channel, 2)[..., 0], np.int16) for d in (dx, dy)
    )
    # With both thresholds 0, every local maximum is an edge.
    is_maximum = np.asarray(cv2.Canny(strongest_dx, strongest_dy, 0, 0)) > 0
    return np.where(is_maximum, gradient.max(axis=2), 0).astype(np.uint16)


def xdog_sketch(
    pixels: NDArray[np.uint8], sigma: float = 1.0, ratio: float = 1.6, tau: float = 0.99, phi: float = 40.0
) -> NDArray[np.float32]:
    """Strength of the lines that a pen would draw: [H, W] float32 in [0, 1].

    Extended differences of Gaussians (Winnemoeller, Kyprianidis and Olsen 2012, equations 1 and 5):
    D = G(sigma) - tau G(ratio sigma); the strength is tanh(-phi D) where D is negative, on the dark side of an edge,
    and 0 elsewhere. Of the three channels, the strongest counts.

    Args:
        pixels: [H, W, 3] uint8.
        sigma: of the inner Gaussian, in pixels of a picture whose shorter side has `SIDE`.
        ratio: of the outer Gaussian's width to the inner one's.
        tau: weight of the outer Gaussian; below 1, flat areas have no lines.
        phi: slope of the soft threshold; values are in [0, 1].
    """
    width = sigma * max(min(pixels.shape[:2]) / SIDE, 0.5)
    values = pixels.astype(np.float32) / 255
    inner, outer = (
        cv2.GaussianBlur(values, (0, 0), scale * width, borderType=cv2.BORDER_REPLICATE) for scale in (1, ratio)
    )
    strength: NDArray[np.float32] = np.tanh(-phi * np.minimum(inner - tau * outer, 0)).max(axis=2)
    return strength


def scribble(strength: NDArray[np.float32], sigma: float = 3.0, radius: float = 6.0) -> NDArray[np.float32]:
    """Thick strokes along the ridges of a sketch or of soft edges: [H, W] float32 in [0, 1].

    ControlNet's fake scribbles (its scribble annotator) before their threshold: the map is blurred, thinned to what is
    a maximum in one of four directions, and widened; a stroke keeps the strength of its ridge, as a share of the
    picture's strongest one.

    Args:
        strength: [H, W] float32 in [0, 1].
        sigma: of the blur, in pixels of a picture whose shorter side has `SIDE`.
        radius: half the width of a stroke, in the same pixels.
    """
    scale = min(strength.shape) / SIDE
    smooth = cv2.GaussianBlur(strength, (0, 0), max(sigma * scale, 0.5), borderType=cv2.BORDER_REPLICATE)
    largest = float(smooth.max())
    if largest <= 0:
        return np.zeros_like(strength)
    line, diagonal = np.zeros((3, 3), np.uint8), np.eye(3, dtype=np.uint8)
    line[1] = 1
    directions = [line, np.ascontiguousarray(line.T), diagonal, np.ascontiguousarray(diagonal[::-1])]
    # In ControlNet's, a flat direction counts too, so that all of a straight line's blur is a ridge.
    is_ridge = np.any([(cv2.dilate(smooth, k) == smooth) & (cv2.erode(smooth, k) < smooth) for k in directions], axis=0)
    ridges = np.where(is_ridge, smooth / largest, 0).astype(np.float32)
    reach = max(1, round(radius * scale))
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    return np.asarray(cv2.dilate(ridges, brush), np.float32)


def straight_lines(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Length of the straight line through each pixel, as a share of the picture's diagonal: [H, W] float32 in [0, 1].

    Segments are those of OpenCV's line segment detector (von Gioi et al. 2012, "LSD"), drawn one pixel wide; where
    several meet, the longest counts.

    Args:
        pixels: [H, W, 3] uint8.
    """
    height, width = pixels.shape[:2]
    lengths = np.zeros((height, width), np.float32)
    if min(height, width) < 8:  # the detector scales pictures down, and fails on what is left of such ones
        return lengths
    found: Any = cv2.createLineSegmentDetector().detect(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))[0]
    if found is None:  # there is no segment
        return lengths
    segments = np.reshape(found, (-1, 4))
    sizes = np.hypot(segments[:, 2] - segments[:, 0], segments[:, 3] - segments[:, 1]) / np.hypot(height, width)
    for index in np.argsort(sizes, kind="stable"):
        x0, y0, x1, y1 = (round(float(corner)) for corner in segments[index])
        cv2.line(lengths, (x0, y0), (x1, y1), float(min(sizes[index], 1)))
    return lengths
