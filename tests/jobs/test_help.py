"""What the command says of itself: examples that parse, the fields of a recipe, shell completion."""

import shlex
import sys
from typing import cast

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from jobs.arguments import expand_arguments, split_arguments
from jobs.examples import EXAMPLES, add_to_help
from jobs.main import app, main
from pipelines import RECIPES
from tests.jobs.conftest import Run

GROUP = cast("TyperGroup", get_command(app))


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_every_example_is_one_that_the_command_takes(line: str) -> None:
    program, *arguments = shlex.split(line)
    name, *rest = expand_arguments(split_arguments(arguments)[0], GROUP)
    assert program == "subjectloom"
    assert line in EXAMPLES[name]
    with GROUP.make_context("subjectloom", [], resilient_parsing=True) as parent:
        GROUP.commands[name].make_context(name, rest, parent=parent)


def test_a_wrong_example_would_be_found() -> None:
    with (
        pytest.raises(Exception, match="No such option"),
        GROUP.make_context("subjectloom", [], resilient_parsing=True) as parent,
    ):
        GROUP.commands["sample"].make_context("sample", ["out", "small", "--cuont", "3"], parent=parent)


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_shows_examples_unbroken(run: Run, option: str) -> None:
    assert "Commands:" in run(option)[1]
    status, printed = run("filter", option)
    assert status == 0
    for line in EXAMPLES["filter"]:
        assert line in printed


@pytest.mark.parametrize("command", ["build", "preview", "train"])
def test_help_with_a_recipe_lists_its_fields(run: Run, command: str) -> None:
    named = ["--recipe", "fastcomposer"] if command == "preview" else ["fastcomposer"]
    printed = run(command, *named, "--help")[1]
    assert "Fields of fastcomposer, each of which is an option:" in printed
    field = "--localization-weight" if command == "train" else "--min-area"
    assert f"  {field}  float" in printed or f"  {field}  " in printed
    assert "Fields of" not in run(command, "--help")[1]


def test_all_fields_of_a_recipe_are_in_its_help() -> None:
    for name, recipe in RECIPES.items():
        add_to_help(GROUP, ["build", name, "-h"])
        epilog = GROUP.commands["build"].epilog or ""
        assert all(f"  --{field.replace('_', '-')}  " in epilog for field in recipe.config.model_fields)


def complete(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    words = line.split(" ")
    monkeypatch.setenv("_SUBJECTLOOM_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    monkeypatch.setattr(sys, "argv", ["subjectloom"])
    monkeypatch.setattr("logging.disable", lambda _: None)
    with pytest.raises(SystemExit):
        main()
    return capsys.readouterr().out.split()


def test_a_shell_completes_commands_recipes_and_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert complete("subjectloom fil", monkeypatch, capsys) == ["filter"]
    assert complete("subjectloom build fast", monkeypatch, capsys) == ["fastcomposer"]
    assert complete("subjectloom preview a b --recipe mip", monkeypatch, capsys) == ["mip-adapter"]
    assert complete("subjectloom sample out small --cou", monkeypatch, capsys) == ["--count"]
    assert "--show-completion" in (
        run_help := GROUP.get_help(GROUP.make_context("subjectloom", [], resilient_parsing=True))
    )
    assert "--install-completion" in run_help
