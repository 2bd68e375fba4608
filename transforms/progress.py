"""Progress of a job: Beam's metrics on any runner, and on the local one a file, as that reports nothing until it ends.

The metrics have the namespace `subjectloom`: the counters `records`, `rejects` and `rejects at STAGE: REASON`, and the
distributions `STAGE milliseconds` of a batch. Each reject is logged as a line of JSON.
"""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.metrics import Metrics

from schemas.rejects import Reject
from transforms.batch import Batch

NAMESPACE = "subjectloom"
LOG = logging.getLogger("subjectloom.rejects")
DONE, REFUSED = b".", b"x"


@dataclass(eq=False)
class CountRecords(beam.PTransform):
    """Pass batches on, and count their records; in the local file `path` too, a byte for each record, unless it is "".

    Appending is atomic, so that several processes can share the file; its size is the count so far.
    """

    path: str

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Count the records of each batch."""
        return batches | "count records" >> beam.ParDo(_Count(self.path))


class _Count(beam.DoFn):
    def __init__(self, path: str) -> None:
        self._path = path
        self._records = Metrics.counter(NAMESPACE, "records")
        self._rejects = Metrics.counter(NAMESPACE, "rejects")

    def process(self, batch: Batch) -> Iterator[Batch]:
        rejects = [record for record in batch.records if isinstance(record, Reject)]
        self._records.inc(len(batch.records))
        self._rejects.inc(len(rejects))
        for reject in rejects:
            Metrics.counter(NAMESPACE, f"rejects at {reject.stage}: {reject.reason}").inc()
            LOG.info("%s", _line(reject))
        for stage, seconds in batch.seconds:
            Metrics.distribution(NAMESPACE, f"{stage} milliseconds").update(round(1000 * seconds))
        if self._path:
            count_records(self._path, len(batch.records) - len(rejects))
            count_records(self._path, len(rejects), REFUSED)
        yield batch


def _line(reject: Reject) -> str:
    fields = {"key": reject.key, "stage": reject.stage, "reason": reject.reason, "detail": reject.detail}
    return json.dumps({**fields, "source": reject.source})


def count_records(path: str, count: int, kind: bytes = DONE) -> None:
    """Append a byte of a kind, `DONE` or `REFUSED`, for each of `count` records to the local file `path`."""
    with suppress(OSError):  # a full TMPDIR costs the bar, and nothing else
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(file, kind * count)
        finally:
            os.close(file)
