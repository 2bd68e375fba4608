"""The command that lists recipes and their fields."""

from typing import Literal

import pytest
from pydantic import BaseModel, Field

from jobs.recipes import fields_of, summary
from pipelines import RECIPES
from tests.jobs.conftest import Run
from training.recipes import training_of


class Config(BaseModel):
    count: int = Field(default=3, ge=1, le=9, description="of things")
    share: float | None = Field(default=None, gt=0.5, description="none: the preset's")
    mode: Literal["a", "b"] | None = "a"
    scale: tuple[float, float] = (1.0, 2.0)
    folder: str = ""
    names: tuple[str, ...] = ("a", "b")
    flags: tuple[Literal["a", "b"], ...] | None = None
    fast: bool = True


def test_a_field_has_a_default_its_values_and_a_meaning() -> None:
    assert list(fields_of(Config, {"sample": {"count": 1}, "hub": {"mode": "b"}})) == [
        ("count", "3; sample: 1", "int >= 1 and <= 9", "of things"),
        ("share", "none", "float > 0.5", "none: the preset's"),
        ("mode", "a; hub: b", "a | b", ""),
        ("scale", "1.0,2.0", "float,float", ""),
        ("folder", '""', "str", ""),
        ("names", "a,b", "list of str", ""),
        ("flags", "none", "list of a | b", ""),
        ("fast", "true", "true | false", ""),
    ]


def test_a_summary_is_the_first_paragraph_on_one_line() -> None:
    assert summary("One\ntwo.\n\nThree.") == "One two."
    assert summary(None) == ""


def test_all_recipes_are_listed(run: Run) -> None:
    status, printed = run("recipes")
    assert status == 0
    assert all(f"{name} " in printed for name in RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_the_fields_of_a_recipe_are_listed_with_their_meaning(run: Run, name: str) -> None:
    status, printed = run("recipes", name)
    assert status == 0
    assert max(map(len, printed.splitlines()[1:])) <= 80
    words = set(printed.split())
    for config in (RECIPES[name].config, training_of(name).config):
        assert set(config.model_fields) <= words
        assert all(field.description for field in config.model_fields.values())


def test_a_recipe_that_does_not_exist_gets_a_suggestion(run: Run) -> None:
    status, printed = run("recipes", "fastcomposr")
    assert status == 1
    assert "did you mean 'fastcomposer'" in printed
