"""Read the chunks of a source on the workers, into batches.

    listing = list_source("pictures", samples_per_shard=1000)    (transforms.listing)
    batches = pipeline | ReadBatches(listing.chunks)

The content of a chunk depends on the source alone, so that of a shard does too.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import apache_beam as beam

from schemas.keys import clean_key
from schemas.rejects import PASSING, Reason, Reject
from transforms.batch import Batch, Outcome, reject_of
from transforms.listing import BATCH_SIZE
from transforms.outages import ATTEMPTS, Recent, is_passing, retry_items
from transforms.sources.records import STAGE, Chunk, Item, Unloaded, attempt, refuse
from transforms.work import Death, working_on


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

    It is applied to the pipeline itself. The batches are the same on any number of workers, in any order.
    """

    chunks: Sequence[Chunk]
    reading: Reading = Reading()

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection[Batch]:
        """Spread the items over the workers, then read each."""
        items = [(chunk.shard, item) for chunk in self.chunks for item in chunk.items]
        return (
            pipeline
            | "items" >> beam.Create(items, reshuffle=False)
            | "spread" >> beam.Reshuffle()
            | "read" >> beam.ParDo(_Read(self.reading)).with_output_types(Batch)
        )


class _Read(beam.DoFn):
    """Reads items, and knows how the last reads of its worker went."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def setup(self) -> None:
        self._recent = Recent(self._reading.failures)

    def process(self, element: Any) -> Iterator[Batch]:  # noqa: ANN401 - Beam cannot check a Protocol
        shard, item = element
        return read_batches(shard, item, self._reading, self._recent)


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
