"""Parts of cards: thumbnails, outlines, captions cut at their phrases."""

import base64
import io
import re

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from jobs.report.parts import (
    THUMBNAIL,
    caption_pieces,
    common_fields,
    data_address,
    drawing_size,
    outline,
    region,
    thumbnail,
)
from schemas.masks import Mask
from schemas.samples.fastcomposer import Record
from tests.datasets import box_mask, example, jpeg

RING = box_mask(20, 10, (2, 1, 8, 8)) & ~box_mask(20, 10, (4, 3, 4, 4))


def rings(path: str) -> list[NDArray[np.int_]]:
    """The corners of each ring of a path of relative steps, [N, 2] int (x, y)."""
    assert re.fullmatch(r"(M\d+ \d+l[-\d ]+z)*", path)
    parts = [[int(n) for n in re.findall(r"-?\d+", ring)] for ring in path.split("z")[:-1]]
    return [np.array(numbers).reshape(-1, 2).cumsum(axis=0) for numbers in parts]


def area(ring: NDArray[np.int_]) -> float:
    """The area inside a ring: Gauss's formula."""
    x, y = ring.T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def opened(address: str) -> Image.Image:
    head, _, body = address.partition(",")
    picture = Image.open(io.BytesIO(base64.b64decode(body)))
    assert head == f"data:image/{str(picture.format).lower()};base64"
    return picture


# Pictures.


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [((900, 600), THUMBNAIL, (640, 427)), ((300, 1200), 100, (25, 100)), ((64, 48), THUMBNAIL, (64, 48))],
)
def test_a_thumbnail_is_no_larger_than_its_side(size: tuple[int, int], side: int, expected: tuple[int, int]) -> None:
    address, stored = thumbnail(jpeg(*size), side)
    assert opened(address).size == stored == expected


def test_a_transparent_or_grey_picture_has_a_thumbnail() -> None:
    for mode in ("RGBA", "L", "P"):
        stream = io.BytesIO()
        Image.new(mode, (8, 6)).save(stream, "PNG")
        assert opened(thumbnail(stream.getvalue())[0]).mode == "RGB"


def test_a_png_in_a_data_address_keeps_its_pixels() -> None:
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    np.testing.assert_array_equal(np.asarray(opened(data_address(Image.fromarray(pixels), "PNG"))), pixels)


@pytest.mark.parametrize(
    ("picture", "drawing"),
    [((640, 480), (1280, 960)), ((3000, 6000), (640, 1280)), ((1, 1), (1280, 1280)), ((9000, 1), (1280, 1))],
)
def test_a_drawing_has_the_proportions_of_its_picture(picture: tuple[int, int], drawing: tuple[int, int]) -> None:
    assert drawing_size(picture) == drawing


# Outlines.


def test_the_outline_of_a_box_runs_along_its_edges() -> None:
    mask = Mask.from_array(box_mask(20, 10, (4, 2, 10, 6)))
    path, (x, y) = outline(mask, (200, 100))
    (ring,) = rings(path)
    # Half a pixel, 5 units, is cut off at each corner.
    corners = {(45, 20), (135, 20), (140, 25), (140, 75), (135, 80), (45, 80), (40, 75), (40, 25)}
    assert {(int(x), int(y)) for x, y in ring} == corners
    assert 4 / 20 * 100 < x < 14 / 20 * 100
    assert 2 / 10 * 100 < y < 8 / 10 * 100
    assert min(y - 20, 80 - y) >= 20  # not beside its border


def test_a_hole_has_a_ring_of_its_own_and_the_point_is_not_in_it() -> None:
    path, (x, y) = outline(Mask.from_array(RING), (200, 100))
    outer, inner = sorted(map(area, rings(path)), reverse=True)
    assert outer == pytest.approx(80 * 80, rel=0.02)
    assert inner == pytest.approx(40 * 40, rel=0.05)
    assert RING[int(y / 100 * 10), int(x / 100 * 20)]


def test_a_mask_at_the_border_of_its_picture_is_closed() -> None:
    path, (x, y) = outline(Mask.from_array(np.ones((10, 20), bool)), (200, 100))
    (ring,) = rings(path)
    assert area(ring) == pytest.approx(200 * 100, rel=0.02)
    assert ring.min() == 0
    assert ring.max(axis=0).tolist() == [200, 100]
    assert abs(y - 50) <= 10
    assert 20 <= x <= 80


def test_parts_of_a_mask_have_a_ring_each() -> None:
    both = box_mask(40, 20, (2, 2, 6, 6)) | box_mask(40, 20, (20, 4, 10, 10))
    path, _ = outline(Mask.from_array(both), (400, 200))
    assert sorted(map(area, rings(path))) == pytest.approx([3600, 10000], rel=0.03)


def test_a_line_one_pixel_wide_in_a_large_picture_is_drawn() -> None:
    path, (x, _) = outline(Mask.from_array(box_mask(2000, 1000, (700, 100, 1, 800))), (1280, 640))
    (ring,) = rings(path)
    assert ring[:, 1].max() - ring[:, 1].min() == pytest.approx(800 * 0.64, abs=8)
    assert x == pytest.approx(35, abs=0.3)


def test_an_empty_mask_has_no_outline() -> None:
    assert outline(Mask.from_array(np.zeros((10, 20), bool)), (200, 100)) == ("", (50.0, 50.0))


# Captions and regions.


def test_a_caption_is_cut_at_its_phrases() -> None:
    pieces = list(caption_pieces("a dog and a cat", [(10, 15), (0, 5)], {0: 8, 1: 1}))
    assert [(piece["text"], piece["phrase"], piece["region"]) for piece in pieces] == [
        ("", False, None), ("a dog", True, 1), (" and ", False, None), ("a cat", True, 8), ("", False, None),
    ]  # fmt: skip
    assert [(piece["number"], piece["colour"]) for piece in pieces if piece["phrase"]] == [(2, "c1"), (9, "c0")]


def test_a_phrase_without_a_region_is_marked_and_has_no_number() -> None:
    (_, piece, _) = caption_pieces("a dog", [(0, 5)], {})
    assert piece == {"text": "a dog", "phrase": True, "region": None}


@pytest.mark.parametrize(
    ("spans", "marked"),
    [
        ([(0, 5), (2, 7)], ["a dog"]),
        ([(2, 7), (0, 5)], ["a dog"]),
        ([(0, 5), (0, 7)], ["a dog"]),
        ([(0, 5), (5, 9)], ["a dog", " and"]),
        ([(3, 3), (10, 99), (-2, 3)], []),
        ([(10, 15)], ["a cat"]),
    ],
)
def test_the_pieces_are_the_caption_whatever_the_spans(spans: list[tuple[int, int]], marked: list[str]) -> None:
    pieces = list(caption_pieces("a dog and a cat", spans, {}))
    assert "".join(piece["text"] for piece in pieces) == "a dog and a cat"
    assert [piece["text"] for piece in pieces if piece["phrase"]] == marked


def test_a_region_has_number_colour_and_share() -> None:
    mask = Mask.from_array(box_mask(40, 20, (4, 2, 10, 6)))
    shown = region(9, text="a dog", bbox=(4, 2, 10, 6), area=60, mask=mask, drawing=(1280, 640))
    assert (shown["index"], shown["number"], shown["colour"], shown["text"]) == (9, 10, "c1", "a dog")
    assert (shown["bbox"], shown["area"], shown["share"]) == ("4, 2, 10, 6", 60, "7.5%")
    assert (shown["outline"], shown["at"]) == outline(mask, (1280, 640))


def test_every_card_shows_key_size_source_and_licence() -> None:
    record = Record.from_example(example("k1", size=(64, 48), license="CC BY 4.0"))
    assert common_fields(record) == {
        "key": "k1", "stored": (64, 48), "source": "pictures/k1.jpg", "license": "CC BY 4.0",
    }  # fmt: skip
