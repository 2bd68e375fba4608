import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.tables import HEAD, HEADLINE, NAMES, Row, machine, replace_headline, replace_section, report, section

ROWS = [Row("frames per second", "12.5", "at least 10"), Row("a | b", "3")]


def test_a_section_by_hand() -> None:
    text = section("speed", "How fast it is,\nin short.\n\nDetails.", "python -m benchmarks.speed --count 5", ROWS)
    assert text.splitlines() == [
        "## speed",
        "",
        "How fast it is, in short.",
        "",
        f"`python -m benchmarks.speed --count 5` on {machine()}",
        "",
        "| figure | value | |",
        "| --- | --- | --- |",
        "| frames per second | 12.5 | at least 10 |",
        "| a \\| b | 3 |  |",
    ]


def test_a_section_is_replaced_and_the_others_stay() -> None:
    text = HEAD
    for name in ("best_k", "accuracy", "speed"):
        text = replace_section(text, name, f"old {name}")
    text = replace_section(text, "speed", "new speed")
    assert text == HEAD + "".join(
        f"\n<!-- {name} -->\n{content}\n<!-- /{name} -->\n"
        for name, content in (("accuracy", "old accuracy"), ("speed", "new speed"), ("best_k", "old best_k"))
    )
    assert replace_section(text, "speed", "new speed") == text


def test_figures_are_printed_and_written_only_with_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "README.md"
    monkeypatch.setattr(sys, "argv", ["speed.py", "--count", "5", "--write"])
    report("speed", "How fast.", ROWS, write=False, path=path)
    assert capsys.readouterr().out.splitlines() == ["frames per second  12.5  at least 10", "a | b                 3"]
    assert not path.exists()
    report("speed", "How fast.", ROWS, write=True, path=path)
    text = path.read_text()
    assert text.startswith(HEAD)
    assert "`python -m benchmarks.speed --count 5` on " in text


def test_the_machine_is_described_in_a_line() -> None:
    line = machine()
    assert "\n" not in line
    assert "cores" in line
    assert "torch 2" in line


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_of_the_list_is_a_module(name: str) -> None:
    assert find_spec(f"benchmarks.{name}") is not None


def test_every_module_is_in_the_list() -> None:
    modules = {path.stem for path in Path(__file__).parents[2].joinpath("benchmarks").glob("*.py")}
    helpers = {"claims_data", "claims_drawing", "depth_reader", "map_measures"}
    assert modules - helpers - {"__init__", "__main__", "memory", "tables"} == set(NAMES)


def test_the_project_s_readme_shows_figures_of_the_sections() -> None:
    text = HEAD
    for (name, row), number in zip(HEADLINE, ("0.892", "0.814", "0.994"), strict=False):
        rows = [Row("another row", "9"), Row(row, number)]
        old = text.partition(f"<!-- {name} -->\n")[2].partition("\n<!-- /")[0]
        text = replace_section(text, name, old + "\n" + section(name, "What.", "command", rows))
    titles = list(HEADLINE.values())
    front = "# Title\n\n<!-- figures -->\nold\n<!-- /figures -->\n\nMore.\n"
    filled = replace_headline(front, text)
    assert filled == (
        "# Title\n\n<!-- figures -->\n| | |\n| --- | --- |\n"
        f"| {titles[0]} | 0.892 |\n| {titles[1]} | 0.814 |\n| {titles[2]} | 0.994 |\n<!-- /figures -->\n\nMore.\n"
    )
    assert replace_headline(filled, text) == filled
