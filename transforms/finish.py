"""Finish a dataset: compose the index, the rejects and `dataset.json` from the books of its shards.

A build notes beforehand what finishing needs, so that a dataset can be finished without it: by a remote pipeline's last
step, or by `subjectloom finish`. However long the dataset is, some ten thousand rows are in memory at a time
(`transforms.tables`), and a kilobyte for each shard.
Samples of two shards that have one key become neighbours in the sorted index: the one in the first shard stays, the
others become rejects, and their shards are written again without them.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.dataset import (
    REJECT_COLUMNS,
    Counts,
    DatasetInfo,
    Job,
    Part,
    RejectRow,
    Row,
    decode_part,
    part_name,
    rejects_table,
    to_json,
)
from schemas.errors import InputError, SubjectloomError
from schemas.rejects import Reason
from schemas.samples import FORMATS
from schemas.samples.base import SampleFormat
from schemas.shards import shard_name
from schemas.webshart import index_name
from transforms.candidates import PATTERN as CANDIDATES_PATTERN
from transforms.candidates import candidates_name
from transforms.dataset import (
    PART_PATTERN,
    STATE,
    TEMPORARY_PATTERN,
    both_versions,
    check_books,
    finished_shards,
    read_info,
    read_job,
)
from transforms.files import join, list_files, open_file, read_file, remove_files, replace_file, replacing
from transforms.pieces import remove_all_pieces
from transforms.tables import sort_tables, write_tables
from transforms.write import rewrite_shard

STAGE = "finish"

CARD = ".huggingface.yaml"
"""File that tells Hugging Face `datasets` to read the tars: by itself it would take the more numerous JSON files."""

EXPECTED = "expected.json"
"""File in `STATE` with what finishing needs to know besides the books of the shards."""

TWINS = 100_000
"""Most samples with the key of another one that are removed at a time."""


def note_expected(output: str, fingerprints: Mapping[int, str], gaps: Mapping[str, int]) -> None:
    """Note the fingerprints of all shards that the dataset will have, by number, and the gaps of its source."""
    content = {
        "fingerprints": [[shard, fingerprint] for shard, fingerprint in fingerprints.items()],
        "gaps": dict(gaps),
    }
    replace_file(join(output, STATE, EXPECTED), json.dumps(content).encode())


def finish_noted(output: str) -> DatasetInfo:
    """Finish the dataset in `output` from what its build noted, or return what says that it is finished.

    Raises:
        InputError: no build has been there.
        SubjectloomError: a shard is not finished.
    """
    names = list_files(output)
    if "dataset.json" in names:
        return read_info(output)
    if join(STATE, EXPECTED) not in names:
        raise InputError(f"{output} holds no dataset whose shards are made: there is no {STATE}/{EXPECTED}")
    job, expected = read_job(output), json.loads(read_file(join(output, STATE, EXPECTED)))
    return finish_dataset(output, job, dict(expected["fingerprints"]), FORMATS[job.recipe], expected["gaps"])


def finish_dataset(
    output: str,
    job: Job,
    fingerprints: Mapping[int, str],
    sample_format: SampleFormat,
    gaps: Mapping[str, int] | None = None,
) -> DatasetInfo:
    """Write the index, the rejects and `dataset.json` from the shards' parts, and check the books.

    The index is sorted by key, the rejects by key, stage and source. Shards and parts of an earlier run that do not
    belong to this one are removed.

    Args:
        output: the dataset's folder.
        job: how the dataset was made.
        fingerprints: of all its shards, by number.
        sample_format: the recipe's.
        gaps: pictures and annotations of the source without a counterpart, by a name.

    Raises:
        SubjectloomError: a shard is not finished.
    """
    shards = sorted(fingerprints)
    _check_finished(output, fingerprints, sample_format.recipe)
    while twins := _write_index(output, shards, sample_format):
        for shard, keys in twins.items():
            rewrite_shard(output, sample_format, shard, fingerprints[shard], _Twins(keys).reject, STAGE)
    books = _add_up(output, shards)
    _write_rejects(output, shards)
    info = books.info(job, gaps or {})
    _remove_stale(output, books.written, job.recipe)
    remove_all_pieces(output)
    remove_files(join(output, STATE, name) for name in ("plan", "plan-items"))
    replace_file(join(output, CARD), b'configs:\n- config_name: default\n  data_files: "*.tar"\n')
    replace_file(join(output, "dataset.json"), to_json(info.model_dump(mode="json")))
    return info


@dataclass(frozen=True)
class _Twins:
    """The samples of a shard whose keys other shards have too: the name of the first of these, by key."""

    first: Mapping[str, str]

    def reject(self, row: Row) -> RejectRow | None:
        if row["key"] not in self.first:
            return None
        detail = f"{self.first[row['key']]} has an earlier sample of the same key"
        return RejectRow(key=row["key"], source=row["source"], stage=STAGE, reason=Reason.DUPLICATE_KEY, detail=detail)


@dataclass
class _Books:
    """The sums over the shards that were added; `written` are samples by shard."""

    read: int = 0
    rejected: int = 0
    written: dict[int, int] = field(default_factory=dict)
    rejects: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    licenses: Counter[str] = field(default_factory=Counter)

    def add(self, part: Part, licenses: pa.ChunkedArray) -> None:
        self.read += part.read
        self.rejected += len(part.rejects)
        self.written[part.shard] = part.written
        for stage, spent in part.seconds.items():
            self.seconds[stage] += spent
        for reject in part.rejects:
            self.rejects[reject.stage][reject.reason] += 1
        for row in pc.value_counts(licenses).to_pylist():
            self.licenses[row["values"]] += row["counts"]

    def info(self, job: Job, gaps: Mapping[str, int]) -> DatasetInfo:
        counts = Counts(
            read=self.read,
            written=sum(self.written.values()),
            rejected=self.rejected,
            shards=sum(samples > 0 for samples in self.written.values()),
            rejects={stage: dict(sorted(reasons.items())) for stage, reasons in sorted(self.rejects.items())},
        )
        check_books(counts.read, counts.written, counts.rejected, "the dataset")
        return DatasetInfo(
            **(job.model_dump() | {"libraries": both_versions(job.libraries)}),
            counts=counts,
            seconds={stage: round(spent, 3) for stage, spent in self.seconds.items()},
            licenses=dict(sorted(self.licenses.items())),
            gaps=dict(gaps),
        )


def _check_finished(output: str, fingerprints: Mapping[int, str], recipe: str) -> None:
    done = finished_shards(output)
    missing = [shard for shard, fingerprint in fingerprints.items() if done.get(shard) != fingerprint]
    if missing:
        raise SubjectloomError(
            f"{len(missing)} of {len(fingerprints)} shards in {output} are not finished, "
            f"such as {shard_name(recipe, min(missing))}: run again with --resume"
        )


def _add_up(output: str, shards: Iterable[int]) -> _Books:
    books = _Books()
    for shard in shards:
        part, table = _read_part(output, shard, ["license"])
        books.add(part, table["license"])
    return books


def _write_index(output: str, shards: Sequence[int], sample_format: SampleFormat) -> dict[int, dict[str, str]]:
    """Write the index; return the samples with the key of another one, as {shard: {key: the other's shard}}."""
    twins: dict[int, dict[str, str]] = defaultdict(dict)

    def tables() -> Iterator[pa.Table]:
        found = 0
        for table in sort_tables(lambda: (_read_part(output, shard)[1] for shard in shards), ["key", "shard"]):
            for key, first, other in _repeated(table):
                twins[_number(other)][key] = first
                found += 1
            if found >= TWINS:
                return
            yield table

    with replacing(join(output, "index.parquet")) as stream:
        write_tables(stream, tables(), sample_format.index_columns)
    return twins


def _repeated(table: pa.Table) -> Iterator[tuple[str, str, str]]:
    """Yield the key, the first shard and another one of all rows but the first that have one key; it is sorted."""
    keys = table["key"].combine_chunks()
    same = np.flatnonzero(pc.equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False)) + 1
    first, last = "", -1
    for row in same.tolist():
        if row - 1 != last:
            first = table["shard"][row - 1].as_py()
        last = row
        yield keys[row].as_py(), first, table["shard"][row].as_py()


def _number(name: str) -> int:
    return int(name.rpartition("-")[2].removesuffix(".tar"))


def _write_rejects(output: str, shards: Sequence[int]) -> None:
    tables = sort_tables(
        lambda: (rejects_table(_read_part(output, shard, [])[0].rejects) for shard in shards),
        ["key", "stage", "source"],
    )
    with replacing(join(output, "rejects.parquet")) as stream:
        write_tables(stream, tables, REJECT_COLUMNS)


def _read_part(output: str, shard: int, columns: Sequence[str] | None = None) -> tuple[Part, pa.Table]:
    with open_file(join(output, STATE, part_name(shard))) as stream:
        file = pq.ParquetFile(stream)
        return decode_part(file.schema_arrow.metadata), file.read(columns).replace_schema_metadata(None)


def _remove_stale(output: str, written: Mapping[int, int], recipe: str) -> None:
    kept = {shard_name(recipe, shard) for shard, samples in written.items() if samples}
    kept |= {index_name(name) for name in kept}
    kept |= {join(STATE, name(shard)) for shard in written for name in (part_name, candidates_name)}
    own = rf"({re.escape(recipe)}-\d{{6,}}\.(tar|json)|{PART_PATTERN}|{CANDIDATES_PATTERN})"
    stale = re.compile(own + TEMPORARY_PATTERN)
    names = (name for name in list_files(output) if stale.fullmatch(name) and name not in kept)
    remove_files(join(output, name) for name in names)
