"""`subjectloom recipes`: the recipes, and the fields of their configs."""

import sys
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pipelines import BUILDS, RECIPES
from training.configs import config_of


def show_recipes(console: Console) -> None:
    """Print each recipe's name and what it builds."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, config in BUILDS.items():
        table.add_row(name, _summary_of(name, config))
    console.print(table)
    console.print("subjectloom recipes NAME lists a recipe's fields", style="dim")


def _summary_of(name: str, config: type[BaseModel]) -> str:
    module = RECIPES[name].steps.__module__ if name in RECIPES else config.__module__
    return summary(sys.modules[module].__doc__)


def show_fields(name: str, console: Console) -> None:
    """Print the fields of a recipe: of its datasets, and of its training config with what its presets change."""
    console.print(f"{name}: {_summary_of(name, BUILDS[name])}", soft_wrap=True)
    configs: list[tuple[str, type[BaseModel], Mapping[str, Mapping[str, Any]]]] = [("build", BUILDS[name], {})]
    if name in RECIPES:
        configs.append(("train", *config_of(name)))
    for title, config, changes in configs:
        console.print(f"\nsubjectloom {title} {name} --set FIELD=VALUE", style="bold", highlight=False)
        for field, default, values, meaning in fields_of(config, changes):
            head = Text.assemble((f"{field} = {default}", "bold"), f"   {values}")
            console.print(Padding(head, (0, 0, 0, 2), expand=False))
            console.print(Padding(Text(meaning), (0, 0, 0, 6), expand=False))


def fields_of(config: type[BaseModel], presets: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, str, str]]:
    """Yield name, default, possible values and meaning (with its unit) of each field.

    The default is followed by those of the presets that have another.
    """
    for name, field in config.model_fields.items():
        changed = [f"{preset}: {written(fields[name])}" for preset, fields in presets.items() if name in fields]
        yield name, "; ".join([written(field.default), *changed]), values_of(field), field.description or ""


def written(value: Any) -> str:  # noqa: ANN401 - of any field
    """Return a value as the command line takes it."""
    if value in (None, ()):
        return "none"
    if isinstance(value, tuple):
        return ",".join(map(written, value))
    return str(value).lower() if isinstance(value, bool) else str(value) or '""'


def values_of(field: FieldInfo) -> str:
    """Return the choices of a field, or its type with its bounds; that it may be none shows in its meaning."""
    bounds = " and ".join(f"{sign} {value:g}" for sign, value in _bounds(field.metadata))
    return f"{type_in_words(field.annotation)} {bounds}".strip()


def type_in_words(kind: Any) -> str:  # noqa: ANN401 - of any field
    """Describe a type of values: "int", "a | b" of a literal, "float,float" of a pair, "list of str"."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " | ".join(map(str, parts))
    if origin in (UnionType, Union):
        return " | ".join(type_in_words(part) for part in parts if part is not type(None))
    if origin is tuple and parts[1:] == (...,):
        return f"list of {type_in_words(parts[0])}"
    if origin is tuple:
        return ",".join(map(type_in_words, parts))
    return "true | false" if kind is bool else kind.__name__


def _bounds(metadata: list[Any]) -> Iterator[tuple[str, float]]:
    signs: Mapping[str, str] = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    for constraint in metadata:
        for attribute, sign in signs.items():
            if hasattr(constraint, attribute):
                yield sign, getattr(constraint, attribute)


def summary(document: str | None) -> str:
    """Return the first sentence of a docstring, on one line."""
    return " ".join((document or "").split("\n\n", 1)[0].split())
