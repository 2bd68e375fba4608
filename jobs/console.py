"""Where commands print: `out` is quiet with `--quiet`, `err` takes the line of an error."""

from typing import Any

from rich.console import Console
from rich.table import Table

out = Console()
err = Console(stderr=True)


def print_lines(*lines: str) -> None:
    """Print plain lines, unwrapped."""
    for line in lines:
        out.print(line, soft_wrap=True, markup=False, highlight=False)


def print_books(counts: dict[str, Any], seconds: dict[str, float]) -> None:
    """Print the numbers of records read, written and rejected, and the seconds per stage."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name in ("read", "written", "rejected", "shards"):
        table.add_row(name, f"{counts[name]:,}")
    for stage, reasons in counts["rejects"].items():
        for reason, number in reasons.items():
            table.add_row(f"  {stage}: {reason}", f"{number:,}", style="dim")
    out.print(table)
    stages = ", ".join(f"{stage} {spent:.1f}" for stage, spent in seconds.items())
    out.print(f"seconds  {stages}", style="dim", soft_wrap=True)
