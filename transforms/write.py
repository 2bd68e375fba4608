"""Write samples into WebDataset shards, and the records of a job into a dataset.

`WriteWebDataset` is a tar sink for any Beam pipeline. `WriteDataset` is the end of every recipe: it also writes the
books of each shard, in a part that appears after the shard and marks it as done.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field

import apache_beam as beam

from schemas.dataset import Part, RejectRow, Row, encode_part, part_name
from schemas.errors import InputError, SubjectloomError
from schemas.example import Example
from schemas.samples.base import SampleFormat
from schemas.shards import Entry, Sample, shard_name, write_tar
from transforms.batch import Batch, reject
from transforms.dataset import STATE, check_books
from transforms.files import join, remove_files, replace_file, replacing
from transforms.unread import note_unread
from transforms.work import working_on

STAGE = "write"


@dataclass(eq=False)
class WriteWebDataset(beam.PTransform):
    """Write `(shard, Sample)` pairs into `PREFIX-000000.tar` and so on; yield a row per sample.

    The samples of a shard are sorted by key, and the tar is a function of them alone: the same samples give the
    same bytes on any runner. It gets its name when it is complete. A row is a dict with `key`, `shard`
    (the tar's file name), `offset`, `size` (bytes) and `crc32`, as an `Entry` has them.
    Samples of one shard are sorted in memory. Two samples of one key in a shard raise an InputError.

        (
            pipeline
            | beam.Create([Sample("dog", {"jpg": jpeg, "txt": b"a dog"}), ...])
            | beam.WithKeys(lambda sample: shard_of(sample.key, shards=100))
            | WriteWebDataset("gs://bucket/animals/train")
        )

    `prefix` is a path on any filesystem that Beam writes to.
    """

    prefix: str

    def expand(self, samples: beam.PCollection[tuple[int, Sample]]) -> beam.PCollection[Row]:
        """Group the samples by shard and write each group."""
        return samples | "by shard" >> beam.GroupByKey() | "write tar" >> beam.FlatMapTuple(self._write)

    def _write(self, shard: int, samples: Iterable[Sample]) -> Iterator[Row]:
        folder, _, name = self.prefix.rpartition("/")
        for entry in write_shard(folder, name, shard, samples):
            yield {"shard": shard_name(name, shard), **asdict(entry)}


@dataclass(frozen=True)
class Settled:
    """A finished batch: every record that was read is a sample with its row of the index, or a reject."""

    read: int = 0
    samples: tuple[Sample, ...] = ()
    rows: tuple[Row, ...] = ()
    rejects: tuple[RejectRow, ...] = ()
    seconds: tuple[tuple[str, float], ...] = ()


@dataclass(eq=False)
class WriteDataset(beam.PTransform):
    """Write batches into the shards of a dataset, with the books of each shard; yield a `Part` per shard.

    `output` is a folder that `prepare_output` made ready, `sample_format` the recipe's. `fingerprints` maps the number
    of every shard that this pipeline makes to its fingerprint: a shard without samples gets its part too, so that it
    counts as done. `expected` maps a shard to its number of records, where the listing knows it before reading.
    A shard with records that could not be read for a cause that may pass is not written, unless `leaves_unread`.
    """

    output: str
    sample_format: SampleFormat
    fingerprints: Mapping[int, str]
    expected: Mapping[int, int] = field(default_factory=dict)
    leaves_unread: bool = False

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Part]:
        """Group the settled batches by shard and commit each group."""
        settled = batches | "settle" >> beam.Map(self._settle)
        # A shard whose chunk is empty has no batch.
        every = batches.pipeline | "every shard" >> beam.Create([(shard, Settled()) for shard in self.fingerprints])
        return (
            (settled, every)
            | beam.Flatten()
            | "by shard" >> beam.GroupByKey()
            | "commit" >> beam.FlatMapTuple(self._commit)
        )

    def _settle(self, batch: Batch) -> tuple[int, Settled]:
        return batch.shard, settle(batch, self.sample_format)

    def _commit(self, shard: int, batches: Iterable[Settled]) -> Iterator[Part]:
        settled = list(batches)
        may_pass = () if self.leaves_unread else (row for s in settled for row in s.rejects)
        if note_unread(self.output, shard, may_pass):
            return
        read = sum(s.read for s in settled)
        if read != self.expected.get(shard, read):
            raise SubjectloomError(
                f"{shard_name(self.sample_format.recipe, shard)}: {self.expected[shard]} records were listed for it, "
                f"{read} were read: did the source change? run again with --resume"
            )
        yield commit_shard(self.output, self.sample_format, shard, self.fingerprints[shard], settled)


def settle(batch: Batch, sample_format: SampleFormat) -> Settled:
    """Make the samples and rows of the index of a batch; an example for which that fails becomes a reject."""
    started = time.perf_counter()
    with working_on(STAGE, (record.key for record in batch.records)):
        samples, rows, rejects = _pack(batch, sample_format)
    seconds = (*batch.seconds, (STAGE, time.perf_counter() - started))
    return Settled(len(batch.records), tuple(samples), tuple(rows), tuple(rejects), seconds)


def _pack(batch: Batch, sample_format: SampleFormat) -> tuple[list[Sample], list[Row], list[RejectRow]]:
    samples, rows, rejects = [], [], []
    for record in batch.records:
        if isinstance(record, Example):
            try:
                sample, row = sample_format.pack(record)
            except Exception as error:  # a bad record never stops a job: whatever it raises becomes its reject
                rejects.append(RejectRow.of(reject(record, STAGE, error)))
            else:
                samples.append(sample)
                rows.append({"shard": shard_name(sample_format.recipe, batch.shard), **row})
        else:
            rejects.append(RejectRow.of(record))
    return samples, rows, rejects


def commit_shard(
    output: str, sample_format: SampleFormat, shard: int, fingerprint: str, settled: list[Settled]
) -> Part:
    """Write a shard and then its part.

    Raises:
        InputError: two samples of the shard have one key.
        SubjectloomError: the shard's books do not balance.
    """
    started = time.perf_counter()
    # Until the new part is written, the shard must not look done under any fingerprint.
    remove_files([join(output, STATE, part_name(shard))])
    entries = write_shard(output, sample_format.recipe, shard, (sample for s in settled for sample in s.samples))
    places = {entry.key: asdict(entry) for entry in entries}
    rows = sorted((row | places[row["key"]] for s in settled for row in s.rows), key=lambda row: row["key"])
    seconds: dict[str, float] = defaultdict(float)
    for stage, spent in (pair for s in settled for pair in s.seconds):
        seconds[stage] += spent
    seconds[STAGE] += time.perf_counter() - started
    part = Part(
        shard=shard,
        fingerprint=fingerprint,
        read=sum(s.read for s in settled),
        written=len(entries),
        rejects=[row for s in settled for row in s.rejects],
        seconds=dict(seconds),
    )
    check_books(part.read, part.written, len(part.rejects), shard_name(sample_format.recipe, shard))
    replace_file(join(output, STATE, part_name(shard)), encode_part(part, rows, sample_format.index_columns))
    return part


def write_shard(folder: str, prefix: str, shard: int, samples: Iterable[Sample]) -> list[Entry]:
    """Write the tar of a shard, its samples sorted by key; without samples an existing tar is removed.

    Raises:
        InputError: two samples have one key.
    """
    ordered = sorted(samples, key=lambda sample: sample.key)
    path = join(folder, shard_name(prefix, shard)) if folder else shard_name(prefix, shard)
    if not ordered:
        remove_files([path])
        return []
    with replacing(path) as stream:
        try:
            return write_tar(stream, ordered)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
