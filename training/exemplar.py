"""Paint by Example's masks, windows and augmented references: everything random about its samples.

Yang et al., "Paint by Example" (2023), section 3.2, and the published loader: a model that is shown the very pixels
that it shall draw learns to copy them. The reference is therefore turned, blurred and distorted, and the hole that it
is drawn into has other shapes than its box.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from schemas.boxes import BBox, Corners, from_corners, to_corners

CURVE = np.arange(1, 19) * 0.05
"""Places on each of the four curves of a mask, 0.05 to 0.90."""
SHAKE = 5
"""Most that a point of a curve is moved along x and y, in pixels."""
PUBLISHED_SIDE = 224
"""Side of the published references; lengths of the augmentations are given for it."""
JITTER, SIGMA = 50.0, 50.0
"""Of the elastic distortion: most that its three points move, and the width of its smooth shifts, in pixels."""
TURN = 20.0
"""Largest rotation, in degrees."""
KERNELS = (3, 5, 7)
"""Sides of the blur, in pixels."""


def extend(box: BBox, width: int, height: int, share: float, rng: np.random.Generator) -> BBox:
    """Move each side of a box out by up to `share` of the space to the picture's border, in whole pixels."""
    left, top, right, bottom = to_corners(box)
    spaces = (left, top, width - right, height - bottom)
    moves = [int(rng.integers(0, int(share * space), endpoint=True)) for space in spaces]
    return from_corners((left - moves[0], top - moves[1], right + moves[2], bottom + moves[3]))


def draw_hole(box: BBox, extended: BBox, width: int, height: int, rng: np.random.Generator | None) -> NDArray[np.uint8]:
    """Draw what is kept of a picture: [height, width] uint8, 0 in the hole and 255 around it.

    Args:
        box: of the object.
        extended: the box that the hole may reach.
        width: of the picture.
        height: of the picture.
        rng: draws a hole of four curves around the box; None for the extended box itself.
    """
    canvas = Image.new("L", (width, height), 255)
    draw = ImageDraw.Draw(canvas)
    if rng is None:
        left, top, right, bottom = to_corners(extended)
        draw.rectangle((left, top, right - 1, bottom - 1), fill=0)
    else:
        draw.polygon([tuple(point) for point in hole_points(box, extended, rng)], fill=0)
    return np.asarray(canvas)


def hole_points(box: BBox, extended: BBox, rng: np.random.Generator) -> NDArray[np.float64]:
    """Corners of a hole, [72, 2] (x, y): points of a quadratic Bezier curve along each side of a box, shaken.

    A curve begins and ends in corners of the box; its control point is the middle of the extended box's side, of which
    it reaches half.
    """
    left, top, right, bottom = to_corners(box)
    outer = to_corners(extended)
    x, y = (left + right) / 2, (top + bottom) / 2
    curves = [
        ((left, top), (x, outer[1]), (right, top)),
        ((right, top), (outer[2], y), (right, bottom)),
        ((right, bottom), (x, outer[3]), (left, bottom)),
        ((left, bottom), (outer[0], y), (left, top)),
    ]
    points = np.concatenate([bezier(*curve) for curve in curves])
    return points + rng.integers(-SHAKE, SHAKE, points.shape, endpoint=True)


def bezier(first: tuple[float, float], control: tuple[float, float], last: tuple[float, float]) -> NDArray[np.float64]:
    """Points of a quadratic Bezier curve at `CURVE`, [18, 2]."""
    t = CURVE[:, None]
    return (1 - t) ** 2 * np.array(first) + 2 * t * (1 - t) * np.array(control) + t**2 * np.array(last)


def choose_window(extended: BBox, width: int, height: int, shrink: float, rng: np.random.Generator | None) -> Corners:
    """The part of a picture that a sample shows: a square that holds the extended box, or the whole picture.

    The square has the picture's shorter side, lies at random, and is made smaller on all sides by up to `shrink` of the
    space around the box. Where it could lie at one place at most, the whole picture is shown, squashed to a square: if
    the box is too long, or touches an end of the picture's longer side.

    Args:
        extended: the box.
        width: of the picture.
        height: of the picture.
        shrink: a share, in [0, 1].
        rng: None for the square nearest to the picture's middle, of full size.
    """
    side = min(width, height)
    left, top, right, bottom = to_corners(extended)
    along = (width, left, right) if width > height else (height, top, bottom)
    low, high = max(0, along[2] - side), min(along[0] - side, along[1])
    if width == height or low >= high:
        return 0, 0, width, height
    middle = min(max((along[0] - side) // 2, low), high)
    start = middle if rng is None else int(rng.integers(low, high, endpoint=True))
    x, y = (start, 0) if width > height else (0, start)
    space = min(left - x, top - y, x + side - right, y + side - bottom)
    less = 0 if rng is None else int(rng.integers(0, int(shrink * space), endpoint=True))
    return x + less, y + less, x + side - less, y + side - less


def pad(box: BBox, width: int, height: int, pixels: int) -> Corners:
    """Corners of a box that is larger by some pixels on each side, within the picture."""
    left, top, right, bottom = to_corners(box)
    return max(left - pixels, 0), max(top - pixels, 0), min(right + pixels, width), min(bottom + pixels, height)


def augment(reference: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Mirror, turn, blur and distort a reference [r, r, 3] uint8, as albumentations 0.4.3 does.

    Probabilities: mirrored 0.5, turned by up to 20 degrees 0.5, blurred 0.3, distorted 0.3. What lies outside is
    filled by reflection, without repeating the border.
    """
    mirrored, turned, blurred, distorted = rng.random(4) < (0.5, 0.5, 0.3, 0.3)
    if mirrored:
        reference = reference[:, ::-1]
    if turned:
        reference = warp(reference, rotation(reference.shape[0], rng.uniform(-TURN, TURN)))
    if blurred:
        size = int(rng.choice(KERNELS))
        reference = ndimage.uniform_filter(reference, (size, size, 1), mode="mirror")
    if distorted:
        side = reference.shape[0]
        reference = warp(reference, jittered_affine(side, rng), smooth_shifts(side, rng))
    return np.ascontiguousarray(reference)


def rotation(side: int, degrees: float) -> NDArray[np.float64]:
    """The map [2, 3] from a point (x, y) of a square to where it is after turning about the middle."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    middle = (side - 1) / 2
    turn = np.array([[cos, sin], [-sin, cos]])
    return np.column_stack([turn, np.full(2, middle) - turn @ np.full(2, middle)])


def jittered_affine(side: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """The affine map [2, 3] that moves three points of a square by up to `JITTER` each, along x and y.

    The points are (c + s, c + s), (c + s, c - s) and (c - s, c - s) with c half the side and s a third of it.
    """
    c, s = side / 2, side // 3
    points = np.array([[c + s, c + s], [c + s, c - s], [c - s, c - s]])
    moved = points + rng.uniform(-1, 1, points.shape) * (JITTER * side / PUBLISHED_SIDE)
    return affine_between(points, moved)


def affine_between(points: NDArray[np.float64], moved: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine map [2, 3] that takes three points [3, 2] to others."""
    return np.asarray(np.linalg.solve(np.column_stack([points, np.ones(3)]), moved).T, np.float64)


def smooth_shifts(side: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Shifts along y and x, [2, side, side]: uniform in [-1, 1], then smoothed so much that little is left."""
    sigma = SIGMA * side / PUBLISHED_SIDE
    return np.stack([ndimage.gaussian_filter(rng.uniform(-1, 1, (side, side)), sigma) for _ in range(2)])


def warp(
    picture: NDArray[np.uint8], affine: NDArray[np.float64], shifts: NDArray[np.float64] | None = None
) -> NDArray[np.uint8]:
    """Move a picture [h, w, 3] uint8 by an affine map of its points [2, 3], with linear interpolation.

    `shifts` [2, h, w] along y and x are added to where each pixel is read.
    """
    inverse = np.linalg.inv(np.vstack([affine, [0, 0, 1]]))[:2]
    rows, columns = np.indices(picture.shape[:2], dtype=np.float64)
    if shifts is not None:
        rows, columns = rows + shifts[0], columns + shifts[1]
    x = inverse[0, 0] * columns + inverse[0, 1] * rows + inverse[0, 2]
    y = inverse[1, 0] * columns + inverse[1, 1] * rows + inverse[1, 2]
    bands = [ndimage.map_coordinates(picture[..., i], [y, x], np.float32, 1, mode="mirror") for i in range(3)]
    return np.rint(np.stack(bands, axis=-1)).astype(np.uint8)


def choose_box(boxes: Sequence[BBox], rng: np.random.Generator | None) -> BBox:
    """One of the boxes at random, or, without `rng`, the largest."""
    return max(boxes, key=lambda box: box[2] * box[3]) if rng is None else boxes[int(rng.integers(len(boxes)))]
