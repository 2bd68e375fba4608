"""The measures of layout guidance: colours in boxes, average precision, and the copying of references."""

import numpy as np
import pytest

from benchmarks.exemplar import correlation, measure, region
from benchmarks.layout import average_precision, color_inside
from transforms.scenes.paint import COLORS


def test_the_share_of_a_colour_inside_a_box() -> None:
    picture = np.full((64, 64, 3), 128, np.uint8)
    picture[0:32, 0:32] = COLORS["red"]
    picture[40:48, 40:56] = COLORS["red"]
    picture[0:8, 48:64] = COLORS["blue"]
    assert color_inside(picture, "red", (0, 0, 0.5, 0.5)) == pytest.approx(32 * 32 / (32 * 32 + 8 * 16))
    assert color_inside(picture, "red", (0, 0, 1, 1)) == 1
    assert color_inside(picture, "blue", (0.75, 0, 0.875, 1)) == pytest.approx(0.5)
    assert color_inside(picture, "green", (0, 0, 1, 1)) == 0


def test_average_precision_of_boxes() -> None:
    truths = [[("dog", (0.0, 0.0, 0.5, 0.5))], [("dog", (0.2, 0.2, 0.8, 0.8)), ("cat", (0.0, 0.0, 0.1, 0.1))]]
    exact = [[(name, box, 0.9) for name, box in own] for own in truths]
    assert average_precision(truths, exact) == pytest.approx((1, 1))
    half = [[exact[0][0]], []]  # one of two dogs and no cat: 0.5 for dogs (51 of 101 recalls), 0 for cats
    assert average_precision(truths, half) == pytest.approx((51 / 101 / 2,) * 2)
    shifted = [[("dog", (0.0, 0.0, 0.5, 0.4), 0.9)], [("cow", (0.0, 0.0, 1.0, 1.0), 0.9)]]  # IoU 0.8, a class of none
    precision, at_half = average_precision(truths, shifted)
    assert at_half == pytest.approx(51 / 101 / 2)
    assert precision == pytest.approx(at_half * 7 / 10)  # 0.5 to 0.8 of ten thresholds
    assert average_precision(truths, [[], []]) == (0, 0)


def test_a_copy_correlates_with_the_reference_and_not_with_its_mirror_image() -> None:
    rng = np.random.default_rng(0)
    references = rng.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    copied = measure(references, references)
    assert copied["as it is"] == pytest.approx(1)
    assert abs(copied["mirrored"]) < 0.1
    assert copied["colour"] == 0
    assert copied["other"] > 0
    assert correlation(np.full((4, 4, 3), 9, np.uint8), references[0][:4, :4]) == 0


def test_the_region_of_a_hole_is_squashed_to_a_square() -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[10:20, 30:50] = 200
    mask = np.ones((64, 64), np.float32)
    mask[10:20, 30:50] = 0
    assert (region(picture, mask) == 200).all()
