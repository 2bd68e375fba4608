from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco

from schemas.boxes import window
from schemas.masks import Mask, cut_masks, intersection_over_union
from tests.strategies import masks


def runs(mask: NDArray[np.bool_]) -> list[int]:
    """COCO's uncompressed counts by a slow loop: column by column, the first run counts zeros."""
    counts, current = [0], False
    for pixel in mask.flatten(order="F").tolist():
        if pixel != current:
            counts.append(0)
            current = pixel
        counts[-1] += 1
    return counts


def compress(counts: list[int]) -> str:
    """COCO's string of the counts, from its definition.

    From the fourth run on, the difference to the run before the previous one; five bits per character, lowest
    first, the sixth bit says that more follow; the character is the value + 48.
    """
    text = ""
    for index, count in enumerate(counts):
        rest = count - counts[index - 2] if index > 2 else count
        while True:
            bits, rest = rest & 31, rest >> 5
            more = rest != (-1 if bits & 16 else 0)
            text += chr(bits + (32 if more else 0) + 48)
            if not more:
                break
    return text


@given(masks())
def test_a_mask_comes_back_as_it_went_in(mask: NDArray[np.bool_]) -> None:
    decoded = Mask.from_array(mask).to_array()
    assert decoded.dtype == bool
    np.testing.assert_array_equal(decoded, mask)


@given(masks())
def test_counts_are_those_of_a_slow_loop(mask: NDArray[np.bool_]) -> None:
    encoded = Mask.from_array(mask)
    assert encoded == Mask(size=(mask.shape[0], mask.shape[1]), counts=compress(runs(mask)))


@given(masks())
def test_uncompressed_counts_give_the_same_mask(mask: NDArray[np.bool_]) -> None:
    assert Mask.from_json({"size": list(mask.shape), "counts": runs(mask)}) == Mask.from_array(mask)


@given(masks())
def test_pycocotools_reads_our_json(mask: NDArray[np.bool_]) -> None:
    rle: Any = Mask.from_array(mask).to_json()
    assert Mask.from_json(rle) == Mask.from_array(mask)
    np.testing.assert_array_equal(coco.decode(rle), mask)


@given(masks())
def test_area_and_box_are_those_of_the_pixels(mask: NDArray[np.bool_]) -> None:
    encoded = Mask.from_array(mask)
    rows, columns = np.nonzero(mask)
    box = (0, 0, 0, 0)
    if len(rows):
        x, y = columns.min(), rows.min()
        box = (x, y, columns.max() - x + 1, rows.max() - y + 1)
    assert encoded.area == mask.sum()
    assert encoded.bbox == box


@given(st.lists(masks(), max_size=5), st.integers(0, 99))
def test_pixels_inside_boxes_are_those_of_the_whole_masks(arrays: list[NDArray[np.bool_]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = []
    for height, width in (array.shape for array in arrays):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        boxes.append((x, y, int(rng.integers(width - x + 1)), int(rng.integers(height - y + 1))))
    found = cut_masks([Mask.from_array(array) for array in arrays], boxes)
    for array, box, cut in zip(arrays, boxes, found, strict=True):
        np.testing.assert_array_equal(cut.T, array[window(box)])


@given(masks(), st.integers(0, 99))
def test_intersection_over_union_counts_pixels(a: NDArray[np.bool_], shift: int) -> None:
    b = np.roll(a, shift)
    either = (a | b).sum()
    expected = (a & b).sum() / either if either else 0.0
    assert intersection_over_union(Mask.from_array(a), Mask.from_array(b)) == pytest.approx(expected)


@given(masks())
def test_a_mask_of_an_array_passes_its_check(mask: NDArray[np.bool_]) -> None:
    Mask.from_array(mask).check()


@given(masks(), st.integers(-3, 3).filter(bool))
def test_runs_that_leave_pixels_over_or_overflow_are_refused(mask: NDArray[np.bool_], change: int) -> None:
    counts = runs(mask)
    counts[-1] += change
    with pytest.raises(ValueError, match=rf"its runs cover {mask.size + change:,} pixels of a picture of"):
        Mask((mask.shape[0], mask.shape[1]), compress(counts)).check()


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("", "its runs cover 0 pixels of a picture of 3 x 2"),
        ("é", "'é' is not a character of COCO's run lengths"),
        ("/", "'/' is not a character of COCO's run lengths"),  # the character before "0"
        ("p", "'p' is not a character of COCO's run lengths"),  # the character after "o", the last one
        (compress([-2, 8]), "its runs cover 6 pixels of a picture of 3 x 2"),
        (compress([2, 4]) + "P", "the string of run lengths breaks off within a number"),
    ],
)
def test_what_is_no_string_of_runs_is_refused(counts: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Mask((2, 3), counts).check()


@pytest.mark.parametrize(
    ("mask", "counts"),
    [
        (np.ones((2, 3), bool), "06"),  # a first run of no zeros
        (np.zeros((31, 1), bool), "o0"),  # the last character there is: 31, and more to follow
        (np.zeros((0, 0), bool), ""),
    ],
)
def test_the_ends_of_what_a_string_of_runs_may_hold_pass(mask: NDArray[np.bool_], counts: str) -> None:
    Mask((mask.shape[0], mask.shape[1]), counts).check()
    if mask.size:
        assert Mask.from_array(mask).counts == counts


def test_counts_may_be_bytes_and_sizes_numpy_s_numbers() -> None:
    mask = Mask.from_json({"size": np.array([2, 3]), "counts": b"06"})
    assert mask == Mask((2, 3), "06")
    assert [type(side) for side in mask.size] == [int, int]


def test_polygons_are_filled() -> None:
    """Two boxes of 6 x 4 and 5 x 2 pixels: their corners lie between the pixels."""
    mask = Mask.from_polygons([[1, 2, 7, 2, 7, 6, 1, 6], [4.0, 10.0, 9.0, 10.0, 9.0, 12.0, 4.0, 12.0]], (24, 32))
    expected = np.zeros((24, 32), bool)
    expected[2:6, 1:7] = expected[10:12, 4:9] = True
    np.testing.assert_array_equal(mask.to_array(), expected)


TRIANGLE = [0.0, 0.0, 8.0, 0.0, 0.0, 8.0]


def test_a_triangle_is_a_polygon() -> None:
    assert Mask.from_polygons([TRIANGLE], (24, 32)).area == pytest.approx(32, abs=4)  # half of 8 x 8


@pytest.mark.parametrize(
    "polygons",
    [
        [],
        [[]],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5]],
        [[1, 2, 3, 4, 5, 6, 7]],
        [[1, 2, 3, 4, 5, float("inf")]],
        [TRIANGLE, [1.0, 2.0, 3.0, 4.0]],
    ],
)
def test_what_is_no_polygon_is_refused(polygons: list[list[float]]) -> None:
    with pytest.raises(ValueError, match=r"^a polygon needs three corners or more, each of two finite numbers$"):
        Mask.from_polygons(polygons, (24, 32))


@pytest.mark.parametrize("far", [1e10, 5e7, 4e8, 1e308])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("place", range(6))
def test_a_coordinate_far_outside_is_refused_before_pycocotools_sees_it(far: float, sign: int, place: int) -> None:
    polygon = [*TRIANGLE]
    polygon[place] = sign * far
    with pytest.raises(ValueError, match=r"^polygons of coordinates or outlines of more than 4,194,304 pixels$"):
        Mask.from_polygons([TRIANGLE, polygon], (24, 32))


def test_polygons_that_lie_far_outside_altogether_are_refused() -> None:
    with pytest.raises(ValueError, match="outlines of more than"):
        Mask.from_polygons([[1e10, 1e10] * 3], (24, 32))


def test_an_outline_that_crosses_the_picture_again_and_again_is_refused() -> None:
    with pytest.raises(ValueError, match="outlines of more than"):
        Mask.from_polygons([[0.0, 0.0, 8192.0, 8192.0] * 300], (8192, 8192))


def test_corners_somewhat_outside_are_cut_at_the_picture() -> None:
    mask = Mask.from_polygons([[-900.0, -900.0, 900.0, -900.0, 900.0, 12.0, -900.0, 12.0]], (24, 32))
    np.testing.assert_array_equal(mask.to_array(), np.arange(24)[:, None].repeat(32, 1) < 12)


@pytest.mark.parametrize(
    "counts",
    [[], [5, 10], [24 * 32 + 1], [-5, 24 * 32 + 5], [2**31, 2**31], [2**32 + 24 * 32], [1e30], [float("nan")], [None]],
)
def test_uncompressed_counts_that_do_not_add_up_are_refused(counts: list[Any]) -> None:
    with pytest.raises((ValueError, TypeError), match=r"its runs cover|cannot convert|int\(\) argument"):
        Mask.from_json({"size": [24, 32], "counts": counts})


def test_a_run_length_without_end_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"^a run length of more than 7 characters$"):
        Mask((24, 32), "o" * 10_000_000).check()


def test_masks_of_two_sizes_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=r"^masks of \(2, 3\) and \(3, 2\)"):
        intersection_over_union(Mask.from_array(np.ones((2, 3), bool)), Mask.from_array(np.ones((3, 2), bool)))
