"""Processor time until the command answers, beside that of `import apache_beam`.

    python -m benchmarks.startup

Each row is the median of three fresh processes, user and system time, over the median of importing Beam in the same
run: ratios can be compared between machines, seconds cannot. A run before them lets Python keep the compiled modules,
as an installation has them.
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

import typer

from benchmarks.tables import Row, Write, report

RUNS = 3
ROOT = Path(__file__).parents[1]
COCO = ROOT.parent / "shared" / "real" / "tiny_coco"
"""33 pictures with COCO's instance annotations and captions."""

BEAM = (sys.executable, "-c", "import apache_beam")
COMMAND = (sys.executable, "-m", "jobs.main")


@dataclass(frozen=True)
class Case:
    """A command line, the largest ratio allowed for it, and whether it must fail."""

    name: str
    arguments: tuple[str, ...]
    bound: float
    fails: bool = True


def cases(folder: Path) -> list[Case]:
    """Return the cases, which read and write files in `folder`; without its pictures the build is left out."""
    config = folder / "wrong.yaml"
    config.write_text("thresold: 0.5\n", encoding="utf-8")
    pictures = folder / "pictures"
    pictures.mkdir()
    (pictures / "dog.txt").write_text("a dog", encoding="utf-8")
    build = ("build", "fastcomposer", "--input", str(pictures), "--output", str(folder / "out"))
    train = ("train", "fastcomposer", "--output", str(folder / "run"))
    listed = [
        Case("--help", ("--help",), 0.5, fails=False),
        Case("a wrong option", (*build, "--simlarity", "label"), 0.5),
        Case("a wrong field", (*build, "--config", str(config)), 0.5),
        Case("a wrong folder", (*build[:3], str(folder / "none"), *build[4:]), 0.5),
        Case("a wrong recipe", ("build", "fastcompser", *build[2:]), 0.5),
        Case("train, a wrong folder", (*train, "--data", str(folder / "none")), 0.5),
        Case("train, a wrong field", (*train, "--data", str(pictures), "--set", "foo=3"), 0.5),
        Case("weights export, a wrong folder", ("weights", "export", str(folder / "none"), str(folder / "out")), 0.5),
        Case("recipes fastcomposer", ("recipes", "fastcomposer"), 0.5, fails=False),
    ]
    if COCO.is_dir():
        arguments = (*build[:3], str(COCO), "--output", str(folder / "coco"), "--similarity", "label", "--overwrite")
        listed.append(Case("building 33 annotated pictures", arguments, 3.0, fails=False))
    return listed


def processor_seconds(command: Sequence[str], *, fails: bool = False) -> float:
    """Run a command to its end in a fresh process; return its user and system time.

    Raises:
        RuntimeError: the command failed, or did not fail although `fails` is true.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if fails != (done.returncode != 0):
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-500:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(folder: Path) -> list[Row]:
    """Measure all cases: a row per case with its ratio and its bound, then the seconds of importing Beam."""
    listed = cases(folder)
    beam: list[float] = []
    seconds: dict[str, list[float]] = {case.name: [] for case in listed}
    for command, fails in [(BEAM, False), *(((*COMMAND, *case.arguments), case.fails) for case in listed)]:
        processor_seconds(command, fails=fails)
    for _ in range(RUNS):  # in turns, so that a busy moment of the machine affects all of them
        beam.append(processor_seconds(BEAM))
        for case in listed:
            seconds[case.name].append(processor_seconds((*COMMAND, *case.arguments), fails=case.fails))
    rows = []
    for case in listed:
        ratio = median(seconds[case.name]) / median(beam)
        exceeded = ", exceeded" if ratio > case.bound else ""
        rows.append(Row(case.name, f"{ratio:.2f}", f"of importing Beam, at most {case.bound}{exceeded}"))
    if not COCO.is_dir():
        rows.append(Row("building 33 annotated pictures", "-", f"left out, as there is no folder {COCO}"))
    return [*rows, Row("importing Beam", f"{median(beam):.2f} s", f"median of {RUNS}")]


def main(write: Write = False) -> None:
    """Measure the processor time until the command answers."""
    with tempfile.TemporaryDirectory() as folder:
        report("startup", __doc__ or "", measure(Path(folder)), write=write)


if __name__ == "__main__":
    typer.run(main)
