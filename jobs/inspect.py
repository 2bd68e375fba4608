"""Verification of a dataset: every sample of every shard against the format of its recipe, the index and the counts."""

import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
from rich.console import Console

from schemas.dataset import REJECT_COLUMNS, DatasetInfo, Row
from schemas.samples import format_of
from schemas.samples.base import SampleFormat
from schemas.shards import Entry, Sample, read_tar
from transforms.dataset import read_info, read_table
from transforms.files import join, list_files, open_file

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

    Raises:
        InputError: There is no finished dataset, its recipe is unknown, or its index or its rejects cannot be read.
    """
    info = read_info(output)
    sample_format = format_of(info.recipe)
    index, rejects = read_table(output, "index.parquet"), read_table(output, "rejects.parquet")
    # An earlier version did not write all columns that only the index has; what is there must have the right type.
    absent = sample_format.index_only.keys() - set(index.schema.names)
    expected = [column for column in sample_format.index_columns if column.name not in absent]
    problems = [*_column_problems("index.parquet", index, expected)]
    problems += _column_problems("rejects.parquet", rejects, REJECT_COLUMNS)
    if problems:
        return Inspection(info, 0, tuple(problems))
    by_shard = _rows_by_shard(index)
    for shard, rows in by_shard.items():
        problems += _shard_problems(output, shard, rows, sample_format)
    names = [name for name in list_files(output) if name.startswith(f"{info.recipe}-") and name.endswith(".tar")]
    problems += [Problem(name, "", "the index lists no sample of it") for name in names if name not in by_shard]
    problems += [Problem("index.parquet", key, "occurs more than once") for key in _repeated_keys(index)]
    problems += [Problem("dataset.json", "", text) for text in _count_problems(info, index, rejects)]
    return Inspection(info, sum(index["size"].to_pylist()), tuple(problems))


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


def _column_problems(file: str, table: pa.Table, columns: Iterable[pa.Field]) -> Iterator[Problem]:
    for column in columns:
        if column.name not in table.schema.names:
            yield Problem(file, "", f"has no column {column.name}")
        elif table.schema.field(column.name).type != column.type:
            yield Problem(
                file, "", f"column {column.name} is {table.schema.field(column.name).type}, not {column.type}"
            )


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
    if set(sample.members) != sample_format.member_names:
        problems.append(
            f"has members {', '.join(sorted(sample.members))}, not {', '.join(sorted(sample_format.member_names))}"
        )
        return problems
    return problems + sample_format.problems_of(sample, row)


def _repeated_keys(index: pa.Table) -> list[str]:
    return sorted(key for key, count in Counter(index["key"].to_pylist()).items() if count > 1)


def _count_problems(info: DatasetInfo, index: pa.Table, rejects: pa.Table) -> Iterator[str]:
    counts = info.counts
    if counts.read != counts.written + counts.rejected:
        yield f"counts {counts.read} read, but {counts.written} written and {counts.rejected} rejected"
    if counts.written != len(index):
        yield f"counts {counts.written} written, the index {len(index)}"
    shards = len(set(index["shard"].to_pylist()))
    if counts.shards != shards:
        yield f"counts {counts.shards} shards, the index {shards}"
    if counts.rejected != len(rejects):
        yield f"counts {counts.rejected} rejected, rejects.parquet {len(rejects)}"
    found = Counter(zip(rejects["stage"].to_pylist(), rejects["reason"].to_pylist(), strict=True))
    stated = {(stage, reason): n for stage, reasons in counts.rejects.items() for reason, n in reasons.items()}
    if dict(found) != stated:
        yield f"counts rejects {counts.rejects}, which are not those of rejects.parquet"
    licenses = dict(Counter(index["license"].to_pylist()))
    if licenses != info.licenses:
        yield f"counts licenses {info.licenses}, the index {licenses}"
