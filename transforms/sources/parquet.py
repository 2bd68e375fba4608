"""Parquet and Arrow files with pictures: a column of encoded images and a column of captions.

The first column whose name is in `IMAGE_COLUMNS` and whose type is bytes is taken, or the struct {"bytes", "path"} of
Hugging Face `datasets`; the first in `CAPTION_COLUMNS` that is text, and where it is null or empty the next one.
Columns of lists of text, several captions of each picture, come after those of text. All of Arrow's types of text and
bytes are read (large, views, dictionaries). Without a key column, the key of a row is the file's name and the row's
number.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.errors import InputError, RecordError
from schemas.example import Example
from schemas.keys import clean_key
from schemas.rejects import Reason, Reject
from transforms.batch import check_blame
from transforms.members import ShardSize, input_id
from transforms.outages import is_passing, retry
from transforms.sources.arrow import is_arrow, open_table
from transforms.sources.files import File
from transforms.sources.records import (
    STAGE,
    Chunk,
    Group,
    Item,
    Unloaded,
    first_caption,
    refuse,
    source_of,
    to_example,
)

IMAGE_COLUMNS = ("image", "jpg", "image_bytes", "jpeg", "png", "webp")
CAPTION_COLUMNS = ("caption", "text", "captions")
KEY_COLUMNS = ("key", "id", "__key__")

ROWS_PER_ITEM = 64
"""Fewest rows that a worker reads in one go, if the shard has as many; larger row groups are read whole."""

ROWS_PER_READ = 16
"""Rows that are decoded at a time."""


@dataclass(frozen=True)
class Columns:
    """The names of the columns that are read; `key`, `license` and `url` are "" if the file has none.

    `other_captions` are asked, in their order, for a caption that is null or empty.
    """

    image: str
    caption: str
    key: str
    license: str
    url: str
    # Not in the repr, which is part of a shard's fingerprint: it follows from the file.
    other_captions: tuple[str, ...] = field(default=(), repr=False)

    @property
    def names(self) -> list[str]:
        """The names of those that the file has."""
        names = (self.image, self.caption, self.key, self.license, self.url, *self.other_captions)
        return [name for name in names if name]


@dataclass(frozen=True)
class Rows:
    """An item that is the rows [start, stop) of a file; `groups` are the row groups that hold them.

    `offset` is the number of the first row of the first group, `duplicates` are the rows whose key an earlier row has.
    """

    file: File
    columns: Columns
    start: int
    stop: int
    groups: tuple[int, ...]
    offset: int
    duplicates: frozenset[int]

    @property
    def stamp(self) -> str:
        """The file's stamp, and which rows and columns are read."""
        return f"{self.file.stamp} {self.columns} {self.start} {self.stop} {sorted(self.duplicates)}"

    def read(self) -> Iterator[Unloaded | Reject]:
        """Yield a record per row."""
        done = self.start
        try:
            for number, row in self._rows():
                yield self._record(number, row)
                done = number + 1
        except Exception as error:  # a corrupt column chunk: whatever Arrow makes of it
            if is_passing(error):
                raise
            check_blame(error, STAGE)
            for number in range(done, self.stop):
                key = row_key(self.file, number, None)
                yield refuse(key, self._uri(number), Reason.UNREADABLE_FILE, f"{self.file.name}: {error}")

    def _rows(self) -> Iterator[tuple[int, dict[str, pa.Scalar]]]:
        with self.file.open() as stream:
            table = open_table(self.file, stream)
            number = self.offset
            for group in self.groups:
                # Few rows at a time, as a picture may have a megabyte and a group thousands of rows. One group at a
                # time, so that a broken group does not cost the rows before it.
                for batch in table.iter_batches(ROWS_PER_READ, [group], self.columns.names):
                    first, last = max(self.start - number, 0), min(self.stop - number, len(batch))
                    for index in range(first, last):
                        yield number + index, {name: batch.column(name)[index] for name in batch.schema.names}
                    number += len(batch)
                    if number >= self.stop:
                        return

    def _record(self, number: int, row: Mapping[str, pa.Scalar]) -> Unloaded | Reject:
        raw = _value_or_none(row[self.columns.key]) if self.columns.key else None
        key, uri = row_key(self.file, number, raw), self._uri(number)
        if number in self.duplicates:
            return refuse(
                key, uri, Reason.DUPLICATE_KEY, f"row {number} of {self.file.name}: an earlier row has its key"
            )
        return Unloaded(key, uri, lambda: self._load(key, uri, row))

    def _load(self, key: str, uri: str, row: Mapping[str, pa.Scalar]) -> Example:
        image = row[self.columns.image]
        if isinstance(image, pa.StructScalar):
            image = image["bytes"] if image.is_valid else None
        captions = (value_of(row[name]) for name in (self.columns.caption, *self.columns.other_captions))
        caption = first_caption(*captions)
        names = {"url": self.columns.url, "license": self.columns.license}
        fields = {field: _name(value_of(row[name])) for field, name in names.items() if name}
        return to_example(key, image and value_of(image), caption, source_of(fields, uri))

    def _uri(self, number: int) -> str:
        return f"{self.file.uri}#{number}"


@dataclass(frozen=True)
class Table:
    """A file as it was listed.

    Attributes:
        file: the file.
        columns: its columns.
        group_sizes: rows of each row group.
        duplicates: rows with a duplicate key.
        bytes: size of the file.
    """

    file: File
    columns: Columns
    group_sizes: tuple[int, ...]
    duplicates: frozenset[int]
    bytes: int


def row_key(file: File, number: int, raw: object) -> str:
    """The key of a row: `raw`, cleaned, or if that is None, the file's name and the row's number."""
    return clean_key(f"{file.stem}-{number:08d}" if raw is None else str(_name(raw)))


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a column of this type holds bytes."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def value_of(scalar: pa.Scalar) -> Any:  # noqa: ANN401 - whatever the column holds
    """The value of a scalar, or of a list of them; of a text that is not UTF-8, its bytes.

    Raises:
        ValueError, OverflowError: Python has no such value, as for a date in the year 10,000.
    """
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        if isinstance(scalar, pa.ListScalar):
            return list(map(value_of, scalar.values))
        text = scalar.value if isinstance(scalar, pa.DictionaryScalar) else scalar
        return text.as_buffer().to_pybytes()


def values_of(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """The values of a column, see `value_of`; None where Python has no such value."""
    try:
        return column.to_pylist()
    except (ValueError, OverflowError):
        return list(map(_value_or_none, column))


def _value_or_none(scalar: pa.Scalar) -> Any:  # noqa: ANN401
    try:
        return value_of(scalar)
    except (ValueError, OverflowError):
        return None


def _name(value: Any) -> Any:  # noqa: ANN401
    """Decode bytes; those that are not UTF-8 become lone surrogates, as in Python's file names."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def list_rows(files: Sequence[File], size: ShardSize, limit: int | None) -> list[Chunk]:
    """Cut the rows of all files, in the order of the files, into chunks of `size`.

    Reads the footers and the key columns, as keys must be unique in the whole source. A file that cannot be read
    becomes a reject.

    Raises:
        InputError: a column is missing or has the wrong type, or no file can be read.
    """
    chunks: list[Chunk] = []
    items: list[Item] = []
    ids: list[int] = []
    count, held = 0, 0.0
    left = limit
    for file, table in zip(files, _inspect(files), strict=True):
        length = _length(table)
        start = 0
        while start < length and left != 0:
            if not start:
                ids.append(input_id(file.name))
            weight = 1.0 if isinstance(table, Reject) else max(table.bytes / length, 1.0)
            fitting = max(int((size.bytes - held) // weight), 0 if count else 1)
            taken = min(length - start, size.samples - count, fitting, left or length)
            if taken:
                items += [Group((table,))] if isinstance(table, Reject) else _cut(table, start, start + taken)
                start, count, held = start + taken, count + taken, held + taken * weight
                left = None if left is None else left - taken
            if not taken or count == size.samples:
                chunks.append(Chunk.of(len(chunks), items, count, tuple(ids)))
                items, ids, count, held = [], [], 0, 0.0
    if items:
        chunks.append(Chunk.of(len(chunks), items, count, tuple(ids)))
    return chunks


def choose_columns(schema: pa.Schema, name: str) -> Columns:
    """Find the columns in the schema of the file `name`.

    Raises:
        InputError: the image or the caption column is missing or has the wrong type.
    """
    problems = []
    chosen = []
    tests: Sequence[tuple[str, Sequence[str], Sequence[Callable[[pa.DataType], bool]], str]] = (
        ("images", IMAGE_COLUMNS, [_is_image], "the bytes of encoded images"),
        ("captions", CAPTION_COLUMNS, [_is_caption, _are_captions], "text"),
    )
    for what, names, fits, meant in tests:
        named = [column for column in names if column in schema.names]
        kinds = {column: schema.field(column).type for column in named}
        # A column without any value has the type null: its rows become rejects, the file is accepted.
        fitting = [c for fit in fits for c in named if fit(kinds[c])]
        fitting = fitting or [c for c in named if pa.types.is_null(kinds[c])]
        if not named:
            problems.append(
                f"{name} has no column of {what} ({', '.join(names)}): its columns are {', '.join(schema.names)}"
            )
        elif not fitting:
            problems.append(f"{name}: column {named[0]} holds {kinds[named[0]]}, not {meant}")
        chosen.append(fitting)
    if problems:
        raise InputError(problems[0])
    (image, *_), (caption, *others) = chosen
    key, license_ = _first(schema, KEY_COLUMNS), _first(schema, ("license", "LICENSE"))
    return Columns(image, caption, key, license_, _first(schema, ("url",)), tuple(others))


def _is_caption(kind: pa.DataType) -> bool:
    return is_text(kind) or is_bytes(kind)


def _are_captions(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists of captions."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and _is_caption(kind.value_type)


def _is_image(kind: pa.DataType) -> bool:
    return is_bytes(kind) or _has_bytes(kind)


def _has_bytes(kind: pa.DataType) -> bool:
    """Whether a type is the struct of Hugging Face's images."""
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    inner = kind.field("bytes").type
    return is_bytes(inner) or pa.types.is_null(inner)


def _first(schema: pa.Schema, names: Sequence[str]) -> str:
    return next((name for name in names if name in schema.names), "")


def _inspect(files: Sequence[File]) -> list[Table | Reject]:
    tables: list[Table | Reject] = []
    ids: list[NDArray[np.uint64]] = []
    stems = Counter(file.stem for file in files)
    for file in files:
        try:
            columns, sizes, keys = retry(partial(_read_keys, file))
        except Exception as error:  # not such a file, or a corrupt one: whatever Arrow makes of it
            if is_passing(error):
                raise
            check_blame(error, STAGE)
            kind = "Arrow" if is_arrow(file) else "Parquet"
            problem = error.detail if isinstance(error, RecordError) else f"no {kind} file: {error}"
            tables.append(refuse(clean_key(file.name), file.uri, Reason.UNREADABLE_FILE, problem))
            continue
        # Keys made of a file's name and the number of a row differ if the names do.
        named = enumerate(keys) if columns.key or stems[file.stem] > 1 else ()
        ids.append(np.array([input_id(row_key(file, number, raw)) for number, raw in named], np.uint64))
        tables.append(Table(file, columns, sizes, frozenset(), file.size))
    rejects = [table for table in tables if isinstance(table, Reject)]
    if len(rejects) == len(tables):
        raise InputError(f"{files[0].path}: {rejects[0].detail}")
    repeated = iter(_repeated(ids))
    return [t if isinstance(t, Reject) else replace(t, duplicates=frozenset(next(repeated))) for t in tables]


def _repeated(ids: Sequence[NDArray[np.uint64]]) -> list[list[int]]:
    """For each array, the indices of the values that stand before, in it or in an earlier one."""
    values = np.concatenate(ids)
    order = np.argsort(values, kind="stable")
    is_repeated = np.zeros(len(values), bool)
    is_repeated[order[1:]] = values[order[1:]] == values[order[:-1]]
    ends = np.cumsum([len(array) for array in ids])[:-1]
    return [np.flatnonzero(part).tolist() for part in np.split(is_repeated, ends)]


def _read_keys(file: File) -> tuple[Columns, tuple[int, ...], list[Any]]:
    """The columns of a file, the rows of each row group, and the raw key of each row."""
    with file.open() as stream:
        table = open_table(file, stream)
        columns, sizes = choose_columns(table.schema_arrow, file.name), table.group_sizes
        keys = values_of(table.read([columns.key])[columns.key]) if columns.key else [None] * sum(sizes)
    return columns, sizes, keys


def _length(table: Table | Reject) -> int:
    return 1 if isinstance(table, Reject) else sum(table.group_sizes)


def _cut(table: Table, start: int, stop: int) -> list[Rows]:
    """Cut the rows [start, stop) into items at the ends of row groups, as a group is always read from its beginning."""
    items = []
    groups: list[int] = []
    end = offset = 0
    for group, size in enumerate(table.group_sizes):
        if not groups:
            offset = end
        end += size
        if end > start and size:
            groups.append(group)
        if groups and (end >= stop or end - max(offset, start) >= ROWS_PER_ITEM):
            first, last = max(offset, start), min(end, stop)
            duplicates = frozenset(number for number in table.duplicates if first <= number < last)
            items.append(Rows(table.file, table.columns, first, last, tuple(groups), offset, duplicates))
            groups = []
        if end >= stop:
            break
    return items
