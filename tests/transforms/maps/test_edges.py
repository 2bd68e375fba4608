"""Edges and lines: against OpenCV's own Canny, and on pictures whose edges are known."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from jobs.scenes import scene_of
from schemas.maps import canny_edges
from transforms.maps.edges import canny_gradient, scribble, straight_lines, xdog_sketch


def square(side: int = 64, inner: tuple[int, int] = (16, 48), low: int = 60, high: int = 200) -> NDArray[np.uint8]:
    """A bright square on a dark ground, [side, side, 3]."""
    pixels = np.full((side, side, 3), low, np.uint8)
    pixels[inner[0] : inner[1], inner[0] : inner[1]] = high
    return pixels


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 24), st.integers(1, 24), st.just(3))),
    st.floats(0, 500),
    st.floats(0, 800),
)
@settings(max_examples=60, deadline=None)
def test_thresholds_on_the_stored_gradient_find_what_opencv_finds(
    pixels: NDArray[np.uint8], low: float, high: float
) -> None:
    assert np.array_equal(canny_edges(canny_gradient(pixels), low, high), np.asarray(cv2.Canny(pixels, low, high)) > 0)


def test_the_same_on_a_scene() -> None:
    picture = scene_of(3, 2).image
    for low, high in ((100, 200), (30, 90)):
        edges = canny_edges(canny_gradient(picture), low, high)
        assert 100 < edges.sum() < edges.size / 2
        assert np.array_equal(edges, np.asarray(cv2.Canny(picture, low, high)) > 0)


def test_weak_edges_count_only_if_they_touch_a_strong_one() -> None:
    gradient = np.zeros((3, 7), np.uint16)
    gradient[1] = (0, 150, 250, 0, 150, 0, 0)
    gradient[2, 3] = 120  # touches the strong pixel at a corner
    assert canny_edges(gradient, 100, 200)[1].tolist() == [False, True, True, False, True, False, False]
    for low, high in ((100, 250), (250, 100)):  # a threshold itself is not above it
        assert not canny_edges(gradient, low, high).any()
    assert canny_edges(gradient, 150, 200).sum() == 1
    gradient[2, 3] = 90
    assert canny_edges(gradient, 100, 200)[1].tolist() == [False, True, True, False, False, False, False]


def test_a_sketch_lies_on_the_dark_side_of_an_edge_and_nowhere_else() -> None:
    strength = xdog_sketch(square())
    assert strength.min() >= 0
    assert strength[15, 20:44].min() > 0.5  # the ground's last row above the square
    assert strength[17, 20:44].max() == 0
    assert strength[:8].max() == strength[24:40, 24:40].max() == 0
    assert xdog_sketch(np.full((20, 30, 3), 7, np.uint8)).max() == 0


def test_a_sketch_sees_an_edge_between_colours_of_one_brightness() -> None:
    pixels = np.full((40, 40, 3), (200, 40, 60), np.uint8)
    pixels[:, 20:] = (40, 200, 60)
    assert xdog_sketch(pixels)[:, 18:22].max() > 0.5


def test_a_scribble_is_a_thick_stroke_along_the_line() -> None:
    strength = np.zeros((512, 512), np.float32)
    strength[256, 100:400] = 0.4
    strokes = scribble(strength)
    column = strokes[:, 250]
    assert column.max() == pytest.approx(1)
    assert np.flatnonzero(column >= 0.5).tolist() == list(range(250, 263))  # six pixels on both sides
    assert strokes[:, 450:].max() == 0
    assert scribble(np.zeros((8, 8), np.float32)).max() == 0


def test_a_line_has_its_length_as_a_share_of_the_diagonal() -> None:
    lengths = straight_lines(square(100, (20, 80)))
    found = lengths[lengths > 0]
    # The four sides, 60 of 141 pixels; the detector rounds corners off by a few pixels.
    assert found.max() == pytest.approx(60 / np.hypot(100, 100), abs=0.04)
    rows = np.flatnonzero((lengths > 0.3).any(axis=1))
    assert rows.min() == pytest.approx(20, abs=2)
    assert rows.max() == pytest.approx(80, abs=2)
    assert straight_lines(np.full((40, 40, 3), 90, np.uint8)).max() == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (7, 7), (8, 300)])
def test_a_picture_of_any_size_has_maps_of_its_size(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    sketch = xdog_sketch(pixels)
    for found in (canny_gradient(pixels), sketch, scribble(sketch), straight_lines(pixels)):
        assert found.shape == size
        assert np.isfinite(found).all()
