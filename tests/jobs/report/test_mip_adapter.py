"""The report of a MIP-Adapter dataset: objects with boxes and masks, quality and cut."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.inspect import inspect
from jobs.report.cards.mip_adapter import CARD, fill
from jobs.report.figures import score_histogram, signed
from jobs.report.page import Tables, choose_samples, render, write_report
from jobs.scenes import scene_of
from schemas.example import Example, Quality
from schemas.rejects import Reason, Reject
from schemas.samples.mip_adapter import FORMAT
from tests.browser import OpenPage
from tests.datasets import write_dataset
from tests.objects import TWO, example_of_objects
from transforms.dataset import read_info, read_table
from transforms.scenes.truth import true_example

HOSTILE = '<script>alert(1)</script> & "a dog"'


def scenes(count: int) -> Iterator[Example]:
    """Scenes whose objects have their true masks and boxes; the quality falls from scene to scene."""
    for index in range(count):
        example = true_example(scene_of(31, index, 128), f"{index:06d}")
        if len(example.objects) >= 2:
            objects = tuple(replace(thing, score=0.8, similarity=0.7) for thing in example.objects)
            yield replace(example, objects=objects, quality=Quality(0.7, -0.01 * index, 0.7 - 0.01 * index))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("report") / "dataset"
    evil = example_of_objects("evil", ((HOSTILE, TWO[0][1]), TWO[1]), license=HOSTILE)
    reject = Reject("no", "n", "objects", Reason.NO_SUBJECT, HOSTILE)
    write_dataset(output, [[*scenes(16), evil, reject]], sample_format=FORMAT)
    write_report(str(output))
    return output


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_dataset_is_inspected_and_reported(folder: Path, page: str) -> None:
    inspection = inspect(str(folder))
    assert inspection.problems == ()
    written = inspection.info.counts.written
    assert re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', page) == []
    assert page.count("data:image/jpeg;base64,") == written
    assert f"{written + 1} read = {written} written + 1 rejected" in page
    for words in ("Objects per sample", "Lowest quality", "Highest quality", "no-subject", "By name"):
        assert words in page
    numbers = [index for index in range(16) if f">{index:06d}<" in page]
    assert len(numbers) == written - 1  # all but the one written by hand
    for number in numbers:
        assert f"<b>S {0.7 - 0.01 * number:.2f}</b> from single 0.70 and pair" in page


def test_text_from_sources_cannot_become_markup(page: str) -> None:
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3


def test_the_same_dataset_gives_the_same_page(folder: Path, page: str) -> None:
    assert Path(write_report(str(folder))).read_text(encoding="utf-8") == page


def test_a_dataset_without_samples_has_a_page(tmp_path: Path) -> None:
    write_dataset(tmp_path / "none", [[Reject("a", "a", "read", Reason.EMPTY_IMAGE, "")]], sample_format=FORMAT)
    assert "No sample was written" in Path(write_report(str(tmp_path / "none"))).read_text()


def test_a_card_ties_each_phrase_to_its_object() -> None:
    card = fill(FORMAT.pack(example_of_objects("k", scores=(0.71, 0.82), similarity=-0.001))[0])
    first, second = card["regions"]
    assert (card["drawing"], first["frame"], second["frame"]) == (
        (1280, 960),
        [160, 160, 480, 560],
        [720, 240, 400, 480],
    )
    assert [(o["text"], o["name"], o["score"], o["bbox"]) for o in card["regions"]] == [
        ("a red dog", "dog", "0.71", "20, 20, 60, 70"),
        ("a cat", "cat", "0.82", "90, 30, 50, 60"),
    ]
    # The middle of the ellipse, in per cent.
    np.testing.assert_allclose(second["at"], (100 * 115 / 160, 100 * 60 / 120), atol=1)
    pieces = [(piece["text"], piece["region"]) for piece in card["pieces"] if piece["text"]]
    assert pieces == [("a red dog", 0), (" and ", None), ("a cat", 1)]
    assert (card["single"], card["pair"], card["quality"]) == ("0.00", "−0.25", "−0.25")


def test_two_objects_of_one_phrase_share_its_place_in_the_caption() -> None:
    example = example_of_objects("k")
    twins = replace(example, objects=tuple(replace(thing, phrase=0) for thing in example.objects))
    card = fill(FORMAT.pack(twins)[0])
    assert len(card["regions"]) == 2
    assert "".join(piece["text"] for piece in card["pieces"]) == example.caption
    assert [piece["region"] for piece in card["pieces"] if piece["region"] is not None] == [0]


@pytest.mark.parametrize(
    ("config", "is_marked"),
    [
        ({}, False),
        ({"best": None, "min_quality": None}, False),
        ({"best": 9}, True),
        ({"best": 10_000}, False),
        ({"min_quality": -1.0}, True),
    ],
)
def test_the_cut_is_drawn_if_there_was_one(folder: Path, config: dict[str, Any], is_marked: bool) -> None:
    info = read_info(str(folder)).model_copy(update={"config": config})
    index, rejects = read_table(str(folder), "index.parquet"), read_table(str(folder), "rejects.parquet")
    found = re.findall(
        r"cut at ([−.0-9]+)", render(info, Tables(index, rejects, len(index), len(rejects)), [], CARD, 0)
    )
    lowest = min(index["quality"].to_pylist())
    assert found == ([f"{lowest:g}"] if is_marked else [])


def test_the_best_and_the_worst_are_groups(folder: Path) -> None:
    index = read_table(str(folder), "index.parquet")
    chosen = choose_samples(index, CARD, 6, seed=0)
    order = np.argsort(index["quality"].to_numpy()).tolist()
    groups = {group: position for position, group in chosen if group != "random"}
    assert groups["low"] in order[:2]
    assert groups["high"] in order[-2:]


def test_negative_numbers_have_a_minus_sign_and_zero_has_none() -> None:
    assert [signed(v, ".2f") for v in (-0.5, -0.001, 0.0, 1.25)] == ["−0.50", "0.00", "0.00", "1.25"]
    drawn = score_histogram(np.array([-0.5, -0.2, 0.1]), "what", -0.5, "cut at")
    assert drawn is not None
    assert drawn["marks"][0]["text"] == "cut at −0.5"
    assert drawn["summary"] == "3 values from −0.50 to 0.10, median −0.20."
    assert not any("-" in tick["text"] for tick in drawn["ticks"])


def test_boxes_are_drawn_at_the_record_s_positions_and_can_be_switched_off(folder: Path, open_page: OpenPage) -> None:
    with open_page(folder / "report.html", viewport={"width": 1200, "height": 900}) as page:
        card = page.locator('.gallery .card[aria-label="Sample evil"]')
        places = card.locator(".canvas").evaluate(
            """canvas => {
                const whole = canvas.getBoundingClientRect();
                return [...canvas.querySelectorAll("use.box:not(.casing)")].map(box => {
                    const at = box.getBoundingClientRect();
                    return [at.left - whole.left, at.top - whole.top, at.width, at.height].map(
                        (value, i) => value / (i % 2 ? whole.height : whole.width));
                });
            }"""
        )
        expected = [[x / 160, y / 120, w / 160, h / 120] for _, (x, y, w, h) in TWO]
        np.testing.assert_allclose(sorted(places), sorted(expected), atol=0.015)
        assert card.locator("use.box").first.is_visible()
        page.locator('#samples > .tools [data-layer="boxes"]').click()
        assert not card.locator("use.box").first.is_visible()
        assert card.locator("use.line").first.is_visible()


def test_a_phrase_lights_its_object(folder: Path, open_page: OpenPage) -> None:
    with open_page(folder / "report.html", viewport={"width": 1200, "height": 900}) as page:
        phrase = page.locator(".gallery .phrase").first
        phrase.hover()
        lit = page.locator(".gallery .card.lit .on")
        tags = {tag for (tag,) in lit.evaluate_all("parts => parts.map(p => [p.tagName.toLowerCase()])")}
        assert {"mark", "g", "b", "li"} <= tags


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(folder: Path, open_page: OpenPage, scheme: str) -> None:
    with open_page(folder / "report.html", viewport={"width": 390, "height": 800}, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.locator(".gallery .open").first.click()
        assert page.locator("dialog[open] .quality").is_visible()
        assert page.evaluate("document.querySelector('dialog').scrollWidth <= innerWidth")
