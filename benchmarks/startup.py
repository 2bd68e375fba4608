"""Processor time until the command answers, beside that of `import apache_beam`.

    python -m benchmarks.startup

Each row is the median of three fresh processes, user and system time, over the median of importing Beam in the same
run: the ratio travels between machines, the seconds do not.
"""

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

RUNS = 3
ROOT = Path(__file__).parents[1]
COCO = ROOT.parent / "shared" / "real" / "tiny_coco"
"""33 pictures with COCO's instance annotations and captions."""

BEAM = (sys.executable, "-c", "import apache_beam")
COMMAND = (sys.executable, "-m", "jobs.main")


@dataclass(frozen=True)
class Case:
    """A command line, the exit code that it must have, and the largest ratio that it may have."""

    name: str
    arguments: tuple[str, ...]
    bound: float
    code: int = 1


@dataclass(frozen=True)
class Row:
    """A case's processor time over that of importing Beam."""

    name: str
    ratio: float
    bound: float


def cases(folder: Path) -> list[Case]:
    """The cases; what they need and write lies in `folder`. The build is left out where its pictures are missing."""
    config = folder / "wrong.yaml"
    config.write_text("thresold: 0.5\n", encoding="utf-8")
    pictures = folder / "pictures"
    pictures.mkdir()
    (pictures / "dog.txt").write_text("a dog", encoding="utf-8")
    build = ("build", "fastcomposer", "--input", str(pictures), "--output", str(folder / "out"))
    listed = [
        Case("--help", ("--help",), 0.5, code=0),
        Case("a wrong option", (*build, "--simlarity", "label"), 0.5, code=2),
        Case("a wrong field", (*build, "--config", str(config)), 0.5),
        Case("a wrong folder", (*build[:3], str(folder / "none"), *build[4:]), 0.5),
        Case("a wrong recipe", ("build", "fastcompser", *build[2:]), 0.5),
    ]
    if COCO.is_dir():
        arguments = (*build[:3], str(COCO), "--output", str(folder / "coco"), "--similarity", "label", "--overwrite")
        listed.append(Case("building 33 annotated pictures", arguments, 3.0, code=0))
    return listed


def processor_seconds(command: Sequence[str], code: int = 0) -> float:
    """Run a command to its end in a fresh process; return its user and system time.

    Raises:
        RuntimeError: it ended with another exit code than `code`.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != code:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-500:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(folder: Path) -> tuple[float, list[Row]]:
    """Measure all cases; return the seconds of importing Beam and a row per case."""
    listed = cases(folder)
    beam: list[float] = []
    seconds: dict[str, list[float]] = {case.name: [] for case in listed}
    for _ in range(RUNS):  # in turns, so that a busy moment of the machine meets all of them
        beam.append(processor_seconds(BEAM))
        for case in listed:
            seconds[case.name].append(processor_seconds((*COMMAND, *case.arguments), case.code))
    return median(beam), [Row(case.name, median(seconds[case.name]) / median(beam), case.bound) for case in listed]


def main() -> None:
    """Print the table; exit with 1 where a bound is exceeded."""
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        beam, rows = measure(Path(folder))
    table = Table("processor time", "of importing Beam", "at most", box=None)
    for row in rows:
        table.add_row(row.name, f"{row.ratio:.2f}", f"{row.bound:.1f}", style="red" if row.ratio > row.bound else "")
    console.print(table)
    console.print(f"importing Beam took {beam:.2f} s of processor time")
    if not COCO.is_dir():
        console.print(f"building 33 annotated pictures: left out, as there is no folder {COCO}")
    if any(row.ratio > row.bound for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
