"""Processor time and memory of choosing the best of many samples with the local runner.

    python -m benchmarks.best_k [--best 1000] [--counts 250000,500000,1000000] [--write]

Each candidate has a random quality and a random hash of 64 bits; every tenth is a near copy of the one before it.
Candidates are created on the workers, as a job reads them from the shards, so that only the local runner holds them.
Every measurement runs in a process of its own; peak memory includes Python and Beam.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import apache_beam as beam
import numpy as np
import typer
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from benchmarks.memory import peak_mb
from benchmarks.tables import Row, Write, report
from schemas.keys import rng_of
from transforms.selection.top_k import Candidate, ChooseBest, MarkNearDuplicates

PER_SHARD = 1000
COPIED = 10
"""Every tenth candidate is a near copy of the one before it."""


@dataclass(frozen=True)
class Cost:
    """Cost of a choice: processor time in seconds, memory before it and at its peak in MB, and how many were chosen."""

    seconds: float
    before: float
    peak: float
    chosen: int


def candidates_of(shard: int) -> Iterator[Candidate]:
    """Create the candidates of a shard; a copy has another quality and two bits of its hash flipped."""
    rng = rng_of(0, "candidates", str(shard))
    hashes = rng.integers(0, 2**64, PER_SHARD, dtype=np.uint64)
    hashes[COPIED - 1 :: COPIED] = hashes[COPIED - 2 :: COPIED] ^ np.uint64(0b11)
    qualities = rng.random(PER_SHARD).round(4)
    for i, (phash, quality) in enumerate(zip(hashes.tolist(), qualities.tolist(), strict=True)):
        yield Candidate(shard, f"sa_{shard * PER_SHARD + i}", quality, phash)


def choose(count: int, best: int, distance: int | None, output: str) -> Cost:
    """Choose the best of `count` candidates and write their keys to the file `output`, one per line."""
    before, started = peak_mb(), time.process_time()
    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as pipeline:
        candidates = (
            pipeline | beam.Create(range(count // PER_SHARD)) | beam.FlatMap(candidates_of).with_output_types(Candidate)
        )
        if distance is not None:
            candidates |= MarkNearDuplicates(distance)
        _ = candidates | ChooseBest(best) | beam.Map(partial(_append_key, output))
    seconds = time.process_time() - started
    return Cost(seconds, before, peak_mb(), len(Path(output).read_text().splitlines()))


def _append_key(output: str, candidate: Candidate) -> None:
    with Path(output).open("a") as file:
        file.write(f"{candidate.key}\n")


def measure(count: int, best: int, distance: int | None) -> Cost:
    """Choose in a fresh process."""
    with TemporaryDirectory() as folder, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(choose, count, best, distance, f"{folder}/chosen").result()


def rows(counts: Sequence[int], best: int, distance: int) -> Iterator[Row]:
    """Measure each number of candidates, with near duplicates kept and with them removed."""
    for allowed in (None, distance):
        for count in counts:
            cost = measure(count, best, allowed)
            assert cost.chosen == best
            duplicates = "kept" if allowed is None else f"within {allowed} bits removed"
            each = f"{cost.seconds / count * 1e6:.0f} us per candidate"
            note = f"{each}, peak memory {cost.peak:.0f} MB, {cost.before:.0f} MB before"
            yield Row(f"{count:,} candidates, near duplicates {duplicates}", f"{cost.seconds:.1f} s", note)


def main(
    best: Annotated[int, typer.Option(help="Number of samples to choose.")] = 1000,
    counts: Annotated[str, typer.Option(help="Numbers of candidates, separated by commas.")] = "250000,500000,1000000",
    distance: Annotated[int, typer.Option(help="Near duplicates differ in at most this many bits.")] = 3,
    write: Write = False,
) -> None:
    """Measure processor time and peak memory."""
    report(
        "best_k", __doc__ or "", list(rows([int(count) for count in counts.split(",")], best, distance)), write=write
    )


if __name__ == "__main__":
    typer.run(main)
