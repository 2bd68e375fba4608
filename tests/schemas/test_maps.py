"""Kinds of maps: how they are stored, and what is drawn from them."""

import numpy as np
import pytest

from schemas.errors import RecordError
from schemas.maps import (
    MAPS,
    MIRRORED,
    OPENPOSE,
    Pixels,
    color_segments,
    decode_map,
    draw_people,
    encode_png,
    make_map,
    min_max,
    openpose_points,
    to_pixels,
    to_values,
)
from schemas.palettes import PALETTES, color_of
from schemas.rejects import Reason
from tests.mapped import STANDING, person


@pytest.mark.parametrize("kind", MAPS)
def test_a_map_is_stored_without_loss(kind: str) -> None:
    stated = MAPS[kind]
    shape = (5, 7, 3) if stated.channels == 3 else (5, 7)
    drawn = np.random.default_rng(0).integers(0, stated.largest + 1, shape)
    pixels: Pixels = drawn.astype(np.uint16) if stated.bits == 16 else drawn.astype(np.uint8)
    found = make_map(kind, pixels, "operator", "1", {}, (2.0, 5.0) if stated.range is None else None)
    assert np.array_equal(decode_map(kind, found.png), pixels)
    assert found.mean == pytest.approx(pixels.mean() / stated.largest)
    assert not found.is_flat
    assert make_map(kind, np.zeros_like(pixels), "operator", "1", {}, (0.0, 1.0)).is_flat


def test_values_are_pixels_in_their_range() -> None:
    values = np.array([[-1.0, 0.0, 1.0, 7.0]])
    assert to_pixels("normal", values).tolist() == [[0, 128, 255, 255]]
    assert to_values("normal", to_pixels("normal", values), (-1.0, 1.0))[0] == pytest.approx(
        [-1, 0.004, 1, 1], abs=1e-3
    )
    assert to_pixels("depth", np.array([[2.0, 3.0, 4.0]]), (2.0, 4.0)).tolist() == [[0, 32768, 65535]]
    assert to_pixels("depth", np.array([[3.0, 3.0]]), (3.0, 3.0)).tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("pixels", "detail"),
    [
        (np.zeros((4, 4), np.uint8), "1 channels of 8 bits"),
        (np.zeros((4, 4, 3), np.uint8), "3 channels of 8 bits"),
    ],
)
def test_a_png_of_another_type_is_refused(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], detail: str) -> None:
    with pytest.raises(RecordError, match=detail) as caught:
        decode_map("depth", encode_png(pixels))
    assert caught.value.reason is Reason.UNDECODABLE_IMAGE
    with pytest.raises(RecordError):
        decode_map("depth", b"\x89PNG\r\n\x1a\n")


def test_depth_is_stretched_to_its_own_range_and_a_flat_one_is_black() -> None:
    assert min_max(np.array([[100, 200, 300]], np.uint16))[0] == pytest.approx([0, 0.5, 1])
    assert min_max(np.full((2, 2), 65535, np.uint16)).max() == 0


def test_the_neck_is_between_the_shoulders_and_as_sure_as_the_less_sure_one() -> None:
    points = np.column_stack([STANDING, np.ones(17)])
    points[5, 2] = 0.4
    body = openpose_points(points)
    assert body.shape == (18, 3)
    assert body[1].tolist() == [32, 16, 0.4]
    assert body[0].tolist() == points[0].tolist()
    # OpenPose: 2 to 4 the right arm, 5 to 7 the left one, 14 the right eye.
    assert body[4].tolist() == points[10].tolist()
    assert body[7].tolist() == points[9].tolist()
    assert body[14].tolist() == points[2].tolist()
    assert sorted(OPENPOSE) == [-1, *range(17)]


def test_mirroring_swaps_left_and_right_twice_is_nothing() -> None:
    assert [MIRRORED[MIRRORED[i]] for i in range(17)] == list(range(17))
    assert MIRRORED[9] == 10


def test_a_pose_has_openpose_s_colours_at_its_points() -> None:
    drawn = draw_people([np.array(person().points)], 64, 48)
    assert drawn.shape == (48, 64, 3)
    assert drawn[46, 37].tolist()[0] < 60  # the left ankle, drawn over by its limb: blue
    assert drawn[46, 37, 2] > 150
    right_wrist, left_wrist = drawn[34, 18].astype(int), drawn[34, 46].astype(int)
    assert right_wrist[0] > right_wrist[2]  # yellow to green
    assert left_wrist[1] > 200
    assert drawn[0, 0].tolist() == [0, 0, 0]
    unseen = draw_people([np.array(person(0.2).points)], 64, 48)
    assert unseen.max() == 0


def test_points_outside_of_the_picture_are_drawn_where_they_are_seen() -> None:
    points = np.array(person().points)
    points[:, 0] += 1000
    assert draw_people([points], 64, 48).max() == 0
    points[:, 0] -= 990
    assert draw_people([points], 64, 48).max() > 0


def test_segments_are_coloured_by_their_number() -> None:
    numbers = np.array([[0, 1], [2, 9]], np.uint8)
    colored = color_segments(numbers, [(1, 2, 3), (4, 5, 6)])
    assert colored.tolist() == [[[0, 0, 0], [1, 2, 3]], [[4, 5, 6], [0, 0, 0]]]


def test_classes_have_the_published_colours_and_others_one_of_their_own() -> None:
    assert {name: len(colors) for name, colors in PALETTES.items()} == {"coco": 133, "ade20k": 150}
    assert color_of("person") == (220, 20, 60)
    assert color_of("sky", "ade20k") == (6, 230, 230)
    assert color_of("mushroom") == color_of("mushroom")
    assert color_of("mushroom") != color_of("umbrella tree")
    assert min(color_of("")) >= 32
