"""The step that makes the wanted maps: from the picture, from what the source gives, or not at all."""

from dataclasses import replace

import numpy as np
import pytest

from schemas.errors import RecordError
from schemas.example import Example
from schemas.images import encode_jpeg
from schemas.maps import canny_edges, decode_map, draw_people, encode_png, min_max, to_values
from schemas.rejects import Reason
from tests.beam import apply
from tests.mapped import bare, box_segment, mapped, person
from transforms.batch import Batch
from transforms.maps.draw import Drawing, DrawMaps, draw_maps, enough_points
from transforms.maps.given import read_given
from transforms.maps.segmentation import number_segments


def refused(example: Example, *wanted: str) -> tuple[Reason, str]:
    with pytest.raises(RecordError) as caught:
        draw_maps(example, wanted, Drawing())
    return caught.value.reason, caught.value.detail


def test_maps_come_in_the_order_that_was_asked_for_and_alone() -> None:
    made = draw_maps(bare(), ("lines", "canny", "normal", "scribble"), Drawing())
    assert list(made.maps) == ["lines", "canny", "normal", "scribble"]
    assert made.given == {}
    assert made.maps["scribble"].parameters["of"] == "sketch"
    edges = canny_edges(decode_map("canny", made.maps["canny"].png).astype(np.uint16), 100, 200)
    assert edges[9:12, 20:45].any(axis=0).all()


def test_what_the_source_gives_is_used_as_it_is() -> None:
    own = np.random.default_rng(0).integers(0, 256, (48, 64), dtype=np.uint8)
    made = draw_maps(replace(bare(), given={"sketch": encode_png(own)}), ("sketch", "scribble"), Drawing())
    assert np.array_equal(decode_map("sketch", made.maps["sketch"].png), own)
    assert made.maps["sketch"].operator == "source"


def test_normals_are_those_of_the_given_depth() -> None:
    """The given depth rises towards the lower edge: a floor, which looks up; far from the viewer, to the viewer."""
    made = draw_maps(bare(), ("normal",), Drawing())
    normals = to_values("normal", decode_map("normal", made.maps["normal"].png), (-1.0, 1.0))
    slope = 0.5 * 64 / 47
    assert normals[30, 30] == pytest.approx(np.array([0, slope, 1]) / np.hypot(slope, 1), abs=0.01)
    assert normals[0, 30] == pytest.approx([0, 0, 1], abs=0.01)


def test_distances_become_nearness_and_with_a_focal_length_exact_normals() -> None:
    distance = np.full((48, 64), 2000, np.uint16)
    distance[:, 40:] = 1000
    distance[20, 20] = 0
    example = replace(bare(), given={"depth": encode_png(distance)})
    made = draw_maps(example, ("depth", "normal"), Drawing(depth_files="distance", focal=50.0))
    depth = decode_map("depth", made.maps["depth"].png)
    assert depth[0, 50] == 65535
    assert depth[0, 0] == pytest.approx(32768, abs=1)
    assert depth[20, 20] == 0
    assert to_values("depth", depth, made.maps["depth"].range)[0, 50] == pytest.approx(0.001)
    normals = to_values("normal", decode_map("normal", made.maps["normal"].png), (-1.0, 1.0))
    assert normals[5, 5] == pytest.approx([0, 0, 1], abs=0.01)
    assert normals[20, 21] == pytest.approx([0, 0, 0], abs=0.01)  # beside an unknown distance
    assert abs(normals[5, 40, 0]) > 0.9  # the step


def test_eight_bits_of_depth_and_grey_in_three_channels_are_read() -> None:
    grey = np.arange(48 * 64, dtype=np.uint32).reshape(48, 64) % 256
    for pixels in (grey.astype(np.uint8), np.repeat(grey[..., None], 3, 2).astype(np.uint8)):
        found = read_given("depth", encode_png(pixels), (48, 64))
        assert np.array_equal(decode_map("depth", found.png), grey * 257)
        assert found.range == (0.0, 255.0)


@pytest.mark.parametrize(
    ("kind", "png", "detail"),
    [
        ("depth", b"", "no bytes"),
        ("depth", b"\x89PNG\r\n\x1a\n broken", "the depth map beside the picture cannot be used"),
        ("depth", encode_jpeg(np.zeros((48, 64, 3), np.uint8)), "JPEG"),
        ("depth", encode_png(np.zeros((47, 64), np.uint16)), "64 x 47 pixels, its picture has 64 x 48"),
        ("depth", encode_png(np.random.default_rng(0).integers(0, 9, (48, 64, 3), np.uint8)), "it is coloured"),
        ("normal", encode_png(np.zeros((48, 64), np.uint8)), "8 bits of grey"),
        ("sketch", encode_png(np.zeros((48, 64), np.uint16)), "16 bits of grey"),
    ],
)
def test_a_given_map_that_cannot_be_used_is_a_reject_that_says_why(kind: str, png: bytes, detail: str) -> None:
    reason, said = refused(replace(bare(), given={kind: png}), kind)
    assert reason is Reason.INVALID_MAP
    assert detail in said


def test_distances_of_which_none_is_known_are_a_reject() -> None:
    with pytest.raises(RecordError, match="no pixel has a known distance"):
        read_given("depth", encode_png(np.zeros((48, 64), np.uint16)), (48, 64), "distance")


def test_a_given_map_that_is_not_wanted_is_not_read() -> None:
    normals = encode_png(np.full((48, 64, 3), 128, np.uint8))
    broken = replace(bare(), given={"depth": b"broken", "normal": normals})
    assert draw_maps(broken, ("normal",), Drawing()).maps["normal"].operator == "source"
    assert list(draw_maps(replace(bare(), given={"depth": b"broken"}), ("canny",), Drawing()).maps) == ["canny"]


@pytest.mark.parametrize(
    ("wanted", "reason", "detail"),
    [
        ("depth", Reason.MISSING_MAP, "--model depth=..."),
        ("normal", Reason.MISSING_MAP, "--model depth=..."),
        ("edges", Reason.MISSING_MAP, "--model edges=..."),
        ("pose", Reason.NO_PERSON, "no person's key points"),
        ("segmentation", Reason.NO_SEGMENT, "none found"),
    ],
)
def test_what_neither_source_nor_model_gives_is_a_reject(wanted: str, reason: Reason, detail: str) -> None:
    found, said = refused(replace(bare(), given={}, people=None, segments=()), wanted)
    assert found is reason
    assert detail in said


def test_people_with_too_few_points_are_left_out() -> None:
    few = replace(person(), points=tuple((x, y, float(i < 5)) for i, (x, y, _) in enumerate(person().points)))
    assert enough_points([few, person()], 0.3) == (person(),)
    assert enough_points([few], 5 / 17) == (few,)
    made = draw_maps(replace(bare(), people=(few, person())), ("pose",), Drawing())
    assert made.people == (person(),)
    assert np.array_equal(decode_map("pose", made.maps["pose"].png), draw_people([np.array(person().points)], 64, 48))
    assert refused(replace(bare(), people=(few,)), "pose")[0] is Reason.NO_PERSON


def test_smaller_segments_are_in_front_of_larger_ones() -> None:
    segments = [box_segment("cat", (4, 4, 8, 8)), box_segment("sofa", (0, 0, 30, 30)), box_segment("cup", (6, 6, 2, 2))]
    numbers = number_segments(segments, (48, 64))
    assert (numbers[5, 5], numbers[20, 20], numbers[6, 6], numbers[40, 40]) == (1, 2, 3, 0)
    many = [box_segment("dot", (i % 64, i // 64, 1, 1)) for i in range(300)]
    assert number_segments(many, (48, 64)).max() == 255


def test_a_picture_of_one_colour_has_flat_maps() -> None:
    grey = encode_jpeg(np.full((48, 64, 3), 120, np.uint8))
    made = draw_maps(replace(bare(), image=grey), ("canny", "sketch", "scribble", "lines"), Drawing())
    assert all(found.is_flat for found in made.maps.values())


def test_a_batch_loses_only_what_cannot_be_drawn() -> None:
    broken = replace(bare("b"), given={"depth": b""})
    (batch,) = apply(DrawMaps(("depth",)), [Batch(0, (bare("a"), broken, bare("c")))])
    first, reject, last = batch.records
    assert (first.key, reject.key, last.key) == ("a", "b", "c")
    assert (reject.stage, reject.reason) == ("maps", Reason.INVALID_MAP)
    assert min_max(decode_map("depth", first.maps["depth"].png)).max() == 1


def test_the_same_picture_gives_the_same_bytes() -> None:
    kinds = ("canny", "sketch", "scribble", "lines", "depth", "normal", "pose", "segmentation")
    assert mapped(maps=kinds).maps == mapped(maps=kinds).maps
