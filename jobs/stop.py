"""Ctrl-C: one line that says what is done and how to go on, exit status 130, no process left behind."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

INTERRUPTED = 128 + signal.SIGINT
"""Exit status of a program that was stopped by Ctrl-C, as shells give it."""


@contextmanager
def stoppable(what_is_done: Callable[[], str]) -> Iterator[None]:
    """End this process and its children if the user presses Ctrl-C while the block runs.

    Args:
        what_is_done: returns what the line says.
    """
    try:
        yield
    except KeyboardInterrupt:
        # From here on nothing may interrupt, and nothing is waited for: threads of Beam's would go on for minutes.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        kill_children()
        say(f"stopped: {what_is_done()}")
        os._exit(INTERRUPTED)


def say(line: str) -> None:
    """Print a line on stderr."""
    Console(stderr=True).print(line, soft_wrap=True, markup=False, highlight=False)
    sys.stdout.flush()
    sys.stderr.flush()


def kill_children() -> None:
    """Kill all processes that this one started, and those that they started."""
    import psutil  # noqa: PLC0415 - only here

    for child in psutil.Process().children(recursive=True):
        child.kill()
