"""Configs from three places: options on the command line, before a config file, before a preset.

Every field of a recipe's config is an option: `--set best=1000`, or `--best 1000`, which means the same.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from schemas.errors import ConfigError, choices

Config = TypeVar("Config", bound=BaseModel)


def read_config(
    kind: type[Config],
    path: Path | None,
    settings: Sequence[str],
    preset: Mapping[str, Any] | None = None,
    owners: Mapping[str, str] | None = None,
) -> Config:
    """Return a config of class `kind`. Precedence: command line, config file, preset, the field's default.

    Args:
        kind: the class.
        path: a YAML file with one `field: value` per line, or None.
        settings: "FIELD=VALUE" of each `--set`.
        preset: fields of the preset.
        owners: a recipe that has the field, by the field's name; an error names it.

    Raises:
        ConfigError: the file cannot be read, or a field is unknown or out of range.
    """
    fields = _read_file(path) if path else {}
    given = dict(_parse_setting(kind, setting) for setting in settings)
    try:
        return kind(**{**(preset or {}), **fields, **given})
    except ValidationError as error:
        problems = "; ".join(_describe(problem, kind, given, path, owners or {}) for problem in error.errors())
        raise ConfigError(problems) from error


def expand_field_options(
    arguments: Sequence[str],
    options: Collection[str],
    fields: Mapping[str, FieldInfo] | None = None,
    owners: Mapping[str, str] | None = None,
) -> list[str]:
    """Write options named after fields of a config as `--set FIELD=VALUE`.

    `--best 5` and `--best=5` become `--set best=5`; an option without a value sets its field to true. `--no-FIELD`,
    and what a field names as its `negative`, set it to false.

    Args:
        arguments: of a command.
        options: the command's own long options ("--input"), which stay as they are.
        fields: the config's fields; None where they are not known yet, and any name may be a field.
        owners: a recipe that has the field, by the field's name; an error names it.

    Raises:
        ConfigError: an option is neither the command's nor a field.
    """
    known = fields or {}
    negatives = {f"--{_negative(name, field)}": name for name, field in known.items()}
    expanded: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        option, equals, value = argument.partition("=")
        if not option.startswith("--") or option in options:
            expanded.append(argument)
            continue
        name = option.removeprefix("--").replace("-", "_")
        if option in negatives or (name.startswith("no_") and name[3:] in known):
            expanded += ["--set", f"{negatives.get(option) or name[3:]}=false"]
            continue
        if fields is not None and name not in fields:
            candidates = [*options, *(f"--{field.replace('_', '-')}" for field in fields)]
            owner = f", a field of {owners[name]}" if owners and name in owners else choices(option, candidates)
            raise ConfigError(f"No such option: {option}{owner}")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        expanded += ["--set", f"{name}={value}"]
    return expanded


def _negative(name: str, field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return str(extra["negative"]) if isinstance(extra, dict) and "negative" in extra else f"no-{name.replace('_', '-')}"


def _read_file(path: Path) -> dict[str, Any]:
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"the config {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"the config {path} must hold one `field: value` on each line")
    return fields


def _parse_setting(kind: type[BaseModel], setting: str) -> tuple[str, Any]:
    """Split FIELD=VALUE, and read the value as the field's type: text, none, YAML, or a list "A,B" without brackets."""
    name, equals, text = setting.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or not name:
        raise ConfigError(f"--set {setting}: write FIELD=VALUE, as --set batch_size=4")
    if name not in kind.model_fields:
        return name, text  # reported together with the other problems
    adapter = TypeAdapter[Any](kind.model_fields[name].annotation or Any)
    for value in (text, None if text.lower() == "none" else _from_yaml(text), _from_yaml(f"[{text}]")):
        try:
            adapter.validate_python(value)
        except ValidationError:
            continue
        return name, value
    return name, text


def _from_yaml(text: str) -> Any:  # noqa: ANN401 - whatever it holds
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _describe(
    problem: Any,  # noqa: ANN401 - pydantic's
    kind: type[BaseModel],
    given: Mapping[str, Any],
    path: Path | None,
    owners: Mapping[str, str],
) -> str:
    """Describe one of pydantic's errors, and name where the value came from."""
    name = ".".join(map(str, problem["loc"]))
    message = problem["msg"].removeprefix("Value error, ")
    if not name:
        return message
    origin = "the command line" if path is None or problem["loc"][0] in given else str(path)
    option = f"--{name.replace('_', '-')}" if problem["loc"][0] in given else name
    if problem["type"] == "extra_forbidden":
        hint = f", it is a field of {owners[name]}" if name in owners else choices(name, kind.model_fields)
        return f"{origin}: the config has no field {name!r}{hint}"
    return f"{origin}: {option} = {problem['input']!r}: {message}"
