"""What it costs to choose the best of many samples on one machine, with near duplicates among them and without.

    python -m benchmarks.best_k [--best 1000] [--counts 250000,500000,1000000]

The candidates are made up: a quality and 64 random bits each, and every tenth looks like the one before it. They are
made on the workers, as a job reads them from the shards' books, and nothing but the local runner holds them. Every
measurement is a process of its own; its peak memory is the whole process', Python and Beam included. Seconds are the
processor's: what else the machine does is not in them.
"""

import time
from collections.abc import Iterator
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
from rich.console import Console
from rich.table import Table

from benchmarks.memory import peak_mb
from schemas.keys import rng_of
from transforms.selection.top_k import Candidate, ChooseBest, MarkNearDuplicates

PER_SHARD = 1000
COPIED = 10
"""Every so manieth candidate is a copy."""


@dataclass(frozen=True)
class Cost:
    """Of one choice: seconds, megabytes of the process before and at its peak, and how many were chosen."""

    seconds: float
    before: float
    peak: float
    chosen: int


def candidates_of(shard: int) -> Iterator[Candidate]:
    """Make the candidates of a shard; a copy has two bits flipped, and another quality."""
    rng = rng_of(0, "candidates", str(shard))
    looks = rng.integers(0, 2**64, PER_SHARD, dtype=np.uint64)
    looks[COPIED - 1 :: COPIED] = looks[COPIED - 2 :: COPIED] ^ np.uint64(0b11)
    for i, (look, quality) in enumerate(zip(looks.tolist(), rng.random(PER_SHARD).round(4).tolist(), strict=True)):
        yield Candidate(shard, f"sa_{shard * PER_SHARD + i}", quality, look)


def choose(count: int, best: int, distance: int | None, output: str) -> Cost:
    """Choose the best of `count` candidates and write their keys to the file `output`, one on a line."""
    before, started = peak_mb(), time.process_time()
    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as pipeline:
        candidates = (
            pipeline | beam.Create(range(count // PER_SHARD)) | beam.FlatMap(candidates_of).with_output_types(Candidate)
        )
        if distance is not None:
            candidates |= MarkNearDuplicates(distance)
        _ = candidates | ChooseBest(best) | beam.Map(partial(_note, output))
    seconds = time.process_time() - started
    return Cost(seconds, before, peak_mb(), len(Path(output).read_text().splitlines()))


def _note(output: str, candidate: Candidate) -> None:
    with Path(output).open("a") as file:
        file.write(f"{candidate.key}\n")


def measure(count: int, best: int, distance: int | None) -> Cost:
    """Choose in a fresh process."""
    with TemporaryDirectory() as folder, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(choose, count, best, distance, f"{folder}/chosen").result()


def main(
    best: Annotated[int, typer.Option(help="How many to choose.")] = 1000,
    counts: Annotated[str, typer.Option(help="Of how many, separated by commas.")] = "250000,500000,1000000",
    distance: Annotated[int, typer.Option(help="Bits in which near duplicates differ at most.")] = 3,
) -> None:
    """Print seconds and peak memory."""
    table = Table(title=f"the best {best:,}, on the local runner")
    for title in ("of", "near duplicates", "seconds", "microseconds each", "peak MB", "MB before"):
        table.add_column(title, justify="right")
    for apart in (None, distance):
        for count in map(int, counts.split(",")):
            cost = measure(count, best, apart)
            assert cost.chosen == best
            each = f"{cost.seconds / count * 1e6:.0f}"
            told = "stay" if apart is None else f"go ({apart} bits)"
            table.add_row(f"{count:,}", told, f"{cost.seconds:.1f}", each, f"{cost.peak:.0f}", f"{cost.before:.0f}")
    Console(highlight=False).print(table)


if __name__ == "__main__":
    typer.run(main)
