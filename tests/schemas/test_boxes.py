import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.boxes import BBox, area, box_of, from_corners, iou, overlap, to_corners, union, window
from schemas.masks import Mask
from tests.strategies import boxes, masks

EMPTY = (0, 0, 0, 0)


def pixels(box: BBox) -> set[tuple[int, int]]:
    return {(x, y) for x in range(box[0], box[0] + box[2]) for y in range(box[1], box[1] + box[3])}


@given(boxes(), boxes())
def test_iou_and_overlap_count_pixels(a: BBox, b: BBox) -> None:
    shared, joint = len(pixels(a) & pixels(b)), len(pixels(a) | pixels(b))
    assert iou(a, b) == pytest.approx(shared / joint)
    assert overlap(a, b) == pytest.approx(shared / min(len(pixels(a)), len(pixels(b))))


@pytest.mark.parametrize("other", [EMPTY, (3, 3, 4, 4), (2, 2, 0, 5)])
def test_an_empty_box_shares_nothing(other: BBox) -> None:
    assert iou(EMPTY, other) == overlap(EMPTY, other) == 0


@given(masks())
def test_the_box_of_an_array_is_that_of_its_mask(mask: NDArray[np.bool_]) -> None:
    assert box_of(mask) == Mask.from_array(mask).bbox


@given(boxes())
def test_the_window_of_a_box_indexes_its_pixels(box: BBox) -> None:
    painted = np.zeros((64, 64), bool)
    painted[window(box)] = True
    assert box_of(painted) == box
    assert painted.sum() == area(box) == len(pixels(box))
    assert from_corners(to_corners(box)) == box


def test_corners_by_hand() -> None:
    assert to_corners((2, 3, 4, 5)) == (2, 3, 6, 8)


@given(boxes(), boxes(), st.booleans())
def test_a_union_is_the_smallest_box_around_both(a: BBox, b: BBox, swap: bool) -> None:
    painted = np.zeros((64, 64), bool)
    painted[window(a)] = painted[window(b)] = True
    assert union(*((b, a) if swap else (a, b))) == box_of(painted)


@given(boxes())
def test_an_empty_box_adds_nothing_to_a_union(box: BBox) -> None:
    assert union(box, EMPTY) == union(EMPTY, box) == box
