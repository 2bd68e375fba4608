"""The page of `subjectloom view` over 100,000 samples: how long its parts take.

    python -m benchmarks.view

The dataset has a hundred samples of two subjects; its index is repeated a thousand times under other keys, with scores
at random. Each row is the median of five requests to a server on this machine; the first page is what a browser loads
before it shows 24 samples: the page, its style and script, the rows, the slider's curve, the classes, 24 pictures.
"""

import json
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from urllib.request import urlopen

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from benchmarks.tables import Row, Write, report
from jobs.view.data import View
from jobs.view.server import Server
from tests.datasets import example, write_dataset
from transforms.dataset import read_table

SAMPLES, COPIES, RUNS = 100, 1000, 5
BOUND = 1.0
"""Most seconds of the first page."""

SUBJECTS = (("a dog", (4, 6, 120, 90)), ("a cat", (140, 6, 90, 120)))


def make_dataset(folder: Path) -> None:
    """Write the dataset."""
    write_dataset(folder, [[example(f"{n:03d}", SUBJECTS, size=(640, 480)) for n in range(SAMPLES)]])
    index = read_table(str(folder), "index.parquet")
    rng = np.random.default_rng(0)
    copies = []
    for copy in range(COPIES):
        keys = pa.array([f"{copy:04d}-{key}" for key in index["key"].to_pylist()])
        scores = pa.array(rng.uniform(0.3, 1, len(index)).round(4))
        table = index.set_column(index.column_names.index("key"), "key", keys)
        copies.append(table.set_column(table.column_names.index("score_min"), "score_min", scores))
    pq.write_table(pa.concat_tables(copies).cast(index.schema), folder / "index.parquet")


def seconds(work: Callable[[], object]) -> float:
    """The seconds that a piece of work takes, the median of some runs."""
    spent = []
    for _ in range(RUNS):
        started = time.perf_counter()
        work()
        spent.append(time.perf_counter() - started)
    return median(spent)


def measure(folder: Path) -> list[Row]:
    """Measure the parts of the page."""
    make_dataset(folder / "data")

    def read() -> View:
        return View(str(folder / "data"), folder / "excluded.txt")

    opening = seconds(read)
    with Server(read()) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def ask(path: str) -> bytes:
            with urlopen(server.address + path) as answer:  # noqa: S310 - our own server
                content: bytes = answer.read()
            return content

        def first() -> None:
            for path in ("", "view.css", "view.js", "curve?column=score_mean", "values?column=labels"):
                ask(path)
            for sample in json.loads(ask("samples"))["samples"]:
                ask(f"picture?key={sample['key']}")

        numbers = iter(range(10**6))

        def other(path: str) -> Callable[[], object]:
            return lambda: ask(path.format(0.5 + next(numbers) / 10**6))  # never the same one: none is remembered

        page = seconds(first)
        exceeded = ", exceeded" if page > BOUND else ""
        rows = [
            Row("reading the index", f"{opening:.2f} s", "once, when the command starts"),
            Row("first page", f"{page:.2f} s", f"at most {BOUND:.0f}{exceeded}"),
            Row("rows sorted by a score", f"{seconds(other('samples?sort=-score_min&where=width>{}')):.2f} s", ""),
            Row("rows found by a word", f"{seconds(other('samples?text=dog&where=width>{}')):.2f} s", ""),
            Row(
                "rows above a score", f"{seconds(other('samples?score=scores&threshold={}')):.2f} s", "highest of each"
            ),
            Row("bytes of a page's rows", f"{len(ask('samples')):,}", "of 24 samples"),
        ]
        server.shutdown()
    return rows


def main(write: Write = False) -> None:
    """Measure the page."""
    with tempfile.TemporaryDirectory() as folder:
        report("view", __doc__ or "", measure(Path(folder)), write=write)


if __name__ == "__main__":
    typer.run(main)
