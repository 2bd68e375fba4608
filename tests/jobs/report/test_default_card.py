"""The report of a recipe that has no card of its own: everything comes from the format of its samples."""

import base64
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pytest

from jobs.report import figures
from jobs.report.card import default_card, fill, scalars
from jobs.report.cards import CARDS, card_of
from jobs.report.page import choose_samples, write_report
from schemas.dataset import DatasetInfo, Row
from schemas.example import Example
from schemas.images import decode_image, encode_grey
from schemas.rejects import Reason, Reject
from schemas.samples import FORMATS
from schemas.samples.base import SampleFormat, SampleRecord
from tests.browser import OpenPage
from tests.datasets import example, jpeg, write_dataset
from tests.objects import example_of_objects
from transforms.dataset import read_table

HOSTILE = '<script>alert(1)</script> & "a dog"'
COUNT = 30


class SketchRecord(SampleRecord):
    """A record with a scalar of each kind, and fields that a card cannot show in a line."""

    artist: str
    strokes: int
    darkness: float
    is_signed: bool
    note: str = ""
    tags: list[str]

    @classmethod
    def from_example(cls, example: Example) -> Self:
        number = int(example.key[1:])
        return cls(
            **cls.common_fields(example),
            artist=HOSTILE if number == 3 else "a pencil",
            strokes=7 * number % COUNT,
            darkness=-0.25 if number == 4 else number / COUNT,
            is_signed=number % 2 == 0,
            tags=["sketch", *["rare"] * (number == 5)],
        )

    def columns(self) -> Row:
        return {
            "artist": self.artist,
            "strokes": self.strokes,
            "pixels_drawn": 1000 * self.strokes,
            "darkness": self.darkness,
            "tags": self.tags,
            "widths": [1.5, 2.5],
        }


def sketch(example: Example) -> bytes:
    """The picture in grey, inverted."""
    return encode_grey(255 - decode_image(example.image).mean(axis=-1).astype(np.uint8))


SKETCHES = SampleFormat(
    recipe="sketches",
    record=SketchRecord,
    members={"target.jpg": lambda example: example.image, "pencil_sketch.png": sketch},
    columns=pa.schema(
        [
            ("artist", pa.string()),
            ("strokes", pa.int32()),
            ("pixels_drawn", pa.int64()),
            ("darkness", pa.float32()),
            ("tags", pa.list_(pa.string())),
            ("widths", pa.list_(pa.float64())),
            ("fingerprint", pa.uint64()),
        ]
    ),
    index_only={"fingerprint": lambda example: sum(example.key.encode())},
)
PLAIN = SampleFormat("plain", SampleRecord, {"jpg": lambda example: example.image}, pa.schema([]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    output = tmp_path_factory.mktemp("report") / "dataset"
    reject = Reject("no", "n", "sketch", Reason.EMPTY_IMAGE, HOSTILE)
    pictures = [example(f"k{number}", size=(160, 120)) for number in range(COUNT)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FORMATS, "sketches", SKETCHES)
        write_dataset(output, [[*pictures, reject]], sample_format=SKETCHES)
        write_report(str(output))
        yield output


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def test_every_picture_is_shown_with_its_name_caption_and_scalars(page: str) -> None:
    assert page.count("data:image/jpeg;base64,") == 2 * COUNT
    assert re.findall(r"<i>(.*?)</i>\s*<span class=\"whole\"><img", page) == ["target", "pencil sketch"] * COUNT
    assert page.count('<p class="caption" dir="auto">a dog</p>') == COUNT
    notes = re.findall(r"<ul class=\"notes\">(.*?)</ul>", page, re.DOTALL)
    shown = {tuple(re.findall(r'score">(.*?)</span> <bdi class="label">(.*?)</bdi>', note)) for note in notes}
    assert (("artist", "a pencil"), ("strokes", "28"), ("darkness", "−0.25"), ("is signed", "yes")) in shown
    assert "<h1>Sketches</h1>" in page
    assert "From left to right: target, pencil sketch." in page
    assert 'class="gallery wide"' in page


def test_text_from_sources_cannot_become_markup(page: str) -> None:
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 2


def test_columns_of_the_index_are_drawn_by_their_types(page: str) -> None:
    assert re.findall(r'aria-label="Histogram of ([\w ]+)', page) == ["darkness", "widths", "strokes", "pixels drawn"]
    assert "Darkness: 30 values from −0.25 to 0.97, median 0.48." in page
    assert "Widths: 60 values from 1.50 to 2.50, median 2.00." in page
    assert re.findall(r"<h3>(.*?)</h3>", page) == ["Strokes per sample", "Pixels drawn per sample", "Tags"]
    assert re.findall(r"<bdi>(sketch|rare)</bdi></th>.*?<td class=\"number\">(\d+)<", page, re.DOTALL) == [
        ("sketch", "30"),
        ("rare", "1"),
    ]
    assert ">28,000</span>" in page  # many pixels share a bar of a round width
    assert "ingerprint" not in page  # a hash has no distribution worth drawing
    assert "Strokes per sample</dt><dd>14.50" in page


def test_samples_are_chosen_by_the_first_float_and_the_first_count(folder: Path, page: str) -> None:
    index = read_table(str(folder), "index.parquet")
    groups: dict[str, set[str]] = {}
    for position, group in choose_samples(index, default_card(SKETCHES), 6, seed=0):
        groups.setdefault(group, set()).add(index["key"][position].as_py())
    assert groups["low"] < {"k4", "k0", "k1"}
    assert groups["high"] < {"k27", "k28", "k29"}
    assert groups["many"] < {"k4", "k17", "k21"}
    assert len(groups["random"]) == 3
    assert re.findall(r'data-filter="\w+".*?>([\w ]+) <small>', page) == [
        "All", "At random", "Lowest darkness", "Highest darkness", "Most strokes",
    ]  # fmt: skip


def test_a_format_without_columns_has_no_groups_and_no_sections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, "plain", PLAIN)
    write_dataset(tmp_path / "plain", [[example("a"), example("b")]], sample_format=PLAIN)
    page = Path(write_report(str(tmp_path / "plain"))).read_text(encoding="utf-8")
    assert page.count('<span class="canvas"><img') == 2
    assert 'class="sheet"' not in page
    assert 'class="gallery"' in page
    assert "h-section" not in page
    assert "data-filter" not in page.split("<script>")[0]
    assert 'aria-label="Histogram' not in page
    assert re.findall(r'<li class="note"', page) == []


def test_a_recipe_with_a_card_keeps_it_and_others_have_the_default() -> None:
    assert {card_of(sample_format).title for sample_format in FORMATS.values()} >= {
        "FastComposer", "BLIP-Diffusion", "MIP-Adapter",
    }  # fmt: skip
    assert card_of(FORMATS["mip-adapter"]) is CARDS["mip-adapter"]
    assert card_of(replace(PLAIN, recipe="pix2pix")).title == "Pix2pix"
    assert default_card(FORMATS["mip-adapter"]).score == "single"


def test_hashes_of_the_index_are_not_drawn() -> None:
    card = default_card(FORMATS["mip-adapter"])
    scored = FORMATS["mip-adapter"].pack(example_of_objects("k"))[1]
    columns = FORMATS["mip-adapter"].columns
    index = pa.Table.from_pylist([{name: scored[name] for name in columns.names}], schema=columns)
    values, contents = card.sections(index, DatasetInfo.model_construct())
    assert {measure["x"] for measure in values.measures if measure} == {"scores", "single", "pair", "quality"}
    assert set(contents.panels) == {"Objects per sample", "Names"}
    assert card.count == "objects"


def test_one_picture_is_shown_larger_than_several() -> None:
    large = replace(example("k1"), image=jpeg(900, 600), width=900, height=600)
    sizes = [
        [decode_image(base64.b64decode(shown["address"].partition(",")[2])).shape[1] for shown in card["pictures"]]
        for card in (fill(sample_format, sample_format.pack(large)[0]) for sample_format in (PLAIN, SKETCHES))
    ]
    assert sizes == [[640], [400, 400]]


def test_scalars_are_written_for_people() -> None:
    record = {"key": "k", "width": 3, "text": "", "mask": {"counts": "x"}, "n": 0, "x": -1e-9, "ok": False, "l": [1]}
    assert scalars(record) == [("n", "0"), ("x", "−1e−09"), ("ok", "no")]


@pytest.mark.parametrize(
    ("values", "first", "bars"),
    [([0, 0, 3], "0", 4), ([2, 3], "1", 3), ([1, 1, 1, 99], "1", 24)],
)
def test_small_counts_have_a_bar_each(values: list[int], first: str, bars: int) -> None:
    drawn = figures.number_histogram(np.array(values), "what")
    assert drawn is not None
    assert (drawn["ticks"][0]["text"], len(drawn["bars"])) == (first, bars)
    assert sum(int(bar["title"].split(": ")[1]) for bar in drawn["bars"]) == len(values)


def test_large_and_negative_numbers_share_bars_of_a_round_width() -> None:
    drawn = figures.number_histogram(np.arange(-3000, 3000, 10), "what")
    assert drawn is not None
    texts = [tick["text"] for tick in drawn["ticks"]]
    assert texts[0] == "−3,000"
    assert len(drawn["bars"]) == 30
    assert all(bar["title"].endswith(": 20") for bar in drawn["bars"])
    assert figures.number_histogram(np.array([], np.int64), "what") is None


def test_nan_and_infinity_are_left_out_of_a_histogram() -> None:
    drawn = figures.score_histogram(np.array([0.5, np.nan, np.inf, 0.7]), "what")
    assert drawn is not None
    assert drawn["summary"] == "2 values from 0.50 to 0.70, median 0.60."
    assert figures.score_histogram(np.array([np.nan]), "what") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_pictures_stand_side_by_side_and_the_page_fits(
    folder: Path, open_page: OpenPage, scheme: str, width: int
) -> None:
    options: dict[str, Any] = {"color_scheme": scheme, "viewport": {"width": width, "height": 900}}
    with open_page(folder / "report.html", **options) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        target, drawn = page.locator(".gallery .card").first.locator(".whole img").all()
        left, right = target.bounding_box(), drawn.bounding_box()
        assert left is not None
        assert right is not None
        assert left["y"] == right["y"]
        assert left["x"] + left["width"] <= right["x"]
        assert left["width"] / left["height"] == pytest.approx(160 / 120, abs=0.02)
        page.locator(".gallery .open").first.click()
        assert page.locator("dialog[open] .more dt", has_text="Darkness").is_visible()
        assert page.locator("dialog[open] .sheet img").evaluate_all("i => i.every(i => i.naturalWidth > 100)")
