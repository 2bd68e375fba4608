"""Verification of a dataset: every sample of every shard against the format of its recipe, the index and the counts."""

import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console

from schemas.dataset import REJECT_COLUMNS, DatasetInfo, Row
from schemas.samples import format_of
from schemas.samples.base import LATER_COLUMNS, SampleFormat
from schemas.shards import Entry, Sample, read_tar
from transforms.dataset import open_table, read_info
from transforms.files import join, list_files, open_file
from transforms.tables import ROW_GROUP, sort_tables

SHOWN = 100
"""Most problems that are printed; the others are only counted."""


@dataclass(frozen=True)
class Problem:
    """A problem in a file of a dataset; `key` names the sample that it concerns, "" if there is none."""

    file: str
    key: str
    text: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.key, self.text) if part)


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes:
        info: The contents of `dataset.json`.
        size: Bytes of all samples.
        problems: Every problem.
    """

    info: DatasetInfo
    size: int
    problems: tuple[Problem, ...]


def inspect(output: str) -> Inspection:
    """Verify the shards, the index, the rejects and the counts of the dataset in `output`.

    Of the index, some ten thousand rows are in memory at a time.

    Raises:
        InputError: There is no finished dataset, its recipe is unknown, or its index or its rejects cannot be read.
    """
    info = read_info(output)
    sample_format = format_of(info.recipe)
    with open_table(output, "index.parquet") as index, open_table(output, "rejects.parquet") as rejects:
        # An earlier version did not write all columns that only the index has; what is there must have the right type.
        absent = {*sample_format.index_only, *LATER_COLUMNS} - set(index.schema_arrow.names)
        expected = [column for column in sample_format.index_columns if column.name not in absent]
        problems = [*_column_problems("index.parquet", index.schema_arrow, expected)]
        problems += _column_problems("rejects.parquet", rejects.schema_arrow, REJECT_COLUMNS)
        if problems:
            return Inspection(info, 0, tuple(problems))
        found = _Found()
        for table in sort_tables(lambda: _tables(index), ["shard", "key"]):
            found.add(table)
            for shard, rows in _rows_by_shard(table).items():
                problems += _shard_problems(output, shard, rows, sample_format)
        names = [name for name in list_files(output) if name.startswith(f"{info.recipe}-") and name.endswith(".tar")]
        problems += [Problem(name, "", "the index lists no sample of it") for name in names if name not in found.shards]
        problems += [Problem("index.parquet", key, "occurs more than once") for key in _repeated_keys(index)]
        for table in _tables(rejects):
            found.rejects.update(zip(table["stage"].to_pylist(), table["reason"].to_pylist(), strict=True))
    problems += [Problem("dataset.json", "", text) for text in _count_problems(info, index.metadata.num_rows, found)]
    return Inspection(info, found.size, tuple(problems))


@dataclass
class _Found:
    """What the rows of the index, and those of the rejects by stage and reason, add up to."""

    size: int = 0
    shards: set[str] = field(default_factory=set)
    licenses: Counter[str] = field(default_factory=Counter)
    rejects: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, table: pa.Table) -> None:
        self.size += pc.sum(table["size"]).as_py()
        self.shards.update(pc.unique(table["shard"]).to_pylist())
        self.licenses.update({row["values"]: row["counts"] for row in pc.value_counts(table["license"]).to_pylist()})


def _tables(file: pq.ParquetFile) -> Iterator[pa.Table]:
    """Yield the rows of a Parquet file, some at a time."""
    for batch in file.iter_batches(ROW_GROUP):
        yield pa.Table.from_batches([batch]).replace_schema_metadata(None)


def show(inspection: Inspection, console: Console) -> None:
    """Print the numbers of a dataset, and a line per problem."""
    console.print(f"{inspection.info.recipe} dataset", style="bold", highlight=False)
    numbers = list(_numbers(inspection))
    width = max(len(name) for name, _ in numbers)
    for name, value in numbers:  # names of checkpoints and licences have any length: a table would cut them
        console.print(f"{name:{width}}  {value}", soft_wrap=True, markup=False, highlight=False)
    for problem in inspection.problems[:SHOWN]:
        console.print(str(problem), style="red", markup=False, highlight=False, soft_wrap=True)
    hidden = len(inspection.problems) - SHOWN
    if hidden > 0:
        console.print(f"... and {hidden:,} more", style="red", highlight=False)
    found = len(inspection.problems)
    verdict = f"{found:,} problem{'s' * (found > 1)}" if found else "no problem found"
    console.print(verdict, style="bold red" if inspection.problems else "bold green", highlight=False)


def _numbers(inspection: Inspection) -> Iterator[tuple[str, str]]:
    info, counts = inspection.info, inspection.info.counts
    yield "read", f"{counts.read:,}"
    samples, shards = (
        f"{n:,} {what}{'s' * (n != 1)}" for n, what in ((counts.written, "sample"), (counts.shards, "shard"))
    )
    yield "written", f"{samples} in {shards}, {inspection.size / 1e6:,.1f} MB"
    yield "rejected", f"{counts.rejected:,}"
    for stage, reasons in counts.rejects.items():
        for reason, count in reasons.items():
            yield f"  {stage}", f"{count:,} {reason}"
    for name, count in info.gaps.items():
        yield name, f"{count:,}"
    for stage, seconds in info.seconds.items():
        yield f"seconds, {stage}", f"{seconds:,.1f}"
    for license_, count in info.licenses.items():
        yield "licence", f"{count:,} × {license_ or 'not stated'}"
    for kind, model in info.models.items():
        yield f"model, {kind}", f"{model.name} {model.revision}"
    yield "seed", str(info.seed)


def _column_problems(file: str, schema: pa.Schema, columns: Iterable[pa.Field]) -> Iterator[Problem]:
    for column in columns:
        if column.name not in schema.names:
            yield Problem(file, "", f"has no column {column.name}")
        elif schema.field(column.name).type != column.type:
            yield Problem(file, "", f"column {column.name} is {schema.field(column.name).type}, not {column.type}")


def _rows_by_shard(index: pa.Table) -> dict[str, dict[str, Row]]:
    rows: dict[str, dict[str, Row]] = {}
    for row in index.to_pylist():
        rows.setdefault(row["shard"], {})[row["key"]] = row
    return dict(sorted(rows.items()))


def _shard_problems(output: str, shard: str, rows: dict[str, Row], sample_format: SampleFormat) -> Iterator[Problem]:
    missing = set(rows)
    try:
        with open_file(join(output, shard)) as stream:
            for entry, sample in read_tar(stream):
                missing.discard(sample.key)
                yield from (
                    Problem(shard, sample.key, text) for text in _sample_problems(entry, sample, rows, sample_format)
                )
    except (OSError, tarfile.TarError) as error:
        yield Problem(shard, "", f"cannot be read: {error}")
    yield from (Problem(shard, key, "is in the index, but not in the shard") for key in sorted(missing))


def _sample_problems(entry: Entry, sample: Sample, rows: dict[str, Row], sample_format: SampleFormat) -> list[str]:
    if sample.key not in rows:
        return ["is in the shard, but not in the index"]
    row = rows[sample.key]
    problems = []
    if (row["offset"], row["size"]) != (entry.offset, entry.size):
        problems.append(f"the index says {row['size']} bytes at {row['offset']}, it is {entry.size} at {entry.offset}")
    elif row["crc32"] != entry.crc32:
        problems.append("its bytes have changed since they were written: the checksums differ")
    return problems + sample_format.problems_of(sample, row)


def _repeated_keys(index: pq.ParquetFile) -> list[str]:
    """The keys that several rows have; their order does not matter."""

    def keys() -> Iterator[pa.Table]:
        return (table.select(["key"]) for table in _tables(index))

    repeated = []
    for table in sort_tables(keys, ["key"]):
        counts = pc.value_counts(table["key"]).to_pylist()
        repeated += [row["values"] for row in counts if row["counts"] > 1]
    return repeated


def _count_problems(info: DatasetInfo, indexed: int, found: _Found) -> Iterator[str]:
    counts = info.counts
    if counts.read != counts.written + counts.rejected:
        yield f"counts {counts.read} read, but {counts.written} written and {counts.rejected} rejected"
    if counts.written != indexed:
        yield f"counts {counts.written} written, the index {indexed}"
    if counts.shards != len(found.shards):
        yield f"counts {counts.shards} shards, the index {len(found.shards)}"
    if counts.rejected != found.rejects.total():
        yield f"counts {counts.rejected} rejected, rejects.parquet {found.rejects.total()}"
    stated = {(stage, reason): n for stage, reasons in counts.rejects.items() for reason, n in reasons.items()}
    if dict(found.rejects) != stated:
        yield f"counts rejects {counts.rejects}, which are not those of rejects.parquet"
    if dict(found.licenses) != info.licenses:
        yield f"counts licenses {info.licenses}, the index {dict(found.licenses)}"
