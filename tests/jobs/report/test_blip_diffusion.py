"""The report of a BLIP-Diffusion dataset: four pictures of each sample, and its hardest edge."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs.report.cards.blip_diffusion import placed_window, softest_window
from jobs.report.page import write_report
from schemas.example import Placement
from schemas.images import encode_grey
from schemas.rejects import Reason, Reject
from schemas.samples.blip_diffusion import FORMAT, Record
from tests.browser import OpenPage
from tests.datasets import write_dataset
from tests.training.pairs import pair

HOSTILE = '<script>alert(1)</script> & "a dog"'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("report") / "dataset"
    moved = Placement("sky.jpg", 1.25, (3, -2), flip=True)
    pairs = [pair(f"k{i}", size=(120, 80), box=(10 + i, 8, 40, 50), placement=moved) for i in range(7)]
    pairs.append(pair("evil", size=(120, 80), caption=HOSTILE, subject=HOSTILE))
    rejects = [Reject("no", "n", "subject", Reason.MANY_SUBJECTS, "dog (30.0%) and cat (24.0%)")]
    write_dataset(output, [[*pairs, *rejects]], sample_format=FORMAT)
    write_report(str(output))
    return output


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def test_each_sample_shows_its_four_pictures_and_their_hardest_part(page: str) -> None:
    assert re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', page) == []
    assert page.count("data:image/jpeg;base64,") == 4 * 8
    assert page.count("data:image/png;base64,") == 4 * 8
    for name in ("Picture", "Trimap", "Alpha", "Input"):
        assert page.count(f"<i>{name}</i>") == 8
    assert "scaled by 1.25, moved by 3, -2, mirrored, on sky.jpg" in page
    assert "many-subjects" in page
    assert "9 read = 8 written + 1 rejected" in page


def test_text_from_sources_cannot_become_markup(page: str) -> None:
    assert "<script>alert" not in page


def test_the_same_dataset_gives_the_same_page(folder: Path, page: str) -> None:
    assert Path(write_report(str(folder))).read_text(encoding="utf-8") == page


def test_the_softest_window_is_where_most_pixels_are_mixed() -> None:
    alpha = np.zeros((100, 140), np.uint8)
    alpha[20:80, 20:120] = 255
    alpha[60:80, 90:110] = 128
    x, y, w, h = softest_window(alpha)
    assert (w, h) == (48, 48)
    assert x <= 90
    assert x + w >= 110
    assert y <= 60
    assert y + h >= 80
    assert softest_window(np.zeros((30, 200), np.uint8))[2:] == (30, 30)


def test_a_window_moves_with_its_subject() -> None:
    # The subject's box is [10, 8, 40, 50] in 120 x 80; a window of 20 about (50, 33): the middle of its right edge.
    still = Record.from_example(replace(pair("k", size=(120, 80), box=(10, 8, 40, 50))))
    assert placed_window((40, 23, 20, 20), still, (80, 120)) == (40, 23, 20, 20)
    # Mirrored the box begins at 70, and its right edge is the left one; scaled by 1.5 about (90, 33) that lies at 60.
    moved = pair("k", size=(120, 80), box=(10, 8, 40, 50), placement=Placement("b", 1.5, (5, 2), flip=True))
    assert placed_window((40, 23, 20, 20), Record.from_example(moved), (80, 120)) == (55, 25, 20, 20)
    assert placed_window((0, 0, 20, 20), Record.from_example(moved), (80, 120))[1] == 0  # never outside


def test_a_subject_as_small_as_a_pixel_has_a_card(tmp_path: Path) -> None:
    alpha = np.zeros((3, 5), np.uint8)
    alpha[1, 2] = 255
    tiny = replace(pair("k", size=(5, 3)), alpha=encode_grey(alpha), trimap=encode_grey(alpha))
    write_dataset(tmp_path / "tiny", [[tiny]], sample_format=FORMAT)
    assert "<i>Alpha</i>" in Path(write_report(str(tmp_path / "tiny"))).read_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_sample_opens_large_with_the_keyboard(folder: Path, open_page: OpenPage, scheme: str) -> None:
    with open_page(folder / "report.html", viewport={"width": 1200, "height": 900}, color_scheme=scheme) as page:
        page.locator(".gallery .open").first.focus()
        page.keyboard.press("Enter")
        shown = page.locator("dialog[open] .sheet img")
        assert shown.count() == 8
        widths = shown.evaluate_all("images => images.map(i => [i.naturalWidth > 0, i.getBoundingClientRect().width])")
        assert all(loaded and width > 100 for loaded, width in widths)
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Escape")
        assert page.locator("dialog[open]").count() == 0


def test_enlarged_parts_are_pixelated_and_framed_in_their_pictures(folder: Path, open_page: OpenPage) -> None:
    with open_page(folder / "report.html", viewport={"width": 1200, "height": 900}) as page:
        card = page.locator(".gallery .card").first
        assert card.locator(".close").first.evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"
        inside = card.locator(".whole").evaluate_all(
            """parts => parts.map(part => {
                const at = part.querySelector(".at").getBoundingClientRect();
                const whole = part.querySelector("img").getBoundingClientRect();
                return at.left >= whole.left - 1 && at.right <= whole.right + 1
                    && at.top >= whole.top - 1 && at.bottom <= whole.bottom + 1;
            })"""
        )
        assert inside == [True] * 4
