"""Progress of a local job, through a file: the local runner reports nothing until it ends."""

import os
from contextlib import suppress
from dataclasses import dataclass

import apache_beam as beam

from transforms.batch import Batch


@dataclass(eq=False)
class CountRecords(beam.PTransform):
    """Pass batches on, and append a byte to the local file `path` for every record; with "", only pass them on.

    Appending is atomic, so that several processes can share the file; its size is the count so far.
    """

    path: str

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Count the records of each batch."""
        return batches | "count records" >> beam.Map(self._count) if self.path else batches

    def _count(self, batch: Batch) -> Batch:
        count_records(self.path, len(batch.records))
        return batch


def count_records(path: str, count: int) -> None:
    """Append a byte for each of `count` records to the local file `path`."""
    with suppress(OSError):  # a full TMPDIR costs the bar, and nothing else
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(file, b"." * count)
        finally:
            os.close(file)
