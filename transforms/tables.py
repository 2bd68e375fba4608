"""Sort tables that are too long for memory, and write them as one Parquet file.

    sorted_tables = sort_tables(read_parts, by=["key"])     # at most about IN_MEMORY rows in memory
    write_tables(stream, sorted_tables, schema)

Values of the first column of a sample of the rows divide the rows into ranges. Each row goes to the temporary file of
its range, and the ranges are sorted one after the other. Equal values of that column are in one range.
"""

import io
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transforms.spool import Folder

IN_MEMORY = 50_000
"""Rows that are sorted in memory."""

SAMPLE = 100_000
"""Most values of the first column that divide the rows into ranges."""

RANGES = 1000
"""Most ranges: with more rows than 50 million, these become longer than `IN_MEMORY`."""

ROW_GROUP = 50_000

_LENGTH = struct.Struct(">Q")


def sort_tables(read: Callable[[], Iterable[pa.Table]], by: Sequence[str]) -> Iterator[pa.Table]:
    """Sort the rows of many tables.

    Args:
        read: yields the tables, which have one schema; it is called twice if the rows are too many for memory.
        by: columns of text, the first of which divides the rows into ranges.

    Yields:
        Tables that are the sorted rows when they follow each other. Rows with the same value in the first column are in
        one table. Text has the type large_string here, whose bytes may exceed 2 GB.
    """
    held: list[pa.Table] = []
    count = 0
    sample: list[str] = []
    step = 1
    for table in read():
        sample += table[by[0]].take(np.arange(-count % step, len(table), step)).to_pylist()
        count += len(table)
        if count <= IN_MEMORY:
            held.append(table)
        else:
            held = []
        if len(sample) > SAMPLE:
            sample, step = sample[::2], 2 * step
    if count <= IN_MEMORY:
        if count:
            yield _sorted(held, by)
        return
    sample.sort()
    ranges = min(RANGES, -(-count // IN_MEMORY))
    bounds = [sample[len(sample) * i // ranges] for i in range(1, ranges)]
    folder = Folder()
    _distribute(read(), by[0], bounds, folder.path)
    for number in range(ranges):
        tables = list(_read_range(folder.path / f"{number}"))
        if tables:
            yield _sorted(tables, by)


def write_tables(stream: BinaryIO, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Write tables as one Parquet file of this schema; `stream` need not be seekable."""
    with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        for table in tables:
            for start in range(0, len(table), ROW_GROUP):
                writer.write_table(table.slice(start, ROW_GROUP).cast(schema))


def every_kth(file: pq.ParquetFile, most: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Read at most `most` rows of a Parquet file, evenly spaced; all if there are no more."""
    step = max(1, -(-file.metadata.num_rows // most))
    start, tables = 0, []
    for batch in file.iter_batches(ROW_GROUP, columns=columns):
        tables.append(pa.table(batch).take(np.arange(-start % step, len(batch), step)))
        start += len(batch)
    schema = file.schema_arrow if columns is None else pa.schema([file.schema_arrow.field(c) for c in columns])
    return pa.concat_tables([schema.empty_table(), *tables])


def _sorted(tables: Sequence[pa.Table], by: Sequence[str]) -> pa.Table:
    table = pa.concat_tables(tables)
    return table.cast(_large_schema(table.schema)).sort_by([(name, "ascending") for name in by])


def _large_schema(schema: pa.Schema) -> pa.Schema:
    return pa.schema([pa.field(field.name, _large(field.type)) for field in schema])


def _large(kind: pa.DataType) -> pa.DataType:
    """The type of the same values without a limit of 2 GB in one array."""
    if pa.types.is_string(kind):
        return pa.large_string()
    return pa.large_list(_large(kind.value_type)) if pa.types.is_list(kind) else kind


def _distribute(tables: Iterable[pa.Table], column: str, bounds: Sequence[str], folder: Path) -> None:
    """Append each row to the file of its range."""
    held: list[pa.Table] = []
    count = 0
    for table in tables:
        held.append(table)
        count += len(table)
        if count >= IN_MEMORY:
            _append(held, column, bounds, folder)
            held, count = [], 0
    if count:
        _append(held, column, bounds, folder)


def _append(tables: Sequence[pa.Table], column: str, bounds: Sequence[str], folder: Path) -> None:
    table = pa.concat_tables(tables)
    table = table.cast(_large_schema(table.schema))
    ranges = np.array([bisect_right(bounds, value) for value in table[column].to_pylist()])
    order = np.argsort(ranges, kind="stable")
    table = table.take(order)
    numbers, starts = np.unique(ranges[order], return_index=True)
    for number, start, stop in zip(numbers, starts, [*starts[1:], len(table)], strict=True):
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.slice(start, stop - start))
        with (folder / f"{number}").open("ab") as stream:
            stream.write(_LENGTH.pack(sink.tell()))
            stream.write(sink.getbuffer())


def _read_range(path: Path) -> Iterator[pa.Table]:
    if not path.exists():
        return
    with path.open("rb") as stream:
        while head := stream.read(_LENGTH.size):
            yield pa.ipc.open_stream(stream.read(_LENGTH.unpack(head)[0])).read_all()
