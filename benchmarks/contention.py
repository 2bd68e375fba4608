"""What other programs on the same machine cost a build: alone, and beside a busy loop on each core.

    python -m benchmarks.contention [--count 64] [--write]

A build has a fair share of the cores left: with a loop on each, one of its threads gets about two thirds of a core on
two cores, half of one on many. What is beyond is lost by threads that wait for each other and take time doing so.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benchmarks.tables import Row, Write, report
from jobs.scenes import write_scenes
from schemas.machine import THREADS, cores

RUNS = 3
"""Builds of each kind, in turn; the median counts."""


def seconds_of_build(recipe: str, pictures: Path, output: Path) -> float:
    """Run `subjectloom build` in a process of its own, as a user does, and return how long it took."""
    environment = {name: value for name, value in os.environ.items() if name not in THREADS}
    command = [sys.executable, "-m", "jobs.main", "build", recipe, "--overwrite"]
    command += ["--input", str(pictures), "--output", str(output)]
    started = time.perf_counter()
    subprocess.run(command, env=environment, check=True, capture_output=True)  # noqa: S603
    return time.perf_counter() - started


@contextmanager
def busy_cores() -> Iterator[None]:
    """Run an endless loop on each core."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores())]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def measure(count: int) -> Iterator[Row]:
    """Build `count` scenes with two recipes, alone and beside busy loops."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        list(write_scenes(folder / "scenes", count, seed=2000))
        for recipe in ("fastcomposer", "blip-diffusion"):
            alone, beside = [], []
            for run in range(RUNS):
                target = folder / f"{recipe}-{run}"
                alone.append(seconds_of_build(recipe, folder / "scenes" / "images", target))
                with busy_cores():
                    beside.append(seconds_of_build(recipe, folder / "scenes" / "images", target))
            quiet, busy = median(alone), median(beside)
            yield Row(f"{recipe}, alone", f"{quiet:.1f} s", f"{count} scenes, {cores()} cores")
            yield Row(f"{recipe}, beside a loop on each core", f"{busy:.1f} s", f"{busy / quiet:.2f} times, bound 2.5")


def main(
    count: Annotated[int, typer.Option(help="Scenes to build from.")] = 64,
    write: Write = False,
) -> None:
    """Measure how much longer a build takes on a busy machine."""
    report("contention", __doc__ or "", list(measure(count)), write=write)


if __name__ == "__main__":
    typer.run(main)
