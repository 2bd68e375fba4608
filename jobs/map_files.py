"""Condition maps that pictures are drawn from, as `subjectloom generate` names them, without torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import ConfigError, InputError, choices
from training.configs.maps import MapsConfig


@dataclass(frozen=True)
class MapFile:
    """A map by its name, where it comes from, and its weight.

    Attributes:
        name: of the map, such as "canny".
        file: a picture of the map, or with `taken` a photograph that the map is taken from.
        weight: what its effect is multiplied by.
        taken: whether `file` is a photograph.
    """

    name: str
    file: Path
    weight: float = 1.0
    taken: bool = False

    @classmethod
    def parse(cls, text: str, *, taken: bool) -> "MapFile":
        """Read "NAME=FILE" or "NAME=FILE:WEIGHT".

        Raises:
            ConfigError: it is neither.
        """
        name, _, rest = text.partition("=")
        file, colon, number = rest.rpartition(":")
        if not colon or Path(rest).is_file():
            file, number = rest, "1"
        try:
            weight = float(number)
        except ValueError:
            file, weight = rest, 1.0
        if not name.strip() or not file.strip():
            option = "--map-from" if taken else "--map"
            raise ConfigError(f"{option} {text!r}: write NAME=FILE or NAME=FILE:WEIGHT, as canny=edges.png:0.8")
        return cls(name.strip(), Path(file.strip()), weight, taken)


def check_maps(recipe: str, config: Any, maps: Sequence[MapFile]) -> None:  # noqa: ANN401 - the recipe's config
    """Check that a model can draw from these maps, and that their files are there.

    Raises:
        ConfigError: it knows none of this name, needs one, or one is named twice.
        InputError: there is no such file.
    """
    if not isinstance(config, MapsConfig):
        if maps:
            raise ConfigError(f"{recipe} draws without maps: leave out {maps[0].name}={maps[0].file}")
        return
    known = config.map_names
    for shown in maps:
        if shown.name not in known:
            raise ConfigError(f"the model knows no map {shown.name!r}{choices(shown.name, known)}")
        if not shown.taken and shown.name in config.taken_only:
            raise ConfigError(f"{shown.name} is no picture: take it from a photograph, --map-from {shown.name}=PHOTO")
        if not shown.file.is_file():
            raise InputError(f"{shown.file}: there is no such file, which is given as the map {shown.name!r}")
    names = [shown.name for shown in maps]
    if len(set(names)) < len(names):
        raise ConfigError(f"the map {max(names, key=names.count)!r} is given twice")
    if not maps and config.needs_maps:
        raise ConfigError(f"{recipe} draws from a map: give --map {known[0]}=FILE, or --map-from {known[0]}=PHOTO")
