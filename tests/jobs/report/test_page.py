"""The report: its contents, and its behaviour in a real browser."""

import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs.report.cards import CARDS
from jobs.report.figures import choose
from jobs.report.page import Tables, choose_samples, render, write_report
from schemas.dataset import REJECT_COLUMNS
from schemas.errors import InputError
from schemas.example import Example, Phrase
from schemas.rejects import Reason, Reject
from schemas.samples.fastcomposer import FORMAT
from tests.browser import OpenPage
from tests.datasets import example, write_dataset
from tests.paths import ROOT
from transforms.dataset import read_info

CSS = (ROOT / "jobs" / "report" / "templates" / "report.css").read_text()
HOSTILE = '<script>alert(1)</script> & "a dog" \u202e😀'


def hostile(key: str) -> Example:
    """An example whose caption, source and licence try to break out of the page."""
    caption = f"a dog and {HOSTILE}"
    return replace(
        example(key, license=HOSTILE),
        caption=caption,
        source_caption=caption,
        phrases=(Phrase("a dog", 0, 5, "dog", (0, 5)),),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("report") / "dataset"
    two = (("a dog", (4, 6, 20, 16)), ("a red cat", (34, 10, 20, 30)))
    samples = [example(f"k{i}", two) for i in range(8)]
    samples[2] = replace(samples[2], source_caption="two things, a dog and a cat")
    rejects = [
        Reject("bad", HOSTILE, "read", Reason.EMPTY_IMAGE, HOSTILE),
        Reject("no", "n", "matches", Reason.NO_MATCH, "low"),
    ]
    write_dataset(output, [[*samples, hostile("evil"), *rejects]])
    write_report(str(output))
    return output


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def test_of_a_long_dataset_some_rows_are_drawn_and_all_are_counted(
    folder: Path, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.report.page.ROWS", 1)
    try:
        short = Path(write_report(str(folder))).read_text(encoding="utf-8")
    finally:
        (folder / "report.html").write_text(page, encoding="utf-8")
    assert "Drawn from" not in page
    assert "Drawn from 1 of the 9 samples" in short
    assert "11 read = 9 written + 2 rejected." in short
    for reason in ("empty-image", "no-match"):
        assert f'<span class="reason">{reason}</span>' in short


def test_the_page_loads_nothing_and_shows_the_counts(page: str) -> None:
    assert re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', page) == []
    assert page.count("data:image/jpeg;base64,") == 9
    assert "The counts add up." in page
    assert "11 read = 9 written + 2 rejected" in page


def test_text_from_sources_cannot_become_markup(page: str) -> None:
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/") >= 3


def test_rejects_are_listed_by_reason_with_examples(page: str) -> None:
    assert "empty-image" in page
    assert "no-match" in page
    assert '<code class="key">bad</code>' in page


def test_the_caption_before_expansion_is_shown_where_it_differs(page: str) -> None:
    assert page.count("Before expansion") == 1
    assert "two things, a dog and a cat" in page


def test_the_same_dataset_gives_the_same_page(folder: Path, page: str) -> None:
    assert Path(write_report(str(folder))).read_text(encoding="utf-8") == page


def test_a_dataset_without_samples_has_a_page(tmp_path: Path) -> None:
    write_dataset(tmp_path / "none", [[Reject("a", "a", "read", Reason.EMPTY_IMAGE, "")]])
    page = Path(write_report(str(tmp_path / "none"))).read_text()
    assert "No sample was written" in page


def test_a_folder_without_a_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no dataset"):
        write_report(str(tmp_path))


def test_a_hundred_thousand_samples_are_reported_within_seconds(folder: Path) -> None:
    count = 100_000
    rng = np.random.default_rng(0)
    subjects = rng.integers(1, 5, count)
    columns = {
        "key": [f"{i:09d}" for i in range(count)],
        "subjects": subjects,
        "score_min": rng.random(count),
        "scores": np.split(rng.random(subjects.sum()), np.cumsum(subjects)[:-1]),
        "labels": [["person"] * n for n in subjects],
    }
    index = pa.table(
        {
            name: pa.array(values, FORMAT.columns.field(name).type if name != "key" else None)
            for name, values in columns.items()
        }
    )
    started = time.process_time()
    card = CARDS["fastcomposer"]
    chosen = choose_samples(index, card, 60, seed=0)
    page = render(read_info(str(folder)), Tables(index, REJECT_COLUMNS.empty_table(), len(index), 0), [], card, 0)
    assert time.process_time() - started < 10
    assert len(chosen) == len({position for position, _ in chosen}) == 60
    assert {group for _, group in chosen} == {"low", "high", "many", "random"}
    assert len(page) < 200_000


def test_the_choice_does_not_depend_on_the_order() -> None:
    keys = [f"k{i}" for i in range(500)]
    rng = np.random.default_rng(1)
    scores, subjects = rng.random(500), rng.integers(1, 6, 500)
    shuffled = rng.permutation(500)
    chosen = {(keys[i], group) for i, group in choose(keys, scores, subjects, 40, seed=3)}
    from_shuffled = choose([keys[i] for i in shuffled], scores[shuffled], subjects[shuffled], 40, seed=3)
    assert chosen == {(keys[shuffled[i]], group) for i, group in from_shuffled}
    assert chosen != {(keys[i], group) for i, group in choose(keys, scores, subjects, 40, seed=4)}


def luminance(color: str) -> float:
    """Relative luminance of #rgb or #rrggbb: WCAG 2.2, "relative luminance"."""
    digits = color.lstrip("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(ink: str, ground: str) -> float:
    light, dark = sorted((luminance(ink), luminance(ground)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_text_can_be_read_in_light_and_in_dark() -> None:
    colors = {name: pair for name, *pair in re.findall(r"--(\w+): light-dark\((#\w+), (#\w+)\)", CSS)}
    for ink in ("ink", "muted", "accent", "warn"):
        for ground in ("paper", "surface"):
            for scheme in (0, 1):
                assert contrast(colors[ink][scheme], colors[ground][scheme]) >= 4.5, (ink, ground, scheme)
    numbers = re.findall(r"--hue: (#\w+); --on: (#\w+)", CSS)
    assert len(numbers) == 8
    assert min(contrast(hue, on) for hue, on in numbers) >= 4.5


def test_a_phrase_lights_its_mask_and_the_reverse(folder: Path, open_page: OpenPage) -> None:
    with open_page(folder / "report.html") as page:
        phrase = page.locator(".gallery .phrase").first
        phrase.hover()
        card = page.locator(".gallery .card.lit")
        assert card.count() == 1
        number = phrase.get_attribute("data-subject")
        lit = card.locator(".on").evaluate_all("parts => parts.map(p => [p.tagName.toLowerCase(), p.dataset.subject])")
        assert {subject for _, subject in lit} == {number}
        assert {"mark", "g", "b", "li"} <= {tag for tag, _ in lit}


def test_the_gallery_is_used_with_the_keyboard_alone(folder: Path, open_page: OpenPage) -> None:
    with open_page(folder / "report.html", viewport={"width": 1200, "height": 900}) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.locator(".gallery .open").first.focus()
        first = page.evaluate("document.activeElement.getAttribute('aria-label')")
        page.keyboard.press("ArrowRight")
        second = page.evaluate("document.activeElement.getAttribute('aria-label')")
        assert first != second
        page.keyboard.press("Enter")
        assert page.locator("dialog[open]").count() == 1
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Escape")
        assert page.locator("dialog[open]").count() == 0
        # A dialog's close event comes a moment after it is closed.
        page.wait_for_function("last => document.activeElement.getAttribute('aria-label') !== last", arg=second)
        assert page.evaluate("document.activeElement.className") == "open"
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") not in {first, second}


def test_layers_can_be_switched_off_and_on(folder: Path, open_page: OpenPage) -> None:
    with open_page(folder / "report.html") as page:
        button = page.locator('#samples > .tools [data-layer="masks"]')
        assert button.get_attribute("aria-pressed") == "true"
        button.click()
        assert button.get_attribute("aria-pressed") == "false"
        assert "no-masks" in (page.locator("#samples").get_attribute("class") or "")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_it_fits_the_screen_in_light_and_dark(
    folder: Path, open_page: OpenPage, tmp_path: Path, scheme: str, width: int
) -> None:
    with open_page(folder / "report.html", color_scheme=scheme, viewport={"width": width, "height": 900}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        channels = [int(value) for value in re.findall(r"\d+", ground)[:3]]
        assert (np.mean(channels) > 200) == (scheme == "light")
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        assert (tmp_path / "page.png").stat().st_size > 10_000
