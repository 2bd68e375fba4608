"""Normals from depth, on planes and spheres whose normals are known."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from jobs.scenes import scene_of
from transforms.maps.normals import camera_normals, relief_normals
from transforms.scenes.relief import outlines, true_relief


def test_a_plane_that_rises_to_the_right_looks_to_the_left() -> None:
    height = np.arange(8.0)[None, :] * np.ones((6, 1))  # one pixel up for one to the right
    assert relief_normals(height) == pytest.approx(np.broadcast_to(np.array([-1, 0, 1]) / np.sqrt(2), (6, 8, 3)))


def test_a_floor_looks_up() -> None:
    height = np.arange(6.0)[:, None] * np.ones((1, 8))  # nearer towards the lower edge
    assert relief_normals(height) == pytest.approx(np.broadcast_to(np.array([0, 1, 1]) / np.sqrt(2), (6, 8, 3)))


def test_the_normals_of_a_camera_s_plane_are_exact_everywhere() -> None:
    focal, center = 50.0, (12.0, 7.0)
    normal = np.array([0.3, 0.5, 0.8])
    normal /= np.linalg.norm(normal)
    rows, columns = np.mgrid[0:20, 0:30].astype(float)
    u, v = (columns - center[0]) / focal, (rows - center[1]) / focal
    # Points P of the plane n . P = -4, in a camera whose y points down and z away.
    inverse = -(normal[0] * u - normal[1] * v - normal[2]) / 4
    assert camera_normals(inverse, focal, center) == pytest.approx(np.broadcast_to(normal, (20, 30, 3)), abs=1e-6)
    # The unit of distance does not matter, the focal length does.
    assert camera_normals(inverse * 1000, focal, center) == pytest.approx(
        np.broadcast_to(normal, (20, 30, 3)), abs=1e-6
    )
    assert np.abs(camera_normals(inverse, 80, center) - normal).max() > 0.05


def test_a_sphere_before_a_camera_looks_away_from_its_centre() -> None:
    focal, radius, far = 200.0, 1.0, 4.0
    rows, columns = np.mgrid[0:81, 0:81] - 40.0
    rays = np.stack([columns / focal, rows / focal, np.ones((81, 81))], axis=2)
    a, b, c = (rays**2).sum(axis=2), -2 * rays[..., 2] * far, far**2 - radius**2
    inside = b**2 - 4 * a * c > 0.5
    distance = np.where(inside, (-b - np.sqrt(np.maximum(b**2 - 4 * a * c, 0))) / (2 * a), np.nan)
    truth = (rays * distance[..., None] - np.array([0, 0, far])) * np.array([1, -1, -1])
    found = camera_normals(1 / distance, focal)
    known = np.isfinite(found).all(axis=2)
    assert known.sum() > 2000
    angle = np.degrees(np.arccos(np.clip((found * truth).sum(axis=2)[known], -1, 1)))
    assert angle.mean() < 1


def test_unknown_distances_leave_unknown_normals_around_them_alone() -> None:
    inverse = np.full((7, 7), 0.25)
    inverse[3, 3] = np.nan
    found = camera_normals(inverse, 10)
    assert np.isnan(found[2:5, 2:5]).all(axis=2).sum() == 9
    assert np.isfinite(found).all(axis=2).sum() == 49 - 9


def test_a_scene_s_depth_gives_the_scene_s_normals() -> None:
    """The truth is a formula of the distance to the outline; here it is derived from the depth of that formula."""
    scene = scene_of(3, 0)
    height, normals = true_relief(scene)
    smooth = ~binary_dilation(outlines(scene), np.ones((3, 3)), iterations=3)
    cosines = (relief_normals(height) * normals).sum(axis=2)[smooth]
    assert smooth.mean() > 0.7
    assert np.degrees(np.arccos(np.clip(cosines, -1, 1))).mean() < 0.5
    mirrored = (relief_normals(height[:, ::-1])[:, ::-1] * normals).sum(axis=2)[smooth]
    assert np.degrees(np.arccos(np.clip(mirrored, -1, 1))).mean() > 3


def test_objects_of_a_scene_lie_above_each_other_in_their_order() -> None:
    scene = scene_of(7, 0)
    height, normals = true_relief(scene)
    assert np.linalg.norm(normals, axis=2) == pytest.approx(np.ones(height.shape))
    ranges = [(height[thing.mask].min(), height[thing.mask].max()) for thing in scene.objects]
    assert len(ranges) >= 3
    assert all(behind[1] < before[0] for behind, before in pairwise(ranges))
    ground = ~np.any([thing.mask for thing in scene.objects], axis=0)
    assert height[ground].max() < ranges[0][0]
    assert outlines(scene).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 1)])
def test_the_smallest_pictures_have_normals(size: tuple[int, int]) -> None:
    assert np.isfinite(relief_normals(np.ones(size))).all()
    assert np.isfinite(camera_normals(np.ones(size), 10)).all()
