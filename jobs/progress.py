"""The progress of a build: a bar on a terminal, a line every half minute elsewhere."""

import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from transforms.progress import REFUSED
from transforms.sources.records import Chunk

EVERY = 30.0
"""Seconds between the lines."""


@contextmanager
def progress_bar(console: Console, chunks: Sequence[Chunk], models: Sequence[str]) -> Iterator[str]:
    """Show the number of finished records while the block runs; yield the local file that workers append to.

    Args:
        console: where it is shown.
        chunks: what is built.
        models: kinds of the models; until the first record is done, they are being loaded.
    """
    expected = [chunk.expected for chunk in chunks]
    total = None if None in expected else sum(n for n in expected if n is not None)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}"))
    loading = f"loading {', '.join(models)}" if models else "starting"
    if chunks and not console.is_terminal:
        console.print(loading, soft_wrap=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar,
    ):
        path = Path(folder) / "progress"
        path.touch()
        task = bar.add_task(loading, total=total, state="")
        finished = threading.Event()

        def show() -> None:
            started, last, counter = time.monotonic(), False, Counter(path)
            while not last:
                last = finished.wait(0.2 if console.is_terminal else EVERY)
                count, refused = counter.read()
                state = f"{count / (time.monotonic() - started):.1f}/s, {refused:,} rejected"
                if console.is_terminal and count:
                    bar.update(task, completed=count, state=state, description="pictures")
                elif not console.is_terminal and not last:
                    speed = f", {state}" if count else ""
                    console.print(f"{count:,} of {total or '?'} pictures{speed}", soft_wrap=True, highlight=False)

        watcher = threading.Thread(target=show, daemon=True)
        watcher.start()
        try:
            yield str(path)
        finally:
            finished.set()
            watcher.join()


class Counter:
    """Counts the records in the file that workers append to."""

    def __init__(self, path: Path) -> None:
        self._path, self._count, self._refused = path, 0, 0

    def read(self) -> tuple[int, int]:
        """Return the number of records and of rejected ones, so far."""
        with self._path.open("rb") as stream:
            if self._path.stat().st_size < self._count:  # a round is made again
                self._count = self._refused = 0
            stream.seek(self._count)
            new = stream.read()
        self._count += len(new)
        self._refused += new.count(REFUSED)
        return self._count, self._refused
