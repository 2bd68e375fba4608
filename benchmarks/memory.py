"""Resident memory of this process, from Linux' /proc."""

import ctypes
from pathlib import Path


def held_mb() -> float:
    """Current resident memory in MB (10^6 bytes)."""
    return _status("VmRSS")


def peak_mb() -> float:
    """Peak resident memory in MB since the process started or since `forget_peak`.

    `resource.getrusage` would not do: a new process inherits the peak of its parent.
    """
    return _status("VmHWM")


def forget_peak() -> None:
    """Return freed memory to the system and reset the peak to the current resident memory."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _status(which: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{which}:")) * 1024 / 1e6
