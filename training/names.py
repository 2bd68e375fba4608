"""What names a dataset on the command line: its folder or its tars, and a weight."""

import math
from collections.abc import Sequence
from pathlib import Path

from schemas.errors import ConfigError, InputError


def split_weight(data: str) -> tuple[str, float | None]:
    """Split "DATA=WEIGHT" into both; without a weight, it is None. A path that exists has no weight.

    Raises:
        ConfigError: the weight is not positive.
    """
    name, _, text = data.rpartition("=")
    try:
        weight = float(text)
    except ValueError:
        return data, None
    if not name or Path(data).exists():
        return data, None
    if not 0 < weight < math.inf:
        raise ConfigError(f"{data}: a weight is a positive number")
    return name, weight


def check_data(data: Sequence[str]) -> None:
    """Check that datasets given by a path exist; those given by an address or by a pattern are not looked at.

    Raises:
        InputError: there is nothing at a path.
        ConfigError: a weight is not positive.
    """
    for name in data:
        path, _ = split_weight(name)
        if "://" not in path and not path.startswith("pipe:") and "{" not in path and not Path(path).exists():
            raise InputError(f"no shard {path}: name the folder of a dataset, or its tars")
