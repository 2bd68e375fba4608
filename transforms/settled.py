"""What a batch comes to: samples with their rows of the index, and rejects."""

import time
from dataclasses import dataclass

from schemas.dataset import RejectRow, Row
from schemas.example import Example
from schemas.samples.base import SampleFormat
from schemas.shards import Sample, shard_name
from transforms.batch import Batch, reject
from transforms.work import working_on

STAGE = "write"


@dataclass(frozen=True)
class Settled:
    """A finished batch: every record that was read is a sample with its row of the index, or a reject."""

    read: int = 0
    samples: tuple[Sample, ...] = ()
    rows: tuple[Row, ...] = ()
    rejects: tuple[RejectRow, ...] = ()
    seconds: tuple[tuple[str, float], ...] = ()


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
