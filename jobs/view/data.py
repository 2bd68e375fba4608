"""What the page of `subjectloom view` asks for: rows of the index, curves of scores, pictures, rejects.

The index is in memory once, as Arrow columns; a page gets some rows of it. Every choice on the page becomes one
expression (`jobs.datasets.expressions`), the one that `subjectloom filter --where` takes.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as kinds
from numpy.typing import NDArray
from PIL import Image

from jobs.datasets.choices import read_keys
from jobs.datasets.expressions import parse
from jobs.report.cards import card_of
from schemas.dataset import INDEX_COLUMNS
from schemas.errors import ConfigError, InputError, RecordError
from schemas.images import decode_image
from schemas.samples import format_of
from schemas.shards import Sample, read_sample
from transforms.dataset import read_info, read_table
from transforms.files import is_remote, replace_file
from transforms.fragments import read_fragments

PAGE = 24
"""Samples of a page."""

SIDE = 480
"""Longest side of a tile's picture, in pixels."""

LARGE = 150_000
"""Bytes of a picture above which it is made smaller: that takes longer than to send fewer."""

STEPS = 100
"""Steps of the slider."""

TOP = 200
"""Most classes that are offered."""


@dataclass(frozen=True)
class Query:
    """What the page shows.

    Attributes:
        text: words that a key or caption contains, in any case.
        where: an expression over the columns.
        column: a column of classes, or of one name, and
        value: what it contains; "" for all.
        score: a column of scores, and
        threshold: the lowest that stays; for lists, the highest score of a sample counts.
        sort: a column, descending if it begins with "-".
        excluded: "" for all samples, "yes" or "no".
        page: from 0.
    """

    text: str = ""
    where: str = ""
    column: str = ""
    value: str = ""
    score: str = ""
    threshold: float | None = None
    sort: str = "key"
    excluded: str = ""
    page: int = 0

    @classmethod
    def of(cls, given: Mapping[str, str]) -> "Query":
        """Read a query from the fields of an address.

        Raises:
            ConfigError: a field is unknown or not a number.
        """
        known = {field.name for field in fields(cls)}
        if unknown := given.keys() - known:
            raise ConfigError(f"there is no field {min(unknown)!r}")
        values: dict[str, Any] = {name: text for name, text in given.items() if text}
        try:
            values |= {
                name: kind(values[name]) for name, kind in (("threshold", float), ("page", int)) if name in values
            }
        except ValueError as error:
            raise ConfigError(f"threshold and page are numbers: {error}") from error
        return cls(**values)


class View:
    """A dataset that is looked at, and the keys that were excluded, which are saved to `path`.

    Raises:
        InputError: `folder` holds no finished dataset, or the list of keys cannot be read.
    """

    def __init__(self, folder: str, path: Path) -> None:
        self.folder, self.path = folder, path
        self.info = read_info(folder)
        self.format = format_of(self.info.recipe)
        self.card = card_of(self.format)
        self.index = read_table(folder, "index.parquet")
        self.excluded = set(read_keys(path)) if path.exists() else set[str]()
        self._rows = lru_cache(16)(self._choose)

    @cached_property
    def places(self) -> dict[str, int]:
        """The number of each key's row."""
        return {key: number for number, key in enumerate(self.index["key"].to_pylist())}

    def columns(self) -> dict[str, list[str]]:
        """Columns by what they are good for: "sort" (numbers and keys), "score" (floats), "class" (texts)."""
        own = [field for field in self.index.schema if field.name not in INDEX_COLUMNS.names]
        numeric = ["width", "height", *(f.name for f in own if _is_number(f.type))]
        scores = [field.name for field in own if kinds.is_floating(_item(field.type))]
        classes = [*(field.name for field in own if kinds.is_string(_item(field.type))), "license"]
        return {"sort": ["key", *numeric], "score": scores, "class": classes}

    def values(self, column: str) -> list[tuple[str, int]]:
        """The most frequent values of a column of texts, with their counts.

        Raises:
            ConfigError: it is no such column.
        """
        self._check(column, "class")
        values = self.index[column]
        flat = pc.list_flatten(values) if kinds.is_list(values.type) else values
        counts = [(row["values"], row["counts"]) for row in pc.value_counts(flat.drop_null()).to_pylist()]
        return sorted(counts, key=lambda pair: (-pair[1], pair[0]))[:TOP]

    def curve(self, column: str) -> list[tuple[float, int, int]]:
        """What thresholds on a score would leave: (threshold, samples, scores) for each step of the slider.

        Raises:
            ConfigError: it is no column of scores.
        """
        self._check(column, "score")
        values = self.index[column]
        is_list = kinds.is_list(values.type)
        flat = (pc.list_flatten(values) if is_list else values).drop_null()
        scores = np.sort(np.asarray(flat.to_numpy(), np.float64))
        best = np.sort(self._best(column))
        if not len(scores):
            return []
        thresholds = np.linspace(scores[0], scores[-1], STEPS + 1).round(4)
        left = (len(best) - np.searchsorted(best, thresholds), len(scores) - np.searchsorted(scores, thresholds))
        return [*zip(thresholds.tolist(), left[0].tolist(), left[1].tolist(), strict=True)]

    def _best(self, column: str) -> NDArray[np.float64]:
        """The highest score of each sample that has one."""
        values = self.index[column]
        if not kinds.is_list(values.type):
            return np.asarray(values.drop_null().to_numpy(), np.float64)
        flat = np.asarray(pc.list_flatten(values).to_numpy(), np.float64)
        parents = np.asarray(pc.list_parent_indices(values).to_numpy())
        starts = np.flatnonzero(np.diff(parents, prepend=-1))
        return np.maximum.reduceat(flat, starts) if len(flat) else flat

    def expression(self, query: Query) -> str:
        """Return the expression that a query stands for, "" if it leaves all samples.

        Raises:
            ConfigError: it names a column that cannot be chosen by.
        """
        parts = [
            f"({json.dumps(word)} in lower(caption) or {json.dumps(word)} in lower(key))"
            for word in query.text.lower().split()
        ]
        if query.value:
            self._check(query.column, "class")
            is_list = kinds.is_list(self.index.schema.field(query.column).type)
            value = json.dumps(query.value)
            parts.append(f"{value} in {query.column}" if is_list else f"{query.column} == {value}")
        if query.threshold is not None:
            self._check(query.score, "score")
            is_list = kinds.is_list(self.index.schema.field(query.score).type)
            parts.append(f"{f'max({query.score})' if is_list else query.score} >= {query.threshold:g}")
        if query.where.strip():
            parts.append(f"({query.where.strip()})" if parts else query.where.strip())
        return " and ".join(parts)

    def page(self, query: Query) -> dict[str, Any]:
        """Return a page: `total`, `pages`, `where`, `excluded` (of all samples), and its `samples`.

        Raises:
            ConfigError: the query cannot be used.
        """
        where = self.expression(query)
        rows = self._rows(where, query.sort)
        if query.excluded:
            listed = np.array(
                [key in self.excluded for key in self.index["key"].take(pa.array(rows)).to_pylist()], bool
            )
            rows = rows[listed if query.excluded == "yes" else ~listed]
        shown = rows[max(query.page, 0) * PAGE :][:PAGE]
        return {
            "total": len(rows), "pages": -(-len(rows) // PAGE), "where": where, "excluded": len(self.excluded),
            "samples": [self._tile(row) for row in self.index.take(pa.array(shown)).to_pylist()],
        }  # fmt: skip

    def _choose(self, where: str, sort: str) -> NDArray[np.int64]:
        column = sort.removeprefix("-")
        self._check(column, "sort")
        if where:
            rows = np.flatnonzero(parse(where, self.index.column_names).rows(self.index))
        else:
            rows = np.arange(len(self.index))
        if sort == "key":
            return rows  # the order of the index
        keys = self.index.select([*{column, "key"}]).take(pa.array(rows))
        order = [(column, "descending" if sort.startswith("-") else "ascending"), ("key", "ascending")]
        return rows[np.asarray(pc.sort_indices(keys, sort_keys=order[: 1 if column == "key" else 2]))]

    def _tile(self, row: Mapping[str, Any]) -> dict[str, Any]:
        own = {name: value for name, value in row.items() if name not in INDEX_COLUMNS.names and name != "look"}
        notes = [f"{name.replace('_', ' ')} {_short(value)}" for name, value in own.items() if _is_shown(value)]
        tile = {name: row[name] for name in ("key", "caption", "width", "height", "license")}
        return {**tile, "notes": notes[:8], "excluded": row["key"] in self.excluded}

    def exclude(self, key: str, *, excluded: bool) -> int:
        """Put a sample on the list of excluded ones, or take it off; save the list and return its length.

        Raises:
            InputError: there is no such sample, or the list cannot be written.
        """
        self._row(key)
        changed = {*self.excluded, key} if excluded else self.excluded - {key}
        try:
            replace_file(str(self.path), "".join(f"{name}\n" for name in sorted(changed)).encode())
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror}") from error
        self.excluded = changed
        return len(changed)

    def sample(self, key: str) -> Sample:
        """Read a sample from its shard.

        Raises:
            InputError: there is none, or it is damaged.
        """
        ((_, content),) = read_fragments(self.folder, [self._row(key)])
        return read_sample(content)

    def picture(self, key: str) -> bytes:
        """The picture of a tile: the sample's first JPEG, made smaller if it has more than `LARGE` bytes.

        Raises:
            InputError: there is none.
        """
        members = self.sample(key).members
        names = [name for name in self.format.members if name.endswith("jpg")] or [
            n for n in members if n.endswith("jpg")
        ]
        if not names:
            raise InputError(f"the sample {key} has no JPEG")
        content = members[names[0]]
        return content if len(content) <= LARGE else _smaller(content)

    def _row(self, key: str) -> dict[str, Any]:
        if key not in self.places:
            raise InputError(f"there is no sample {key!r}")
        row: dict[str, Any] = self.index.slice(self.places[key], 1).to_pylist()[0]
        return row

    def _check(self, column: str, use: str) -> None:
        if column not in self.columns()[use]:
            raise ConfigError(f"there is no column {column!r} to {use} by: {', '.join(self.columns()[use])}")

    @cached_property
    def rejects(self) -> pa.Table:
        """The rejects."""
        return read_table(self.folder, "rejects.parquet")

    def reject_page(self, text: str, reason: str, page: int) -> dict[str, Any]:
        """Return a page of rejects: `total`, `pages`, `reasons` with counts, and its `rejects`, each with its row."""
        table = self.rejects
        chosen = np.ones(len(table), bool)
        for word in text.lower().split():
            texts = [pc.utf8_lower(table[name]) for name in ("key", "detail", "source")]
            chosen &= np.logical_or.reduce([np.asarray(pc.match_substring(text, word)) for text in texts])
        if reason:
            chosen &= np.asarray(pc.equal(table["reason"], reason))
        rows = np.flatnonzero(chosen)
        shown = rows[max(page, 0) * PAGE :][:PAGE]
        reasons = [(row["values"], row["counts"]) for row in pc.value_counts(table["reason"]).to_pylist()]
        rejects = [
            {**row, "row": int(n)} for n, row in zip(shown, table.take(pa.array(shown)).to_pylist(), strict=True)
        ]
        return {"total": len(rows), "pages": -(-len(rows) // PAGE), "reasons": sorted(reasons), "rejects": rejects}

    def reject_picture(self, row: int) -> bytes:
        """The picture of a reject, if its source is a file of this machine that is still there.

        Only rows name files, so that a page cannot ask for another one, and what is no picture is not shown.

        Raises:
            InputError: it is not there, or no picture.
        """
        source = self.rejects["source"][row].as_py() if 0 <= row < len(self.rejects) else ""
        if not source or is_remote(source) or not Path(source).is_file() or Path(source).stat().st_size > 10**8:
            raise InputError("the picture is not there any more")
        return _smaller(Path(source).read_bytes())


def _smaller(picture: bytes) -> bytes:
    """Return a picture as a JPEG of at most `SIDE` pixels a side.

    Raises:
        InputError: it cannot be decoded.
    """
    try:
        small = Image.fromarray(decode_image(picture))
    except RecordError as error:
        raise InputError(error.detail) from error
    small.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
    stored = io.BytesIO()
    small.save(stored, "JPEG", quality=80)
    return stored.getvalue()


def _item(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if kinds.is_list(kind) else kind


def _is_number(kind: pa.DataType) -> bool:
    return bool(kinds.is_floating(kind) or kinds.is_signed_integer(kind))


def _is_shown(value: object) -> bool:
    return isinstance(value, float | str) or (isinstance(value, int) and value < 10**9) or isinstance(value, list)


def _short(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_short, value[:6])) + (", ..." if len(value) > 6 else "")
    return f"{value:.3g}" if isinstance(value, float) else str(value)[:60]
