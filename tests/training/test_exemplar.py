"""Paint by Example's randomness: holes, windows and augmented references, by hand and by their published statistics."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from schemas.boxes import BBox
from training.exemplar import (
    JITTER,
    affine_between,
    augment,
    bezier,
    choose_box,
    choose_window,
    draw_hole,
    extend,
    hole_points,
    jittered_affine,
    pad,
    rotation,
    smooth_shifts,
    warp,
)

WIDTH, HEIGHT = 768, 576


def random_box(rng: np.random.Generator) -> BBox:
    """A box of a tenth to nine tenths of either side and of the published area, at any place."""
    while True:
        w, h = (int(rng.uniform(0.1, 0.9) * side) for side in (WIDTH, HEIGHT))
        if 0.02 <= w * h / (WIDTH * HEIGHT) <= 0.8:
            return int(rng.integers(0, WIDTH - w + 1)), int(rng.integers(0, HEIGHT - h + 1)), w, h


def test_holes_have_the_published_statistics() -> None:
    """400 boxes: a hole covers 97 to 99.9 % of its box, and its area is 1.15 times the box's in the median."""
    covered, ratios = [], []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        box = random_box(rng)
        hole = draw_hole(box, extend(box, WIDTH, HEIGHT, 0.4, rng), WIDTH, HEIGHT, rng) == 0
        x, y, w, h = box
        covered.append(hole[y : y + h, x : x + w].mean())
        ratios.append(hole.sum() / (w * h))
    assert 0.985 < np.median(covered) < 0.999
    assert np.quantile(covered, 0.05) > 0.97
    assert np.quantile(covered, 0.95) < 0.9995
    assert 1.10 < np.median(ratios) < 1.20
    assert 1.5 < np.quantile(ratios, 0.95) < 1.8


def test_points_of_a_hole_lie_on_curves_that_reach_half_of_the_extension() -> None:
    assert bezier((0, 0), (5, 10), (10, 0))[9] == pytest.approx([5, 5])  # t = 0.5
    assert bezier((0, 0), (5, 10), (10, 0))[0] == pytest.approx([0.5, 0.95])  # t = 0.05
    box, extended = (100, 100, 200, 100), (60, 40, 300, 260)
    points = hole_points(box, extended, np.random.default_rng(0))
    assert points.shape == (72, 2)
    top = points[:18]
    exact = bezier((100, 100), (200, 40), (300, 100))
    assert np.abs(top - exact).max() <= 5
    assert abs(top[9, 1] - 70) <= 5
    right, down, left = points[18:36], points[36:54], points[54:]
    assert abs(right[9, 0] - 330) <= 5
    assert abs(down[9, 1] - 250) <= 5
    assert abs(left[9, 0] - 80) <= 5


def test_a_rectangular_hole_is_the_extended_box() -> None:
    kept = draw_hole((4, 5, 2, 2), (3, 4, 5, 4), 12, 10, None)
    expected = np.full((10, 12), 255)
    expected[4:8, 3:8] = 0
    np.testing.assert_array_equal(kept, expected)


@given(st.integers(0, 2**31))
@settings(max_examples=60)
def test_extended_boxes_windows_and_pads_lie_in_the_picture(seed: int) -> None:
    rng = np.random.default_rng(seed)
    width, height = (int(value) for value in rng.integers(20, 90, 2))
    left, top = int(rng.integers(0, width - 4)), int(rng.integers(0, height - 4))
    box = left, top, int(rng.integers(2, width - left + 1)), int(rng.integers(2, height - top + 1))
    x, y, w, h = extended = extend(box, width, height, 0.4, rng)
    right, bottom = box[0] + box[2], box[1] + box[3]
    assert left - 0.4 * left <= x <= left
    assert top - 0.4 * top <= y <= top
    assert right <= x + w <= right + 0.4 * (width - right)
    assert bottom <= y + h <= bottom + 0.4 * (height - bottom)
    for drawn in (rng, None):
        a, b, c, d = choose_window(extended, width, height, 0.6, drawn)
        assert 0 <= a <= x
        assert 0 <= b <= y
        assert x + w <= c <= width
        assert y + h <= d <= height
        assert (a, b, c, d) == (0, 0, width, height) or c - a == d - b <= min(width, height)
    a, b, c, d = pad(box, width, height, 10)
    assert (a, c) == (max(left - 10, 0), min(right + 10, width))
    assert (b, d) == (max(top - 10, 0), min(bottom + 10, height))


def test_windows_lie_at_random_and_the_whole_picture_is_shown_where_they_cannot() -> None:
    rng = np.random.default_rng(0)
    box = (30, 10, 10, 10)
    starts = {choose_window(box, 100, 40, 0.0, rng) for _ in range(300)}
    assert starts == {(x, 0, x + 40, 40) for x in range(31)}
    assert choose_window(box, 100, 40, 0.0, None) == (30, 0, 70, 40)
    for whole in ((10, 0, 60, 40), (0, 10, 10, 10), (90, 10, 10, 10)):  # too long, and at either end
        assert choose_window(whole, 100, 40, 0.6, rng) == (0, 0, 100, 40)
    assert choose_window((3, 3, 4, 4), 40, 40, 0.6, rng) == (0, 0, 40, 40)
    smaller = [choose_window((20, 45, 5, 5), 40, 100, 0.6, rng) for _ in range(200)]
    sides = [right - left for left, _, right, _ in smaller]
    assert min(sides) < 32
    assert max(sides) == 40


def test_all_boxes_are_drawn_and_the_largest_without_a_generator() -> None:
    boxes = [(0, 0, 5, 5), (0, 0, 9, 9), (1, 1, 2, 3)]
    rng = np.random.default_rng(0)
    assert {choose_box(boxes, rng) for _ in range(50)} == set(boxes)
    assert choose_box(boxes, None) == (0, 0, 9, 9)


def gradient(side: int = 56) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))


def test_an_affine_map_takes_three_points_to_three() -> None:
    points, moved = np.array([[3.0, 4], [10, 2], [1, 1]]), np.array([[5.0, 4], [0, 2], [7, 8]])
    matrix = affine_between(points, moved)
    np.testing.assert_allclose(points @ matrix[:, :2].T + matrix[:, 2], moved, atol=1e-9)


def test_warping_moves_pixels_where_the_map_says() -> None:
    picture = gradient()
    shift = np.array([[1.0, 0, 3], [0, 1, 5]])  # right by 3, down by 5
    moved = warp(picture, shift)
    np.testing.assert_array_equal(moved[5:, 3:], picture[:-5, :-3])
    np.testing.assert_array_equal(moved[4, 3:], picture[1, :-3])  # reflected, without repeating the border
    turned = warp(picture, rotation(56, 90))
    np.testing.assert_array_equal(turned, np.rot90(picture))
    np.testing.assert_array_equal(warp(picture, shift, np.zeros((2, 56, 56))), moved)


def test_the_distortion_is_the_published_jitter_of_three_points() -> None:
    """At 224 pixels: (186, 186), (186, 38) and (38, 38), by up to 50; the shifts on top are next to nothing."""
    points = np.array([[186, 186], [186, 38], [38, 38]])
    matrices = [jittered_affine(224, np.random.default_rng(seed)) for seed in range(300)]
    moves = np.array([points @ matrix[:, :2].T + matrix[:, 2] - points for matrix in matrices])
    assert np.abs(moves).max() <= JITTER
    assert np.quantile(np.abs(moves), 0.9) == pytest.approx(45, abs=2)
    small = jittered_affine(56, np.random.default_rng(0)) - jittered_affine(56, np.random.default_rng(1))
    assert np.abs(small[:, 2]).max() > 1
    assert np.abs(smooth_shifts(56, np.random.default_rng(0))).max() < 0.2


def test_augmentations_have_the_published_shares() -> None:
    """A picture that is mirrored, turned, blurred or distorted is told by comparing it with each of these alone."""
    picture = gradient(32)
    counts = {"same": 0, "mirrored": 0, "blurred": 0}
    blurs = [ndimage.uniform_filter(picture, (k, k, 1), mode="mirror") for k in (3, 5, 7)]
    for seed in range(1000):
        drawn = augment(picture, np.random.default_rng(seed))
        assert drawn.shape == picture.shape
        counts["same"] += np.array_equal(drawn, picture)
        counts["mirrored"] += np.array_equal(drawn, picture[:, ::-1])
        counts["blurred"] += any(np.array_equal(drawn, blurred) for blurred in blurs)
    alone = 0.5 * 0.5 * 0.7 * 0.7  # neither mirrored nor turned nor blurred nor distorted
    assert counts["same"] / 1000 == pytest.approx(alone, abs=0.03)
    assert counts["mirrored"] / 1000 == pytest.approx(alone, abs=0.03)
    assert counts["blurred"] / 1000 == pytest.approx(alone * 3 / 7, abs=0.02)
