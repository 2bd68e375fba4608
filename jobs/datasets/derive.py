"""Make a dataset from others: its samples are theirs, byte by byte, in shards of its own; theirs are not touched.

The rows of an index are read some ten thousand at a time, in the order of shards. What is left of a shard stays
together; small remains of neighbouring shards of a dataset are joined, up to the size of its largest shard. The books
go on from those of the origins: what these read counts as read, their rejects stay, and what is left out becomes a
reject with a reason of its own. Rejects are in parts without samples, at the end.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import pyarrow as pa

from jobs.datasets.choices import Choice
from schemas.dataset import DatasetInfo, Derivation, Job, ModelName, Origin, RejectRow, Row, shard_fingerprint
from schemas.errors import InputError
from schemas.samples import format_of
from schemas.samples.base import SampleFormat
from schemas.shards import shard_name
from transforms.dataset import prepare_output, read_info, read_tables, remove_dataset
from transforms.files import list_files
from transforms.finish import finish_dataset, note_expected
from transforms.fragments import read_fragments
from transforms.settled import Settled
from transforms.tables import sort_tables
from transforms.write import commit_fragments

REJECTS = 10_000
"""Most rejects of a part, which is in memory as a whole."""


@dataclass(frozen=True)
class Dataset:
    """A finished dataset: its folder, `dataset.json`, and the most samples and bytes of one of its shards."""

    folder: str
    info: DatasetInfo
    samples: int = 1
    bytes: int = 1

    @classmethod
    def read(cls, folder: str) -> "Dataset":
        """Read what is known of the dataset in a folder.

        Raises:
            InputError: there is none, or it cannot be read.
        """
        info, samples, size = read_info(folder), Counter[str](), Counter[str]()
        for table in read_tables(folder, columns=["shard", "size"]):
            for shard, number in zip(table["shard"].to_pylist(), table["size"].to_pylist(), strict=True):
                samples[shard] += 1
                size[shard] += number
        return cls(folder, info, max(samples.values(), default=1), max(size.values(), default=1))


def derive(origins: Sequence[str], output: str, choice: Choice) -> DatasetInfo:
    """Make the dataset `output` from those in the folders `origins`, and return the contents of its `dataset.json`.

    Raises:
        InputError: an origin is no finished dataset or is damaged, they are of several recipes, or `output` is not
            empty.
    """
    started = time.perf_counter()
    datasets = [Dataset.read(folder) for folder in origins]
    recipes = {dataset.info.recipe: dataset.folder for dataset in datasets}
    if len(recipes) > 1:
        each = ", ".join(f"{folder} ({recipe})" for recipe, folder in recipes.items())
        raise InputError(f"the datasets are of several recipes, {each}: samples of one dataset are of one recipe")
    if list_files(output):
        raise InputError(f"{output} holds files already: name a new or an empty folder")
    job = job_of(datasets, choice)
    prepare_output(output, job)
    try:
        writer = _Writer(output, job, format_of(job.recipe))
        for dataset in datasets:
            for group in _groups(_kept(dataset, choice), dataset.samples, dataset.bytes):
                writer.write_samples(dataset.folder, group)
        rejects = (reject for dataset in datasets for reject in _rejects(dataset, choice))
        while part := list(islice(rejects, REJECTS)):
            writer.write_books(part, {})
        writer.write_books([], _seconds(datasets, writer.read, choice.command, time.perf_counter() - started))
        gaps = Counter[str]()
        for dataset in datasets:
            gaps.update(dataset.info.gaps)
        note_expected(output, writer.fingerprints, gaps)
        return finish_dataset(output, job, writer.fingerprints, writer.format, gaps)
    except BaseException:
        remove_dataset(output)
        raise


def job_of(datasets: Sequence[Dataset], choice: Choice) -> Job:
    """How the dataset is made: what the origins have in common, and the origins themselves.

    Fields of configs that differ are left out; names that differ stand beside each other.
    """
    infos = [dataset.info for dataset in datasets]
    first = infos[0]
    kinds = dict.fromkeys(kind for info in infos for kind in info.models)
    models = {kind: [info.models[kind] for info in infos if kind in info.models] for kind in kinds}
    libraries = dict.fromkeys(name for info in infos for name in info.libraries)
    return Job(
        recipe=first.recipe,
        config={
            name: value
            for name, value in first.config.items()
            if all(name in info.config and info.config[name] == value for info in infos)
        },
        models={
            kind: ModelName(name=_each(m.name for m in names), revision=_each(m.revision for m in names))
            for kind, names in models.items()
        },
        seed=first.seed,
        precision=_each(info.precision for info in infos),
        libraries={name: _each(info.libraries.get(name, "") for info in infos) for name in libraries},
        derived=Derivation(
            command=choice.command,
            options=dict(choice.options),
            origins=[Origin(folder=dataset.folder, info=dataset.info) for dataset in datasets],
        ),
    )


def _each(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(filter(None, names)))


def _seconds(datasets: Sequence[Dataset], read: int, command: str, spent: float) -> dict[str, float]:
    """The seconds that the records took on average when the origins were made, and those of the command."""
    share = read / max(1, sum(dataset.info.counts.read for dataset in datasets))
    seconds = Counter[str]()
    for dataset in datasets:
        for stage, stated in dataset.info.seconds.items():
            seconds[stage] += stated * share  # type: ignore[assignment]  # a Counter of floats
    return {**seconds, command: spent}


def _kept(dataset: Dataset, choice: Choice) -> Iterator[Row]:
    """Yield the rows of the samples that are taken, in the order of shards and keys."""
    for table in sort_tables(lambda: read_tables(dataset.folder), ["shard", "key"]):
        kept = choice.belongs(table)
        for left_out in choice.left_out:
            kept &= ~left_out.rows(table)
        yield from table.filter(pa.array(kept)).to_pylist()


def _rejects(dataset: Dataset, choice: Choice) -> Iterator[RejectRow]:
    """Yield the rejects of the origin, and one for each sample that is left out."""
    for table in read_tables(dataset.folder, "rejects.parquet"):
        yield from (RejectRow(**row) for row in table.filter(pa.array(choice.belongs(table))).to_pylist())
    if not choice.left_out:
        return
    for table in read_tables(dataset.folder):
        left = choice.belongs(table)
        for left_out in choice.left_out:
            rows = left & left_out.rows(table)
            left &= ~rows
            for row in table.select(["key", "source"]).filter(pa.array(rows)).to_pylist():
                reason, detail = left_out.reason, left_out.detail
                yield RejectRow(**row, stage=choice.command, reason=reason, detail=detail)


def _groups(rows: Iterable[Row], samples: int, size: int) -> Iterator[list[Row]]:
    """Yield the rows of each new shard: what is left of old shards, joined while they fit into one of the origin's."""
    group: list[Row] = []
    for remains in _by_shard(rows):
        both = [*group, *remains]
        if group and (len(both) > samples or sum(row["size"] for row in both) > size):
            yield group
            both = remains
        group = both
    if group:
        yield group


def _by_shard(rows: Iterable[Row]) -> Iterator[list[Row]]:
    remains: list[Row] = []
    for row in rows:
        if remains and remains[0]["shard"] != row["shard"]:
            yield remains
            remains = []
        remains.append(row)
    if remains:
        yield remains


@dataclass
class _Writer:
    """Writes the shards and parts of a dataset, numbered one after the other; `read` is what they add up to."""

    output: str
    job: Job
    format: SampleFormat
    fingerprints: dict[int, str] = field(default_factory=dict)
    read: int = 0

    def write_samples(self, folder: str, rows: Sequence[Row]) -> None:
        """Copy the samples with these rows of the index of the dataset in `folder` into a shard."""
        name = shard_name(self.format.recipe, len(self.fingerprints))
        ordered = sorted(rows, key=lambda row: row["key"])
        books = Settled(read=len(rows), rows=tuple(row | {"shard": name} for row in ordered))
        self._commit(books, read_fragments(folder, ordered))

    def write_books(self, rejects: Sequence[RejectRow], seconds: Mapping[str, float]) -> None:
        """Write a part that has no samples."""
        self._commit(Settled(read=len(rejects), rejects=tuple(rejects), seconds=tuple(seconds.items())), ())

    def _commit(self, books: Settled, fragments: Iterable[tuple[str, bytes]]) -> None:
        number = len(self.fingerprints)
        fingerprint = shard_fingerprint(f"{number}", self.job)
        commit_fragments(self.output, self.format, number, fingerprint, books, fragments)
        self.fingerprints[number] = fingerprint
        self.read += books.read
