"""Figures of the benchmarks as tables: printed, and written to `benchmarks/README.md`.

Each benchmark has a section of its own there, between the comments `<!-- NAME -->` and `<!-- /NAME -->`. It is
written if the benchmark runs with `--write`, and states the command and the machine.
"""

import os
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

NAMES = (
    "accuracy",
    "mattes",
    "grounding",
    "object_quality",
    "object_relevance",
    "localization",
    "blip_diffusion",
    "maps",
    "text_to_image",
    "layout",
    "exemplar",
    "claims",
    "control",
    "speed",
    "scale",
    "view",
    "startup",
    "contention",
    "host",
    "gpu",
    "matting",
    "loader",
    "training",
    "localization_cost",
    "checkpoints",
    "best_k",
)
"""All benchmarks, in the order of their sections."""
README = Path(__file__).parent / "README.md"
FRONT = README.parents[1] / "README.md"
"""The project's own README; its few figures are copied from the sections."""
HEADLINE = {
    ("accuracy", "parser, treebank dev: noun phrase f1"): "noun phrases of real English (F1, a treebank's dev set)",
    ("accuracy", "segments, scenes: pq"): "panoptic quality of the sample segmenter on unseen scenes",
    ("accuracy", "links, scenes: precision"): "phrases tied to the right object (precision, unseen scenes)",
    ("mattes", "mean error of alpha"): "error of a matte's alpha, on a scale from 0 to 1 (unseen scenes)",
    (
        "matting",
        "PyMatting's time over ours, median",
    ): "times as fast as PyMatting, matting by the same equations (median)",
}
"""The figures of the project's README: benchmark and row, and what they are called there."""
LIBRARIES = ("apache-beam", "numpy", "torch", "transformers", "diffusers")
HEAD = """# Benchmarks

Written by the benchmarks themselves: `make bench` runs all of them, `python -m benchmarks.NAME --write` one.
"""

Write = Annotated[bool, typer.Option("--write", help="Replace this benchmark's section of benchmarks/README.md.")]


class Row(NamedTuple):
    """A figure: its name, its value, and a note such as its bound or a peer's value."""

    name: str
    value: str
    note: str = ""


def report(name: str, summary: str, rows: Sequence[Row], *, write: bool, path: Path = README) -> None:
    """Print the figures of benchmark `name`; with `write`, replace its section of the file at `path`.

    Args:
        name: one of `NAMES`.
        summary: what is measured, in a paragraph; of a module's docstring, the first one.
        rows: the figures.
        write: whether to write the section.
        path: Markdown file.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for row in rows:
        print(f"{row.name:{widths[0]}}  {row.value:>{widths[1]}}  {row.note}".rstrip(), flush=True)
    if write:
        options = [option for option in sys.argv[1:] if option != "--write"]
        command = shlex.join(["python", "-m", f"benchmarks.{name}", *options])
        text = path.read_text(encoding="utf-8") if path.exists() else HEAD
        text = replace_section(text, name, section(name, summary, command, rows))
        path.write_text(text, encoding="utf-8")
        if path == README:
            front = replace_headline(FRONT.read_text(encoding="utf-8"), text)
            FRONT.write_text(front, encoding="utf-8")


def section(name: str, summary: str, command: str, rows: Sequence[Row]) -> str:
    """Format a section in Markdown, without its two comments."""
    paragraph = " ".join(summary.split("\n\n", maxsplit=1)[0].split())
    table = [f"| {' | '.join(_cell(text) for text in row)} |" for row in rows]
    lines = [
        f"## {name}",
        "",
        paragraph,
        "",
        f"`{command}` on {machine()}",
        "",
        "| figure | value | |",
        "| --- | --- | --- |",
    ]
    return "\n".join([*lines, *table])


def replace_section(text: str, name: str, content: str) -> str:
    """Put a section into `text` in place of the one with its name; a new one goes where `NAMES` orders it."""
    sections = {found[1]: found[2] for found in re.finditer(r"<!-- (\w+) -->\n(.*?)\n<!-- /\1 -->", text, re.DOTALL)}
    sections[name] = content
    head = text.split("<!-- ", maxsplit=1)[0].rstrip()
    ordered = [f"<!-- {key} -->\n{sections[key]}\n<!-- /{key} -->" for key in NAMES if key in sections]
    return "\n\n".join([head, *ordered]) + "\n"


def replace_headline(front: str, text: str) -> str:
    """Fill the table between `<!-- figures -->` and `<!-- /figures -->` of `front` from the sections of `text`.

    A figure whose benchmark has no section is left out.
    """
    lines = ["| | |", "| --- | --- |"]
    for (name, row), title in HEADLINE.items():
        found = re.search(
            rf"<!-- {name} -->.*?^\| {re.escape(row)} \| (.*?) \|.*?<!-- /{name} -->", text, re.DOTALL | re.MULTILINE
        )
        if found:
            lines.append(f"| {title} | {found[1]} |")
    table = "\n".join(lines)
    return re.sub(r"(<!-- figures -->\n).*?(\n<!-- /figures -->)", rf"\g<1>{table}\g<2>", front, flags=re.DOTALL)


def machine() -> str:
    """Describe this machine and the libraries in one line."""
    cores = len(os.sched_getaffinity(0))
    libraries = ", ".join(f"{library} {version(library)}" for library in LIBRARIES if is_installed(library))
    return f"{cores} cores, {platform.machine()}; Python {platform.python_version()}, {libraries}"


def is_installed(library: str) -> bool:
    """Whether a library is here: benchmarks of models run without Beam."""
    try:
        return bool(version(library))
    except PackageNotFoundError:
        return False


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
