"""Arrow files, as Hugging Face `datasets` saves them (`save_to_disk`), read as Parquet files are.

    DATASET/data-00000-of-00002.arrow ...    or DATASET/SPLIT/data-*.arrow

A record batch stands for a row group. Both of Arrow's forms are read: the stream, which `datasets` writes, and the
file. A stream has no table of its batches: those before the wanted one are passed over, which costs nothing in a local
file, as it is mapped into memory, and a read of the file elsewhere.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.files import is_remote
from transforms.sources.files import File

MAGIC = b"ARROW1"
"""What Arrow's file form begins with."""


def is_arrow(file: File) -> bool:
    """Whether the name is that of an Arrow file; those that `datasets` caches results of functions in are not meant."""
    return file.has_extension((".arrow",)) and not file.name.rpartition("/")[2].startswith("cache-")


@dataclass
class ArrowFile:
    """An open Arrow file, with those of `pq.ParquetFile`'s names that the Parquet source uses."""

    source: pa.NativeFile

    @cached_property
    def schema_arrow(self) -> pa.Schema:
        """The schema."""
        return self._open().schema

    @cached_property
    def group_sizes(self) -> tuple[int, ...]:
        """Rows of each record batch."""
        return tuple(len(batch) for batch in self._batches())

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Read some columns of all rows."""
        schema = pa.schema([self.schema_arrow.field(name) for name in columns])
        return pa.Table.from_batches([batch.select(list(columns)) for batch in self._batches()], schema)

    def iter_batches(self, rows: int, groups: Sequence[int], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of some record batches, at most `rows` at a time."""
        for number, batch in enumerate(self._batches()):
            if number in groups:
                chosen = batch.select(list(columns))
                for start in range(0, len(chosen), rows):
                    yield chosen.slice(start, rows)
            if number >= max(groups):
                return

    def _batches(self) -> Iterator[pa.RecordBatch]:
        reader = self._open()
        if isinstance(reader, pa.RecordBatchFileReader):
            yield from map(reader.get_batch, range(reader.num_record_batches))
        else:
            yield from reader

    def _open(self) -> pa.RecordBatchFileReader | pa.RecordBatchStreamReader:
        self.source.seek(0)
        is_file = self.source.read(len(MAGIC)) == MAGIC
        self.source.seek(0)
        return pa.ipc.open_file(self.source) if is_file else pa.ipc.open_stream(self.source)


@dataclass
class ParquetTable:
    """An open Parquet file under the same names."""

    file: pq.ParquetFile

    @property
    def schema_arrow(self) -> pa.Schema:
        """The schema."""
        return self.file.schema_arrow

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Rows of each row group."""
        return tuple(self.file.metadata.row_group(g).num_rows for g in range(self.file.num_row_groups))

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Read some columns of all rows."""
        return self.file.read(columns)

    def iter_batches(self, rows: int, groups: Sequence[int], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of some row groups, at most `rows` at a time."""
        return self.file.iter_batches(rows, groups, columns, use_threads=False)


def open_table(file: File, stream: BinaryIO) -> ArrowFile | ParquetTable:
    """Open a file of a source, of which `stream` is the content, by its name as Arrow or Parquet."""
    if not is_arrow(file):
        return ParquetTable(pq.ParquetFile(stream))
    return ArrowFile(pa.PythonFile(stream, "r") if is_remote(file.path) else pa.memory_map(file.path))
