"""Reads that fail for a cause that may pass: a server that restarts, a disk that comes back, a lost connection.

The operating system gives such an error a number (errno). What a decoder, a parser or Arrow makes of broken bytes has
none: it is the file's own fault, and trying again gives the same error.
"""

import errno
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from threading import Lock
from typing import TypeVar

from schemas.errors import OutageError

Value = TypeVar("Value")

ATTEMPTS = 5
"""Times that a read is tried."""

FIRST_PAUSE = 0.5
"""Seconds before the second attempt; each further pause is twice as long."""

LEAST_FAILURES = 20
"""Fewest records that must fail before a run stops."""

LONGEST_SILENCE = 60.0
"""Seconds: a run stops too if, for so long, every record has failed."""

_NOT_SOON = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
"""Errors that somebody must mend: they may pass, but not while a read waits for it."""


def is_passing(error: BaseException) -> bool:
    """Whether trying again later may help: `error` is one of the operating system, or of a remote filesystem."""
    return isinstance(error, OSError) and error.errno is not None


def describe(error: OSError) -> str:
    """What went wrong, as "PATH: No such file or directory"."""
    if error.errno is None or not error.strerror:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)


def retry(read: Callable[[], Value], attempts: int = ATTEMPTS) -> Value:
    """Return what `read` returns; while it fails for a cause that may pass, call it again, `attempts` times in all.

    Raises:
        Exception: what the last call raised.
    """
    for pause in _pauses(attempts):
        try:
            return read()
        except OSError as error:
            if not is_passing(error) or error.errno in _NOT_SOON:
                raise
        time.sleep(pause)
    return read()


def retry_items(iterate: Callable[[], Iterator[Value]], attempts: int = ATTEMPTS) -> Iterator[Value]:
    """Yield the items of `iterate()`, which are the same ones, in the same order, at each call.

    Where that fails for a cause that may pass, `iterate` is called again and the items that were yielded are skipped.

    Raises:
        Exception: what the last call raised.
    """
    done, pauses = 0, _pauses(attempts)
    while True:
        try:
            for item in islice(iterate(), done, None):
                yield item
                # Whoever went on after this item has no outage: the next one is waited for as long as the first.
                done, pauses = done + 1, _pauses(attempts)
        except OSError as error:
            pause = next(pauses, None)
            if pause is None or not is_passing(error) or error.errno in _NOT_SOON:
                raise
            time.sleep(pause)
        else:
            return


def _pauses(attempts: int) -> Iterator[float]:
    return (FIRST_PAUSE * 2**number for number in range(attempts - 1))


@dataclass
class Recent:
    """Which of the last records of a process could not be read, and whether to go on.

    `share`, above 0 and at most 1, is the largest share of failures among consecutive records; fewer than
    `LEAST_FAILURES` do not count.
    """

    share: float
    _failed: deque[bool] = field(init=False)
    _since: float | None = None
    _lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self._failed = deque(maxlen=max(LEAST_FAILURES, round(LEAST_FAILURES / self.share)))

    @property
    def is_out(self) -> bool:
        """Whether the last record failed: the next one need not wait for the outage to pass, that one has."""
        return self._since is not None

    def add(self, problem: str = "") -> None:
        """Add a record that was read, or one that failed for `problem`.

        Raises:
            OutageError: too many failed.
        """
        with self._lock:
            self._failed.append(bool(problem))
            if not problem:
                self._since = None
                return
            now = time.monotonic()
            self._since = now if self._since is None else self._since
            count, silence = sum(self._failed), now - self._since
        if count < LEAST_FAILURES and silence < LONGEST_SILENCE:
            return
        raise OutageError(
            f"{count} of the last {len(self._failed)} records could not be read ({problem}): see whether the source is "
            "still there, and run again with --resume"
        )
