"""Exact depth and normals of a sample scene: what its flat picture shows, taken for bodies in an order.

Seen from above, at right angles: the background is a plane that rises towards the lower edge; each object lies above
all that is behind it, a plateau whose edge is a quarter of a circle. The picture itself does not change.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from transforms.scenes.scene import Scene

GROUND = 0.08
"""Height of the background at the lower edge, as a share of the picture's side."""
STEP = 0.1
"""Height of an object's outline above that of the object behind it, likewise; more than `GROUND`."""
EDGE = 0.08
"""Radius of an object's rounded edge, likewise: the height of its plateau above its outline; less than `STEP`."""


def true_relief(scene: Scene) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The height of each pixel above the far plane, and the unit normal there.

    A pixel belongs to the nearest object that covers half of it or more.

    Returns:
        [H, W] float64 in pixels, larger is nearer, and [H, W, 3] float64 with x to the right, y up, z to the viewer.
        Both are closed formulas of the distance to the outline: no derivative is taken.
    """
    size = scene.image.shape[0]
    rise = GROUND * size / (size - 1)
    rows = np.arange(size, dtype=np.float64)[:, None]
    height = np.broadcast_to(rows * rise, (size, size)).copy()
    slope = np.zeros((size, size, 2))
    slope[..., 1] = rise
    for order, thing in enumerate(scene.objects, start=1):
        inside = np.pad(thing.silhouette.alpha >= 0.5, 1)
        distance, nearest = distance_transform_edt(inside, return_indices=True)
        away = (np.indices(inside.shape) - nearest)[::-1].transpose(1, 2, 0) / np.maximum(distance, 1)[..., None]
        bump, steepness = _quarter_circle(distance, EDGE * size)
        window, here = thing.silhouette.window(), inside[1:-1, 1:-1]
        height[window][here] = (order * STEP * size + bump)[1:-1, 1:-1][here]
        slope[window][here] = (away * steepness[..., None])[1:-1, 1:-1][here]
    normals = np.stack([-slope[..., 0], slope[..., 1], np.ones((size, size))], axis=2)
    return height, normals / np.linalg.norm(normals, axis=2, keepdims=True)


def outlines(scene: Scene) -> NDArray[np.bool_]:
    """Pixels on the edge of what is seen of an object: one of their right and lower neighbours is another thing's."""
    owner = np.zeros(scene.image.shape[:2], np.int64)
    for number, thing in enumerate(scene.objects, start=1):
        owner[thing.mask] = number
    edges = np.zeros(owner.shape, bool)
    edges[:, :-1] |= owner[:, :-1] != owner[:, 1:]
    edges[:-1] |= owner[:-1] != owner[1:]
    return edges


def _quarter_circle(distance: NDArray[np.float64], radius: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Height and slope of a rounded edge at a distance from the outline, which runs half a pixel beside the pixels."""
    left = np.clip(1 - np.maximum(distance - 0.5, 0) / radius, 0, 1)
    up = np.sqrt(1 - left**2)
    return radius * up, left / np.maximum(up, 1e-9)
