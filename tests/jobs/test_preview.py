"""One picture through each recipe's steps, on a page."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from jobs.preview import links_panel, pictures_in, preview, render, shortened, texts_in, trace, words_of
from jobs.scenes import write_scenes
from jobs.settings import read_config
from pipelines import RECIPES
from schemas.errors import SubjectloomError
from schemas.example import Placement, Quality
from schemas.rejects import Reject
from tests.browser import CHROMIUM, open_page, start_browser
from tests.datasets import example, jpeg
from tests.jobs.conftest import Run
from tests.jobs.report.test_phones import FAULTS
from tests.test_recipes import SETTINGS
from transforms.models.presets import resolve
from transforms.regions.match import MatchPhrases

QUIET = Console(quiet=True)
TWICE = (("a dog", (4, 6, 20, 16)), ("a cat", (30, 6, 20, 16)))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("preview") / "scenes"
    for _ in write_scenes(folder, 4, seed=5, size=256):
        pass
    picture = folder / "images" / "000003.jpg"
    return picture, picture.with_suffix(".txt").read_text()


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_every_recipe_has_a_section_for_each_step(recipe: str, scene: tuple[Path, str]) -> None:
    picture, caption = scene
    config = read_config(RECIPES[recipe].config, None, SETTINGS.get(recipe, []))
    page = preview(recipe, picture, caption, config, resolve("sample", {}), QUIET)
    heads = re.findall(r"<h2[^>]*>\d+\. ([^<]+)</h2>", page)
    assert heads
    assert "What is stored" in page or "Rejected: " in page
    assert page.count("data:image/jpeg;base64,") >= 1
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)  # nothing is loaded from elsewhere


@pytest.fixture(scope="module")
def fastcomposer_page(scene: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "preview.html"
    config = RECIPES["fastcomposer"].config()
    path.write_text(preview("fastcomposer", *scene, config, resolve("sample", {}), QUIET))
    return path


def test_phrases_segments_similarities_and_links_are_shown(fastcomposer_page: Path) -> None:
    page = fastcomposer_page.read_text()
    for title in (
        "phrases",
        "segments",
        "similarity of phrases and segments",
        "links",
        "linked segments, by threshold",
    ):
        assert f"<h3>{title}</h3>" in page
    assert "0.50 (used)" in page
    assert "&#34;subjects&#34;" in page
    stored = json.loads(re.search(r"<pre[^>]*>(.*?)</pre>", page, re.DOTALL)[1].replace("&#34;", '"'))  # type: ignore[index]
    assert stored["subjects"]


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_and_its_pictures_are_seen(fastcomposer_page: Path, width: int) -> None:
    with (
        start_browser() as browser,
        open_page(browser, fastcomposer_page, viewport={"width": width, "height": 800}) as page,
    ):
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.evaluate("document.querySelectorAll('.scroll').forEach(table => table.remove())")
        assert page.evaluate(FAULTS) == []
        sizes = page.evaluate("[...document.images].map(i => [i.clientWidth, i.clientHeight])")
        assert min(min(size) for size in sizes) > 90


def test_a_step_that_rejects_ends_the_page() -> None:
    matched = replace(example("a", TWICE), matches=(), similarity=((0.1, 0.2), (0.3, 0.1)))
    traced = trace([MatchPhrases(0.25), MatchPhrases(0.5), MatchPhrases(0.1)], matched)
    assert [type(step.record) for step in traced] == [type(matched), Reject]
    page = render("fastcomposer", RECIPES["fastcomposer"].config(), matched, traced)
    assert "Rejected: no-match." in page
    assert "the best similarity is 0.300, the threshold 0.500" in page
    assert "What is stored" not in page


def test_links_follow_from_the_threshold() -> None:
    matched = replace(example("a", TWICE), matches=(), similarity=((0.42, 0.2), (0.5, 0.31)))
    panel = links_panel(matched, MatchPhrases(0.35))
    assert panel["heads"] == ["phrase", "0.20", "0.25", "0.30", "0.35 (used)", "0.40", "0.45", "0.50"]
    # Greedily, the cat takes the first segment; the dog is left with the second one.
    assert panel["rows"] == [["a dog", "2", "", "", "", "", "", ""], ["a cat", "1", "1", "1", "1", "1", "1", "1"]]


def test_fields_of_recipes_to_come_are_shown_as_they_are() -> None:
    value = {"depth": jpeg(8, 8), "many": (jpeg(8, 8), b"no picture")}
    assert [name for name, _ in pictures_in("maps", value)] == ["maps depth", "maps many 1"]
    assert dict(texts_in("quality", Quality(0.12345, 1.0, 2.0)))["quality, single"] == "0.1235"
    assert dict(texts_in("p", Placement("sky", flip=True)))["p, flip"] == "True"
    assert list(texts_in("a", np.zeros((2, 3)))) == [("a", "array of 2 x 3")]
    assert words_of("SegmentPictures") == "Segment pictures"
    assert shortened({"a": ["x" * 300, "y"]}) == {"a": [f"{'x' * 40} ... (300 characters)", "y"]}


def test_a_photograph_is_not_shown_to_small_models(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.preview.look_like_photographs", lambda _: True)
    Image.new("RGB", (128, 96), "red").save(tmp_path / "a.jpg")
    config = RECIPES["captioned"].config()
    with pytest.raises(SubjectloomError, match="looks like a photograph"):
        preview("captioned", tmp_path / "a.jpg", "a dog", config, resolve("sample", {}), QUIET, doubts_preset=True)
    command = ("preview", tmp_path / "a.jpg", "a dog", "--recipe", "captioned", "--output", tmp_path / "p.html")
    assert run(*command)[0] == 1
    assert run(*command, "--preset", "sample", "--batch-size", "1")[0] == 0
    assert "a dog" in (tmp_path / "p.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/no/where.jpg", "a dog", "--recipe", "captioned"], "/no/where.jpg: there is no such file"),
        ([__file__, "a dog", "--recipe", "captioned", "--output", "/no/where/p.html"], "there is no folder /no/where"),
        ([__file__, "a dog", "--recipe", "captoned"], "no recipe 'captoned', did you mean 'captioned'"),
        ([__file__, "a dog", "--recipe", "captioned", "--threshold", "1"], "--threshold, a field of"),
        (
            [__file__, "a dog", "--recipe=captioned", "--preset", "sample", "--output", "/tmp/p.html"],
            "test_preview.py: ",
        ),
    ],
)
def test_an_error_is_a_plain_message(run: Run, arguments: list[str], message: str) -> None:
    status, printed = run("preview", *arguments)
    assert status == 1
    assert message in " ".join(printed.split())
    assert len(printed.strip().splitlines()) == 1
