"""The command line before Typer reads it: what is Beam's, which options are fields, and options with parts."""

from collections.abc import Sequence
from glob import has_magic
from itertools import pairwise
from pathlib import Path

from typer.core import TyperGroup

from jobs.settings import expand_field_options
from schemas.errors import ConfigError, InputError, choices
from schemas.machine import cores


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a command line at `--`: ours, and Beam's."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [*arguments[:end]], [*arguments[end + 1 :]]


def expand_arguments(arguments: Sequence[str], group: TyperGroup) -> list[str]:
    """Replace options of `build`, `preview` and `train` that are named after fields by `--set FIELD=VALUE`.

    `group` holds the commands.
    """
    name = next((argument for argument in arguments if argument in group.commands), "")
    if name not in ("build", "train", "preview"):
        return list(arguments)
    parameters = [*group.commands[name].params, *group.params]
    options = [option for parameter in parameters for option in parameter.opts if option.startswith("--")]
    if all(argument.partition("=")[0] in [*options, "--help"] for argument in arguments if argument.startswith("--")):
        return list(arguments)
    # Fields need pydantic, other commands do not.
    from pipelines import BUILDS  # noqa: PLC0415
    from training.configs import config_of, owners_of_fields  # noqa: PLC0415

    flags = {option for parameter in parameters if getattr(parameter, "is_flag", False) for option in parameter.opts}
    values = {i + 1 for i, argument in enumerate(arguments) if argument in options and argument not in flags}
    named = (a.removeprefix("--recipe=") for i, a in enumerate(arguments) if i not in values or name == "preview")
    recipe = next((a for a in named if a in BUILDS), None)
    if name == "train":
        known = config_of(recipe)[0].model_fields if recipe else None
        return expand_field_options(arguments, [*options, "--help"], known, owners_of_fields())
    known = BUILDS[recipe].model_fields if recipe else None
    owners = {field: owner for owner, config in BUILDS.items() for field in config.model_fields}
    return expand_field_options(arguments, [*options, "--help"], known, owners)


def move_to_front(arguments: Sequence[str], group: TyperGroup) -> list[str]:
    """Move the options of the program itself, as `--quiet`, before the command's name: users write them anywhere."""
    flags = {option: getattr(p, "is_flag", False) for p in group.params for option in p.opts if option != "--help"}
    front: list[str] = []
    rest: list[str] = []
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        option, equals, _ = argument.partition("=")
        if option not in flags:
            rest.append(argument)
        else:
            front += [argument, *([] if flags[option] or equals else remaining[:1])]
            remaining = remaining if flags[option] or equals else remaining[1:]
    return [*front, *rest]


def parse_overrides(pairs: list[str]) -> dict[str, str]:
    """Read `--model KIND=PATH_OR_NAME` options.

    Raises:
        ConfigError: an option has no `=`, or nothing after it.
    """
    overrides = {}
    for pair in pairs:
        kind, equals, name = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"--model {pair}: write KIND=PATH_OR_NAME, as --model segmenter=my/checkpoint")
        overrides[kind] = name
    return overrides


def workers_of(beam_arguments: Sequence[str]) -> int:
    """Return the number of worker processes that Beam's options ask for on this machine."""
    for argument, following in pairwise([*beam_arguments, ""]):
        name, _, value = argument.partition("=")
        if name == "--direct_num_workers" and (value or following).isdecimal():
            return int(value or following) or cores()
    return 1


def check_recipe(recipe: str, *, to_build: bool = False) -> None:
    """Refuse a recipe that does not exist; `to_build` also accepts what is built and has no training."""
    from pipelines import BUILDS, RECIPES  # noqa: PLC0415 - its fields need pydantic, other commands do not

    known = BUILDS if to_build else RECIPES
    if recipe not in known and recipe in BUILDS:
        raise ConfigError(f"{recipe} has no training here: `subjectloom export` hands such datasets to other trainers")
    if recipe not in known:
        raise ConfigError(f"there is no recipe {recipe!r}{choices(recipe, known)}")


def recipe_names(incomplete: str) -> list[str]:
    """Return the recipes whose names begin so, for a shell that completes a command."""
    from pipelines import RECIPES  # noqa: PLC0415

    return [name for name in RECIPES if name.startswith(incomplete)]


def check_source(source: str) -> None:
    """Refuse a local path that does not exist before anything slow is imported."""
    if "://" not in source and not has_magic(source) and not Path(source).exists():
        raise InputError(f"{source}: there is no such file or folder")
