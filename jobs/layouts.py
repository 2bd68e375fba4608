"""Layouts in files, and on the command line.

A file is YAML, a list of layouts, or JSON Lines with one in each line:

    - prompt: a red ball left of a blue cup
      phrases:
        - {text: a red ball, boxes: [[0.1, 0.2, 0.45, 0.8]]}
        - {text: a blue cup, boxes: [[0.55, 0.2, 0.9, 0.8]]}
"""

import json
from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError

from schemas.errors import ConfigError, InputError
from schemas.layouts import Layout, LayoutRecord, layout_of, parse_box


def layouts_of(prompts: Sequence[str], boxes: Sequence[str], path: Path | None) -> tuple[list[str], list[Layout]]:
    """Return the prompts of a command line and their layouts; none if no boxes are given.

    Raises:
        ConfigError: prompts are given twice, or a box cannot be used; see `schemas.layouts`.
        InputError: the file cannot be read.
    """
    if path is None:
        placed = [parse_box(text) for text in boxes]
        return list(prompts), [layout_of(prompt, placed) for prompt in prompts] if placed else []
    if prompts or boxes:
        raise ConfigError("--layouts holds prompts and boxes: leave out --prompt and --box")
    layouts = read_layouts(path)
    return [layout.prompt for layout in layouts], layouts


def read_layouts(path: Path) -> list[Layout]:
    """Read a file of layouts.

    Raises:
        InputError: it cannot be read, or a layout in it cannot be used; the message says which.
    """
    try:
        text = path.read_text("utf-8")
        lines = path.suffix == ".jsonl"
        found = [json.loads(line) for line in text.splitlines() if line.strip()] if lines else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: no layouts can be read: {' '.join(str(error).split())}") from error
    if not isinstance(found, list) or not found:
        raise InputError(
            f"{path} holds no list of layouts: write '- prompt: ...' with phrases, as docs/layouts.md says"
        )
    layouts = []
    for number, fields in enumerate(found, start=1):
        try:
            layouts.append(LayoutRecord.model_validate(fields).to_layout())
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise InputError(f"{path}, layout {number}: {place}: {first['msg']}") from error
        except ConfigError as error:
            raise InputError(f"{path}, layout {number}: {error}") from error
    return layouts
