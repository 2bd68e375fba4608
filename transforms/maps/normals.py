"""Surface normals from depth: unit vectors with x to the right, y up and z to the viewer."""

import cv2
import numpy as np
from numpy.typing import NDArray


def relief_normals(height: NDArray[np.floating]) -> NDArray[np.float32]:
    """Normals of a surface seen from above, at right angles to the picture: [H, W, 3] float32.

    n is proportional to (-dh/dx, dh/dy, 1) with y down in the picture, by Sobel 3 x 3. ControlNet's normal maps are
    made this way from MiDaS' depth, with other signs (`training.maps.controlnet_normal`).

    Args:
        height: nearness to the viewer, [H, W], in pixels.
    """
    dx, dy = _slopes(height)
    return _unit(-dx, dy, np.ones_like(dx))


def camera_normals(
    inverse: NDArray[np.floating], focal: float, center: tuple[float, float] | None = None
) -> NDArray[np.float32]:
    """Normals of what a pinhole camera sees, from 1 / distance along its axis: [H, W, 3] float32.

    On a plane n . P = d, with P = Z (u, v, 1) and (u, v) = (pixel - center) / focal, the inverse distance 1 / Z is
    (n_x u + n_y v + n_z) / d: linear in the picture. So its slopes give n without error, whatever the unit.

    Args:
        inverse: 1 / distance, [H, W]; larger is nearer. NaN where it is not known; a normal that depends on such a
            pixel is NaN.
        focal: focal length in pixels.
        center: (x, y) of the principal point in pixels; None: the picture's middle.
    """
    height, width = inverse.shape
    cx, cy = center or ((width - 1) / 2, (height - 1) / 2)
    dx, dy = _slopes(inverse)
    toward = inverse - (np.arange(width) - cx) * dx - (np.arange(height)[:, None] - cy) * dy
    return _unit(-focal * dx, focal * dy, toward)


def _slopes(values: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The derivatives to the right and downwards, per pixel."""
    # Goes on beyond the picture as it ends, so that planes keep their slope there.
    mode, how = ("reflect", {"reflect_type": "odd"}) if min(values.shape) > 1 else ("edge", {})
    wide = np.pad(np.asarray(values, np.float64), 1, mode, **how)  # type: ignore[call-overload]
    dx, dy = (cv2.Sobel(wide, cv2.CV_64F, right, 1 - right, scale=1 / 8)[1:-1, 1:-1] for right in (1, 0))
    return np.asarray(dx), np.asarray(dy)


def _unit(x: NDArray[np.float64], y: NDArray[np.float64], z: NDArray[np.float64]) -> NDArray[np.float32]:
    vectors = np.stack([x, y, z], axis=2)
    lengths = np.linalg.norm(vectors, axis=2, keepdims=True)
    return (vectors / np.maximum(lengths, np.finfo(np.float64).tiny)).astype(np.float32)
