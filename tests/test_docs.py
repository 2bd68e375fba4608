"""The pages of the recipes: what they say to type works, and the fields that they name exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import RECIPES
from tests.jobs.conftest import Run, run  # noqa: F401 - a fixture
from tests.paths import ROOT

PAGES = {path.stem: path for path in sorted((ROOT / "docs" / "recipes").glob("*.md"))}


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the commands of a page, as a shell passes them on; `"$(cat FILE)"` is the text of a file."""
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            words = shlex.split(line)
            read = (re.fullmatch(r"\$\(cat (.+)\)", word) for word in words)
            yield [Path(match[1]).read_text() if match else word for match, word in zip(read, words, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", list(PAGES))
def test_the_commands_of_a_page_work(
    recipe: str,
    run: Run,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    count = 0
    for program, *arguments in commands(PAGES[recipe]):
        assert program == "subjectloom"
        status, printed = run(*arguments)
        assert status == 0, (arguments, printed)
        count += 1
    assert count >= 4


@pytest.mark.parametrize("recipe", list(PAGES))
def test_a_page_names_fields_that_exist_and_has_a_picture(recipe: str) -> None:
    text = PAGES[recipe].read_text(encoding="utf-8")
    table = text.partition("## What to tune")[2]
    named = [name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]
    assert len(named) >= 3
    assert set(named) <= RECIPES[recipe].config.model_fields.keys()
    (picture,) = re.findall(r"!\[.{20,}\]\((\S+)\)", text)
    assert (PAGES[recipe].parent / picture).stat().st_size < 120_000
    for link in re.findall(r"\]\((\.\./\S+?)\)", text):
        assert (PAGES[recipe].parent / link).resolve().exists()


def test_the_readme_names_every_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(PAGES) <= set(re.findall(r"docs/recipes/([\w-]+)\.md", text))
    assert {"fastcomposer", "blip-diffusion", "mip-adapter", "captioned"} <= set(PAGES)
