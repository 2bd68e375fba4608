"""`subjectloom recipes`: the recipes, and the fields of each."""

from typing import Literal

import pytest
from pydantic import Field

from jobs.recipes import fields_of
from pipelines import RECIPES
from schemas.strict import StrictModel
from tests.jobs.conftest import Run
from training.recipes import training_of


class Config(StrictModel):
    count: int = Field(default=3, ge=1, description="pictures")
    share: float | None = Field(default=None, gt=0, lt=1, description="of all pictures")
    mode: Literal["no", "bf16"] = Field(default="no", description="precision")
    scale: tuple[float, float] = Field(default=(1.0, 2.0), description="bounds of the factor")
    labels: tuple[str, ...] = Field(default=(), description="classes")
    folder: str = Field(default="", description="of pictures")


def test_fields_are_listed_with_default_values_and_meaning() -> None:
    assert list(fields_of(Config)) == [
        ("count", "3", "int >= 1", "pictures"),
        ("share", "none", "float > 0 < 1", "of all pictures"),
        ("mode", "no", "no | bf16", "precision"),
        ("scale", "[1.0, 2.0]", "[float, float]", "bounds of the factor"),
        ("labels", "[]", "[str, ...]", "classes"),
        ("folder", '""', "str", "of pictures"),
    ]


def test_all_recipes_are_listed(run: Run) -> None:
    status, printed = run("recipes")
    assert status == 0
    assert [line.split()[0] for line in printed.splitlines() if not line.startswith(" ")][:-1] == list(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_every_field_of_a_recipe_is_listed_and_has_a_meaning(run: Run, name: str) -> None:
    status, printed = run("recipes", name)
    assert status == 0
    listed = {line.split()[0] for line in printed.splitlines() if line.strip()}
    for config in (RECIPES[name].config, training_of(name).config):
        assert all(meaning for *_, meaning in fields_of(config))
        assert set(config.model_fields) <= listed


def test_an_unknown_recipe_gets_a_suggestion(run: Run) -> None:
    status, printed = run("recipes", "captoned")
    assert status == 1
    assert "there is no recipe 'captoned', did you mean 'captioned'?" in " ".join(printed.split())
