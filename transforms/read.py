"""Read the chunks of a source on the workers, into batches.

    listing = list_source("pictures", samples_per_shard=1000)    (transforms.listing)
    batches = pipeline | ReadBatches(listing.chunks)

The content of a chunk depends on the source alone, so that of a shard does too.
"""

import itertools
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import apache_beam as beam

from schemas.keys import clean_key
from schemas.rejects import PASSING, Reason, Reject
from transforms.batch import Batch, Outcome, reject_of
from transforms.dataset import STATE
from transforms.files import join, replacing
from transforms.listing import BATCH_SIZE
from transforms.outages import ATTEMPTS, Recent, is_passing, retry_items
from transforms.pieces import finished_items, piece_name
from transforms.sources.records import STAGE, Chunk, Item, Unloaded, attempt, refuse
from transforms.spool import Shelf, Shelved
from transforms.work import Death, working_on

PER_GROUP = 500
"""Chunks that one element of a pipeline on a remote runner begins with."""


@dataclass(eq=False)
class CreateChunks(beam.PTransform):
    """The chunks as a PCollection. It is applied to the pipeline itself.

    The job's graph holds 300 bytes for each chunk whose items are on a shelf (see `transforms.spool`), or for each
    group of chunks that `publish` made.
    """

    chunks: Sequence[Chunk | Shelved[Chunk]]

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection[Chunk]:
        """Create them."""
        return pipeline | "create" >> beam.Create(self.chunks, reshuffle=False) | "each" >> beam.FlatMap(_each)


def _each(chunk: Any) -> Iterable[Chunk]:  # noqa: ANN401 - Beam takes a generic class for another type
    return chunk if isinstance(chunk, Shelved) else [chunk]


def publish(chunks: Sequence[Chunk], output: str) -> list[Shelved[Chunk]]:
    """Copy the chunks and their items to the dataset's folder `output`, for workers that cannot read files from here.

    Returns:
        The chunks in groups of `PER_GROUP`.
    """
    plan, items = join(output, STATE, "plan"), join(output, STATE, "plan-items")
    stored = {chunk.items.path for chunk in chunks if isinstance(chunk.items, Shelved)}
    assert len(stored) <= 1, "the chunks of one listing are on one shelf"
    for path in stored:
        with Path(path).open("rb") as source, replacing(items) as copy:
            shutil.copyfileobj(source, copy)
    moved = [
        replace(chunk, items=chunk.items.at(items)) if isinstance(chunk.items, Shelved) else chunk for chunk in chunks
    ]
    shelf = Shelf[Chunk]()
    groups = [shelf.put(moved[i : i + PER_GROUP]) for i in range(0, len(moved), PER_GROUP)]
    shelf.close()
    with shelf.path.open("rb") as source, replacing(plan) as copy:
        shutil.copyfileobj(source, copy)
    return [group.at(plan) for group in groups]


@dataclass(frozen=True)
class Reading:
    """How records are read.

    Attributes:
        batch_size: most records of a batch.
        needs_captions: reject pictures without a caption; otherwise they have the caption "".
        deadly: records that are rejected and not loaded, as they killed the process that worked on them, by key.
        attempts: times that a read is tried.
        failures: largest share of consecutive records that cannot be read before the run stops.
    """

    batch_size: int = BATCH_SIZE
    needs_captions: bool = True
    deadly: Mapping[str, Death] = field(default_factory=dict)
    attempts: int = ATTEMPTS
    failures: float = 0.05


@dataclass(eq=False)
class ReadBatches(beam.PTransform):
    """Read chunks into batches of consecutive records of one shard.

    It is applied to the pipeline itself. The batches are the same on any number of workers, in any order. Items whose
    pieces an earlier run has left in the dataset's folder `output` are left out ("": none are).
    """

    chunks: Sequence[Chunk | Shelved[Chunk]]
    reading: Reading = Reading()
    output: str = ""

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection[Batch]:
        """Spread the items over the workers, then read each."""
        return (
            pipeline
            | "chunks" >> CreateChunks(self.chunks)
            | "items" >> beam.FlatMap(self._items)
            | "spread" >> beam.Reshuffle()
            | "read" >> beam.ParDo(_Read(self.reading)).with_output_types(Batch)
        )

    def _items(self, chunk: Chunk) -> Iterator[tuple[int, str, int, Item]]:
        shard, fingerprint = chunk.shard, chunk.fingerprint
        finished = finished_items(self.output, shard, fingerprint) if self.output else frozenset[int]()
        for number, item in enumerate(chunk.items):
            if number not in finished:
                yield shard, fingerprint, number, item


class _Read(beam.DoFn):
    """Reads items, and knows how the last reads of its worker went."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def setup(self) -> None:
        self._recent = Recent(self._reading.failures)

    def process(self, element: Any) -> Iterator[Batch]:  # noqa: ANN401 - Beam cannot check a Protocol
        shard, fingerprint, number, item = element
        batches = read_batches(shard, item, self._reading, self._recent)
        following = next(batches, None)
        for count in itertools.count():
            batch, following = following, next(batches, None)
            if not batch:
                return
            yield replace(batch, piece=piece_name(shard, fingerprint, number, count, is_last=not following))


def read_batches(
    shard: int, item: Item, reading: Reading | None = None, recent: Recent | None = None
) -> Iterator[Batch]:
    """Yield the records of `item` in batches for `shard`, with the seconds that reading took.

    Raises:
        OutageError: of the records of `recent`, to which these are added, too many could not be read.
    """
    reading = reading or Reading()
    records = _records(item, reading, recent or Recent(reading.failures))
    while True:
        started = time.perf_counter()
        batch = tuple(islice(records, reading.batch_size))
        if not batch:
            return
        yield Batch(shard, batch, ((STAGE, time.perf_counter() - started),))


def _records(item: Item, reading: Reading, recent: Recent) -> Iterator[Outcome]:
    try:
        for record in retry_items(item.read, _attempts(reading, recent)):
            yield record if isinstance(record, Reject) else _load(record, reading, recent)
    except OSError as error:
        if not is_passing(error):
            raise
        # How many records the rest of the item holds, nobody knows; the shard is not finished.
        rest = reject_of(clean_key(error.filename or "item"), error.filename or "", STAGE, error)
        recent.add(rest.detail)
        yield rest


def _attempts(reading: Reading, recent: Recent) -> int:
    return 1 if recent.is_out else reading.attempts


def _load(record: Unloaded, reading: Reading, recent: Recent) -> Outcome:
    if death := reading.deadly.get(record.key):
        detail = f"the process that worked on it died, each time that it was tried: {death.how}"
        return Reject(record.key, record.uri, death.stage, Reason.KILLED_WORKER, detail)
    with working_on(STAGE, [record.key]):
        loaded = attempt(record.key, record.uri, record.load, _attempts(reading, recent))
    recent.add(loaded.detail if isinstance(loaded, Reject) and loaded.reason in PASSING else "")
    if isinstance(loaded, Reject) or loaded.caption or not reading.needs_captions:
        return loaded
    return refuse(record.key, record.uri, Reason.MISSING_CAPTION, "there is no caption with the picture")
