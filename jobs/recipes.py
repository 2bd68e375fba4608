"""`subjectloom recipes`: the recipes, and the fields of their configs."""

import sys
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.table import Table

from pipelines import RECIPES


def show_recipes(console: Console) -> None:
    """Print each recipe's name and what it builds."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, recipe in RECIPES.items():
        table.add_row(name, summary(sys.modules[recipe.steps.__module__].__doc__))
    console.print(table)
    console.print("subjectloom recipes NAME lists a recipe's fields", style="dim")


def show_fields(name: str, training: type[BaseModel], console: Console) -> None:
    """Print the fields of a recipe: of its datasets, and of its training config `training`."""
    recipe = RECIPES[name]
    console.print(f"{name}: {summary(sys.modules[recipe.steps.__module__].__doc__)}", soft_wrap=True)
    for title, config in (("build", recipe.config), ("train", training)):
        table = Table(title=f"subjectloom {title} {name} --set FIELD=VALUE", title_justify="left", box=None)
        for column in ("field", "default", "values", "meaning"):
            table.add_column(column, overflow="fold")
        for row in fields_of(config):
            table.add_row(*row)
        console.print(table, markup=False)


def fields_of(config: type[BaseModel]) -> Iterator[tuple[str, str, str, str]]:
    """Yield name, default, possible values and meaning (with its unit) of each field."""
    for name, field in config.model_fields.items():
        default = "none" if field.default is None else str(field.default)
        yield name, default or '""', values_of(field), field.description or ""


def values_of(field: FieldInfo) -> str:
    """Return the choices of a field, or its type with its bounds; that it may be none shows in its meaning."""
    kinds = [kind for kind in _alternatives(field.annotation) if kind is not type(None)]
    names = [
        " | ".join(map(str, get_args(kind)))
        if get_origin(kind) is Literal
        else str(kind)
        if get_origin(kind)
        else getattr(kind, "__name__", str(kind))
        for kind in kinds
    ]
    bounds = " ".join(f"{sign} {value:g}" for sign, value in _bounds(field.metadata))
    return f"{' | '.join(names)} {bounds}".strip()


def _alternatives(annotation: Any) -> tuple[Any, ...]:  # noqa: ANN401 - of any field
    return get_args(annotation) if get_origin(annotation) in (UnionType, Union) else (annotation,)


def _bounds(metadata: list[Any]) -> Iterator[tuple[str, float]]:
    signs: Mapping[str, str] = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    for constraint in metadata:
        for attribute, sign in signs.items():
            if hasattr(constraint, attribute):
                yield sign, getattr(constraint, attribute)


def summary(document: str | None) -> str:
    """Return the first sentence of a docstring, on one line."""
    return " ".join((document or "").split("\n\n", 1)[0].split())
