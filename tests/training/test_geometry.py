import math
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from schemas.boxes import box_of
from schemas.errors import RecordError
from schemas.masks import Mask
from tests.pictures import encode, scene
from training.geometry import (
    Box,
    Crop,
    crop_height,
    crop_window,
    decode,
    open_jpeg,
    reduction,
    sizes_of,
    to_pixels,
    window_of,
)


@pytest.mark.parametrize(
    ("size", "side", "part", "span"),
    [
        ((80, 40), 20, (20, 0, 60, 40), (0, 20)),  # wider than high: cropped on both sides
        ((81, 40), 20, (20.5, 0, 60.5, 40), (0, 20)),
        ((10, 40), 20, (0, 0, 10, 40), (7, 12)),  # narrower: 7 black columns to the left, 8 to the right
        ((1, 1000), 20, (0, 0, 1, 1000), (9, 10)),  # at least one column
        ((30, 30), 45, (0, 0, 30, 30), (0, 45)),
    ],
)
def test_the_height_of_a_picture_fills_the_square(
    size: tuple[int, int], side: int, part: tuple[float, ...], span: tuple[int, int]
) -> None:
    crop = crop_height(*size, side, mirrored=True)
    assert crop == Crop(size[1], (part[0], part[1], part[2], part[3]), side, span, mirrored=True)
    assert crop.scale == side / size[1]


def test_a_window_fills_the_square() -> None:
    assert crop_window(90, (5, 7, 30), 15, mirrored=False) == Crop(90, (5, 7, 35, 37), 15, (0, 15), mirrored=False)


@st.composite
def crops(draw: st.DrawFn) -> tuple[Crop, tuple[int, int]]:
    """A crop of a picture, by its height or by a window, and the picture's (width, height)."""
    width, height, side = draw(st.integers(1, 20)), draw(st.integers(1, 20)), draw(st.integers(1, 12))
    mirrored = draw(st.booleans())
    if draw(st.booleans()):
        return crop_height(width, height, side, mirrored=mirrored), (width, height)
    length = draw(st.integers(1, min(width, height)))
    x, y = draw(st.integers(0, width - length)), draw(st.integers(0, height - length))
    return crop_window(height, (x, y, length), side, mirrored=mirrored), (width, height)


def source_of(edges: NDArray[np.float64], centre: float) -> int | None:
    """The pixel between whose `edges` the point `centre` lies, or None."""
    for pixel in range(len(edges) - 1):
        if min(edges[pixel : pixel + 2]) < centre < max(edges[pixel : pixel + 2]):
            return pixel
    return None


@given(crops(), st.integers(0, 99))
def test_masks_and_points_are_moved_by_the_same_numbers(cropped: tuple[Crop, tuple[int, int]], seed: int) -> None:
    """A pixel of the square shows the pixel of the mask whose corners, moved as points, enclose its centre."""
    crop, (width, height) = cropped
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    across = crop.crop_points(np.array([[x, 0.0] for x in range(width + 1)]))[:, 0]
    down = crop.crop_points(np.array([[0.0, y] for y in range(height + 1)]))[:, 1]
    centres = np.arange(crop.side) + 0.5
    assume(min(abs(edges[:, None] - centres).min() for edges in (across, down)) > 1e-6)
    expected = np.zeros((crop.side, crop.side), bool)
    for row, column in np.ndindex(*expected.shape):
        y, x = source_of(down, float(centres[row])), source_of(across, float(centres[column]))
        expected[row, column] = y is not None and x is not None and mask[y, x]
    np.testing.assert_array_equal(crop.crop_mask(mask), expected)


@given(crops(), st.data())
def test_a_cropped_box_frames_the_cropped_mask(cropped: tuple[Crop, tuple[int, int]], data: st.DataObject) -> None:
    crop, (width, height) = cropped
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    w, h = data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y))
    mask = np.zeros((height, width), bool)
    mask[y : y + h, x : x + w] = True
    left, top, across, down = crop.crop_box((x, y, w, h))
    assert 0 <= left <= left + across <= crop.side
    assert 0 <= top <= top + down <= crop.side
    cropped_mask = crop.crop_mask(mask)
    if cropped_mask.any():  # a pixel is set where its centre lies in the box
        found = box_of(cropped_mask)
        assert found[:2] == pytest.approx((left, top), abs=0.501)
        assert found[0] + found[2] == pytest.approx(left + across, abs=0.501)
        assert found[1] + found[3] == pytest.approx(top + down, abs=0.501)
    else:
        assert min(across, down) <= 1


@pytest.mark.parametrize(
    ("crop", "box", "expected"),
    [
        (crop_height(80, 40, 20, mirrored=False), (22, 10, 8, 20), (1, 5, 4, 10)),
        (crop_height(80, 40, 20, mirrored=True), (22, 10, 8, 20), (15, 5, 4, 10)),
        (crop_height(80, 40, 20, mirrored=False), (10, 30, 14, 99), (0, 15, 2, 5)),  # cut off by the edges
        (crop_height(80, 40, 20, mirrored=False), (0, 0, 10, 10), (0, 0, 0, 5)),  # outside
        (crop_height(10, 40, 20, mirrored=False), (-5, 0, 30, 40), (7, 0, 5, 20)),  # the black bars are left out
        (crop_height(10, 40, 20, mirrored=True), (-5, 0, 30, 40), (8, 0, 5, 20)),
    ],
)
def test_cropped_boxes_by_hand(crop: Crop, box: Box, expected: Box) -> None:
    assert crop.crop_box(box) == expected


def test_boxes_in_a_window_by_hand() -> None:
    """The window has 20 pixels from (10, 5) on and is scaled to 40."""
    crop = crop_window(100, (10, 5, 20), 40, mirrored=False)
    assert crop.crop_box((12, 10, 4, 6)) == (4, 10, 8, 12)
    assert crop.crop_box((5, 0, 10, 10)) == (0, 0, 10, 10)
    assert crop.crop_box((0, 0, 10, 100)) == (0, 0, 0, 40)
    assert crop_window(100, (10, 5, 20), 40, mirrored=True).crop_box((12, 10, 4, 6)) == (28, 10, 8, 12)


def test_a_picture_at_its_own_size_is_only_cropped() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    wide = crop_height(6, 4, 4, mirrored=False).crop_picture(Image.fromarray(picture))
    np.testing.assert_array_equal(wide, picture[:, 1:5])
    mirrored = crop_height(6, 4, 4, mirrored=True).crop_picture(Image.fromarray(picture))
    np.testing.assert_array_equal(mirrored, picture[:, 4:0:-1])
    narrow = crop_height(1, 4, 4, mirrored=False).crop_picture(Image.fromarray(picture[:, :1]))
    np.testing.assert_array_equal(narrow[:, 1], picture[:, 0])
    assert not narrow[:, [0, 2, 3]].any()


def test_a_picture_decoded_at_half_its_size_shows_the_same_part() -> None:
    half = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    crop = crop_window(16, (4, 8, 8), 4, mirrored=False)
    np.testing.assert_array_equal(crop.crop_picture(Image.fromarray(half)), half[4:8, 2:6])
    smooth = np.asarray(Image.fromarray(scene(64, 64)).resize((32, 32), Image.Resampling.BOX))
    large = crop_window(64, (8, 16, 32), 8, mirrored=True)
    both = [large.crop_picture(Image.fromarray(picture)).astype(int) for picture in (scene(64, 64), smooth)]
    assert np.abs(both[0] - both[1]).max() <= 3


def windows_around(whole: int, length: int, start: int, extent: int) -> list[int]:
    """The possible starts of a window along one axis: it holds the box, or lies inside a longer box."""
    if extent <= length:
        return [x for x in range(whole - length + 1) if x <= start and start + extent <= x + length]
    return [x for x in range(whole - length + 1) if start <= x and x + length <= start + extent]


@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_the_window_holds_the_box_and_is_the_nearest_to_the_middle(
    width: int, height: int, data: st.DataObject
) -> None:
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    w, h = data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y))
    left, top, length = window_of(width, height, (x, y, w, h))
    assert length == min(width, height)
    for whole, begin, start, extent in ((width, left, x, w), (height, top, y, h)):
        allowed = windows_around(whole, length, start, extent)
        assert begin in allowed
        assert abs(2 * begin + length - whole) == min(abs(2 * a + length - whole) for a in allowed)


@pytest.mark.parametrize(
    ("size", "box", "window"),
    [
        ((60, 40), (25, 5, 10, 10), (10, 0, 40)),  # inside the central window
        ((60, 40), (0, 5, 10, 10), (0, 0, 40)),  # at the left edge
        ((60, 40), (8, 5, 10, 10), (8, 0, 40)),  # not in the central window, which is moved as far as needed
        ((60, 40), (48, 5, 12, 10), (20, 0, 40)),
        ((40, 60), (5, 45, 10, 10), (0, 15, 40)),
        ((100, 40), (10, 0, 60, 40), (30, 0, 40)),  # longer than the window: the central window lies within it
        ((100, 40), (0, 0, 60, 40), (20, 0, 40)),  # longer than the window, and beside the centre
        ((40, 40), (0, 0, 40, 40), (0, 0, 40)),
    ],
)
def test_the_window_nearest_to_the_middle_by_hand(
    size: tuple[int, int], box: tuple[int, int, int, int], window: tuple[int, int, int]
) -> None:
    assert window_of(*size, box) == window


def test_windows_start_at_whole_pixels_and_stay_in_the_picture() -> None:
    """A window of 4 pixels of 10 holds the box from 5.5 to 6.5 if it starts at 3, 4 or 5."""
    rng = np.random.default_rng(0)
    assert {window_of(10, 4, (5.5, 0, 1, 4), rng) for _ in range(50)} == {(3, 0, 4), (4, 0, 4), (5, 0, 4)}
    for box, left in (((90, -50, 2, 1), 6), ((-90, 50, 2, 1), 0)):  # outside the picture
        assert window_of(10, 4, box) == window_of(10, 4, box, rng) == (left, 0, 4)


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_every_window_that_holds_the_box_is_drawn_and_no_other(width: int, height: int, data: st.DataObject) -> None:
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    w, h = data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y))
    length = min(width, height)
    lefts, tops = windows_around(width, length, x, w), windows_around(height, length, y, h)
    windows = {window_of(width, height, (x, y, w, h), np.random.default_rng(seed)) for seed in range(80)}
    assert windows == {(left, top, length) for left, top in product(lefts, tops)}


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_the_reduction_of_a_decoded_picture_follows_from_its_size(factor: int) -> None:
    for length in range(16, 400):
        assert reduction(length, math.ceil(length / factor)) == factor


JPEG = encode(scene(192, 256), "JPEG")


@pytest.mark.parametrize(
    ("side", "boxes", "reference", "decoded"),
    [
        (192, [], 64, (256, 192)),
        (300, [], 64, (256, 192)),
        (96, [], 64, (128, 96)),
        (97, [], 64, (256, 192)),
        (32, [], 64, (64, 48)),
        (24, [], 64, (32, 24)),
        (24, [(0, 0, 128, 10)], 64, (128, 96)),  # a reference of 64 pixels from a box of 128
        (24, [(0, 0, 256, 9), (200, 128, 20, 64)], 64, (256, 192)),  # the smallest box needs the full size
    ],
)
def test_a_jpeg_is_decoded_no_larger_than_is_needed(
    side: int, boxes: list[tuple[int, int, int, int]], reference: int, decoded: tuple[int, int]
) -> None:
    crop = crop_height(256, 192, side, mirrored=False)
    picture = decode(open_jpeg(JPEG, 256, 192), crop, boxes, reference)
    assert (picture.mode, picture.size) == ("RGB", decoded)


def test_other_data_than_a_jpeg_of_the_recorded_size_are_refused() -> None:
    with pytest.raises(RecordError, match=r"^undecodable-image: no JPEG, or a huge one$"):
        open_jpeg(encode(scene()), 32, 24)
    with pytest.raises(RecordError, match=r"^undecodable-image: 256 x 192 pixels, its record says 192 x 256$"):
        open_jpeg(JPEG, 192, 256)
    crop = crop_height(256, 192, 192, mirrored=False)
    with pytest.raises(RecordError, match="undecodable-image: image file is truncated"):
        decode(open_jpeg(JPEG[: len(JPEG) // 2], 256, 192), crop, [], 64)


def test_a_mask_whose_area_differs_from_its_record_is_refused() -> None:
    mask = Mask.from_array(np.ones((2, 3), bool))
    np.testing.assert_array_equal(to_pixels(mask, 6), np.ones((2, 3), bool))
    with pytest.raises(ValueError, match=r"^a mask has 6 pixels, its record says 5$"):
        to_pixels(mask, 5)


@pytest.mark.parametrize(
    ("width", "crop", "expected"),
    [
        (80, crop_window(40, (10, 4, 32), 64, mirrored=False), (40, 80, 8, 20, 64, 64)),
        (80, crop_window(40, (10, 4, 32), 64, mirrored=True), (40, 80, 8, 76, 64, 64)),
        (80, crop_height(80, 40, 20, mirrored=False), (40, 80, 0, 10, 20, 20)),
        (30, crop_height(30, 60, 20, mirrored=True), (60, 30, 0, 0, 20, 20)),
    ],
)
def test_sizes_for_stable_diffusion_xl(width: int, crop: Crop, expected: tuple[int, ...]) -> None:
    assert sizes_of(width, crop) == expected
