"""What a process holds in memory, as Linux counts it."""

import ctypes
from pathlib import Path


def held_mb() -> float:
    """Megabytes that this process holds now."""
    return _status("VmRSS")


def peak_mb() -> float:
    """The most megabytes that this process held, since it began or since `forget_peak`.

    Unlike `resource.getrusage`, whose peak a new process inherits from the one that started it.
    """
    return _status("VmHWM")


def forget_peak() -> None:
    """Let the peak begin anew from what is held now, what was freed before being given back first."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _status(which: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{which}:")) * 1024 / 1e6
