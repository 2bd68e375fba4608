"""What `filter`, `merge`, `split` and `sample` take of their datasets."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.datasets.expressions import Expression, parse
from schemas.errors import ConfigError, InputError
from schemas.rejects import Reason
from transforms.dataset import open_table, read_tables

Rows = Callable[[pa.Table], NDArray[np.bool_]]
"""A choice among the rows of a table: [N] bool."""


def all_rows(table: pa.Table) -> NDArray[np.bool_]:
    """Choose all rows."""
    return np.ones(len(table), bool)


@dataclass(frozen=True)
class LeftOut:
    """Why samples are left out: rows that `rows` chooses become rejects with this reason and detail."""

    rows: Rows
    reason: Reason
    detail: str


@dataclass(frozen=True)
class Choice:
    """What of the origins a dataset takes.

    Attributes:
        command: which makes it; the stage of its rejects.
        options: of the command, as `dataset.json` states them.
        left_out: samples that become rejects; a sample counts for the first of these that chooses its row.
        belongs: what of the index and of the rejects the dataset is about, by tables that have `key` and `source`; the
            rest is no part of its books.
    """

    command: str
    options: Mapping[str, Any]
    left_out: Sequence[LeftOut] = ()
    belongs: Rows = all_rows


def filter_by(folder: str, where: str | None, excluded: Path | None) -> Choice:
    """Keep the samples for which an expression is true and whose keys are not in a list.

    Raises:
        ConfigError: neither is given, or the expression cannot be used on this index.
        InputError: the list cannot be read.
    """
    if where is None and excluded is None:
        raise ConfigError("filter needs --where EXPRESSION, --exclude FILE, or both")
    left_out, options = [], {}
    if excluded is not None:
        left_out.append(LeftOut(with_keys(read_keys(excluded)), Reason.EXCLUDED, f"its key is in {excluded.name}"))
        options["exclude"] = str(excluded)
    if where is not None:
        with open_table(folder, "index.parquet") as file:
            expression = parse(where, file.schema_arrow.names)
            expression.rows(file.schema_arrow.empty_table())  # a wrong one fails before anything is written
        left_out.append(LeftOut(without(expression), Reason.FILTERED_OUT, f"not true: {where}"))
        options["where"] = where
    return Choice("filter", options, left_out)


def without(expression: Expression) -> Rows:
    """Choose the rows for which an expression is not true."""
    return lambda table: ~expression.rows(table)


def with_keys(keys: Collection[str]) -> Rows:
    """Choose the rows that have one of these keys."""
    return lambda table: np.array([key in keys for key in table["key"].to_pylist()], bool)


def read_keys(path: Path) -> frozenset[str]:
    """Read a list of keys, one a line; empty lines and those that begin with # are left out.

    Raises:
        InputError: it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the list {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return frozenset(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))


def unknown_keys(folder: str, keys: Collection[str]) -> int:
    """Count the keys that no sample of a dataset has."""
    left = set(keys)
    for table in read_tables(folder, columns=["key"]):
        left.difference_update(table["key"].to_pylist())
    return len(left)


def sample_of(folder: str, count: int, seed: int) -> Choice:
    """Keep `count` samples, those of the smallest hashes of seed and key: a larger sample contains a smaller one."""
    hashes = [
        hash_of(f"{seed}\0{key}") for table in read_tables(folder, columns=["key"]) for key in table["key"].to_pylist()
    ]
    if count < len(hashes):
        largest = np.partition(np.array(hashes, np.uint64), count - 1)[count - 1]
    else:
        largest = np.iinfo(np.uint64).max

    def rest(table: pa.Table) -> NDArray[np.bool_]:
        return np.array([hash_of(f"{seed}\0{key}") > largest for key in table["key"].to_pylist()], bool)

    left_out = [LeftOut(rest, Reason.NOT_SAMPLED, f"not among the {count:,} of seed {seed}")]
    return Choice("sample", {"count": count, "seed": seed}, left_out)


def split_of(shares: Mapping[str, float], name: str, seed: int) -> Choice:
    """Keep a part of a split: what the hash of the source's address, with the seed, puts there.

    All samples of a picture are in one part, and rejects too, so that the parts' books add up to the whole.

    Args:
        shares: of the parts by name, positive; they are divided by their sum.
        name: of the part.
        seed: another one splits otherwise.
    """
    names = list(shares)
    bounds = np.cumsum([*shares.values()]) / sum(shares.values())
    bounds[-1] = np.inf

    def belongs(table: pa.Table) -> NDArray[np.bool_]:
        origins = zip(table["source"].to_pylist(), table["key"].to_pylist(), strict=True)
        places = np.array([hash_of(f"{seed}\0{source or key}") / 2**64 for source, key in origins], np.float64)
        return np.searchsorted(bounds, places, side="right") == names.index(name)

    return Choice("split", {"part": name, "shares": dict(shares), "seed": seed}, belongs=belongs)


def merge_of(folders: Sequence[str]) -> Choice:
    """Keep all samples of all datasets; of several with one key, finishing keeps that of the first dataset.

    Raises:
        ConfigError: there are fewer than two, or one is named twice.
    """
    if len(folders) < 2 or len({folder.rstrip("/") for folder in folders}) < len(folders):
        raise ConfigError("merge needs two datasets or more, each named once")
    return Choice("merge", {})


def parse_shares(texts: Iterable[str]) -> dict[str, float]:
    """Read the parts of a split, each NAME=SHARE.

    Raises:
        ConfigError: one is none, there are fewer than two, or a share is not positive.
    """
    shares: dict[str, float] = {}
    for text in texts:
        name, _, number = text.partition("=")
        try:
            share = float(number)
        except ValueError:
            share = 0.0
        if not name.isidentifier() or name in shares or not 0 < share < float("inf"):
            raise ConfigError(f"--part {text}: write NAME=SHARE, each name once, as --part train=0.9 --part test=0.1")
        shares[name] = share
    if len(shares) < 2:
        raise ConfigError("a split has two parts or more: --part train=0.9 --part test=0.1")
    return shares


def hash_of(text: str) -> int:
    """Return 64 bits of a hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
