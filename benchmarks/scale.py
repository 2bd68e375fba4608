"""Memory and time of all that is not a picture: listing, members, pieces, books, index, for more and more records.

    python -m benchmarks.scale [--sizes 100000,1000000] [--write]

A source of records without pictures goes through a build of two steps that look at nothing: what grows here grows with
the number of records alone. Each size runs in a process of its own, driver and worker, on Beam's local runner.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console

from benchmarks.memory import peak_mb
from benchmarks.tables import Row, Write, report
from jobs.build import Request, build
from pipelines import RECIPES
from pipelines.recipe import BuildConfig, Recipe
from schemas.example import Example, Source
from schemas.rejects import Reject
from schemas.samples import FORMATS
from schemas.samples.base import SampleFormat, SampleRecord
from transforms.models.presets import resolve
from transforms.sources.files import File
from transforms.sources.kinds import KINDS, Kind, Listed, Query
from transforms.sources.records import Entry

SUFFIX = ".count"


@dataclass(frozen=True)
class Blank:
    """A record without a picture; each twentieth is refused."""

    number: int

    @property
    def key(self) -> str:
        """A key that sorts as the numbers do not."""
        return f"{self.number * 7919 % 100_000_007:09d}"

    @property
    def uri(self) -> str:
        """An address."""
        return f"blank://{self.number}"

    @property
    def length(self) -> int:
        """As a picture of 60 kB."""
        return 60_000

    @property
    def stamp(self) -> str:
        """The number."""
        return str(self.number)

    def load(self) -> Example:
        """Return an example whose caption has sixty characters."""
        caption = f"a photograph of thing number {self.number:012d} on a wooden table" if self.number % 20 else ""
        return Example(self.key, b"", 1, 1, caption, Source(self.uri), caption)


def list_blanks(query: Query) -> Listed:
    """Make the chunks of as many records as the name of the source's file says."""
    entries: Iterator[Entry | Reject] = (Blank(number) for number in range(int(query.wanted[0].stem)))
    return query.cut(entries)


def is_count(file: File) -> bool:
    """Whether a file's name says how many records there are."""
    return file.name.endswith(SUFFIX)


def run_once(count: int) -> None:
    """Build from `count` records in this process; print processor seconds, peak memory in MB, and what was written."""
    # The tables of kinds, formats and recipes are not meant to be changed: this process ends after it.
    cast("dict[str, Kind]", KINDS)["blank"] = Kind(is_count, list_blanks)
    columns = FORMATS["captioned"].columns
    cast("dict[str, SampleFormat]", FORMATS)["blank"] = SampleFormat("blank", SampleRecord, {}, columns)
    blank = Recipe("blank", BuildConfig, lambda config, *_: config, lambda *_: [])
    cast("dict[str, Recipe[BuildConfig]]", RECIPES)["blank"] = blank
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / f"{count}{SUFFIX}"
        source.touch()
        config = BuildConfig(batch_size=256, samples_per_shard=5000)
        started = time.process_time()
        request = Request("blank", str(source), str(Path(temporary) / "out"), config, resolve("sample", {}))
        info = build(request, Console(stderr=True, quiet=True))
        seconds = time.process_time() - started
        print(seconds, peak_mb(), info.counts.written, info.counts.rejected, info.counts.shards)


def measure(sizes: list[int]) -> Iterator[Row]:
    """Measure each size in a process of its own."""
    first: tuple[int, float, float] | None = None
    for count in sizes:
        command = [sys.executable, "-m", "benchmarks.scale", "--once", str(count)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
        seconds, peak, written, rejected, shards = map(float, done.stdout.split())
        assert written + rejected == count
        name = f"{count:,} records"
        note = f"{count / seconds:,.0f} records/s, {shards:.0f} shards"
        yield Row(f"{name}: processor time", f"{seconds:.1f} s", note)
        growth = f"{peak / first[2]:.2f} times that of {first[0]:,}" if first else "of the driver and its worker"
        yield Row(f"{name}: peak memory", f"{peak:.0f} MB", growth)
        first = first or (count, seconds, peak)


def main(
    sizes: Annotated[str, typer.Option(help="Numbers of records.")] = "100000,1000000",
    once: Annotated[int | None, typer.Option(hidden=True)] = None,
    write: Write = False,
) -> None:
    """Measure how memory and time grow with the number of records."""
    if once is not None:
        run_once(once)
        return
    report("scale", __doc__ or "", list(measure([int(size) for size in sizes.split(",")])), write=write)


if __name__ == "__main__":
    typer.run(main)
