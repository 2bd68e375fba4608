"""Read the chunks of a source on the workers, into batches.

    listing = list_source("pictures", samples_per_shard=1000)    (transforms.listing)
    batches = pipeline | ReadBatches(listing.chunks)

The content of a chunk depends on the source alone, so that of a shard does too.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import apache_beam as beam

from schemas.rejects import Reason, Reject
from transforms.batch import Batch, Outcome
from transforms.listing import BATCH_SIZE
from transforms.sources.records import STAGE, Chunk, Item, Unloaded, attempt, refuse
from transforms.work import Death, working_on


@dataclass(eq=False)
class ReadBatches(beam.PTransform):
    """Read chunks into batches of at most `batch_size` consecutive records of one shard.

    It is applied to the pipeline itself. The batches are the same on any number of workers, in any order. With
    `needs_captions`, pictures without a caption are rejected; otherwise they have the caption "". Records whose keys
    are in `deadly` are rejected and not loaded: they killed the process that worked on them.
    """

    chunks: Sequence[Chunk]
    batch_size: int = BATCH_SIZE
    needs_captions: bool = True
    deadly: Mapping[str, Death] = field(default_factory=dict)

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection[Batch]:
        """Spread the items over the workers, then read each."""
        items = [(chunk.shard, item) for chunk in self.chunks for item in chunk.items]
        return (
            pipeline
            | "items" >> beam.Create(items, reshuffle=False)
            | "spread" >> beam.Reshuffle()
            | "read" >> beam.FlatMapTuple(self._read)
        )

    def _read(self, shard: int, item: Item) -> Iterator[Batch]:
        return read_batches(shard, item, self.batch_size, needs_captions=self.needs_captions, deadly=self.deadly)


def read_batches(
    shard: int,
    item: Item,
    batch_size: int = BATCH_SIZE,
    *,
    needs_captions: bool = True,
    deadly: Mapping[str, Death] | None = None,
) -> Iterator[Batch]:
    """Yield the records of `item` in batches for `shard`, with the seconds that reading took.

    With `needs_captions`, pictures without a caption are rejected; those in `deadly` are rejected in any case.
    """
    loaded = (_load(record, deadly or {}) for record in item.read())
    records = map(_check_caption, loaded) if needs_captions else loaded
    while True:
        started = time.perf_counter()
        batch = tuple(islice(records, batch_size))
        if not batch:
            return
        yield Batch(shard, batch, ((STAGE, time.perf_counter() - started),))


def _load(record: Unloaded | Reject, deadly: Mapping[str, Death]) -> Outcome:
    if isinstance(record, Reject):
        return record
    if death := deadly.get(record.key):
        detail = f"the process that worked on it died, each time that it was tried: {death.how}"
        return Reject(record.key, record.uri, death.stage, Reason.KILLED_WORKER, detail)
    with working_on(STAGE, [record.key]):
        return attempt(record.key, record.uri, record.load)


def _check_caption(record: Outcome) -> Outcome:
    if isinstance(record, Reject) or record.caption:
        return record
    return refuse(record.key, record.source.uri, Reason.MISSING_CAPTION, "there is no caption with the picture")
