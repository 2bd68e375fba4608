"""Which records a process is working on, logged for whoever has to find the one that killed it.

A record can kill its process: a decoder exits, C code writes where it must not, the kernel ends what takes too much
memory. No exception says which record it was. So everything that works on records logs what it begins and what it has
ended, at level DEBUG: off unless asked for, when it costs two comparisons per batch.

`jobs.rescue` asks for it in child processes. On a remote runner, Beam's option `--default_sdk_harness_log_level=DEBUG`
shows it in the logs of the workers.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

LOG = logging.getLogger("subjectloom.work")
BEGIN = "begins %s of %s"
END = "has ended %s of %s"
"""The messages; their arguments are the stage and the keys of the records."""


@contextmanager
def working_on(stage: str, keys: Iterable[str]) -> Iterator[None]:
    """Log that `stage` works on the records `keys` while the block runs."""
    if not LOG.isEnabledFor(logging.DEBUG):
        yield
        return
    work = stage, tuple(keys)
    LOG.debug(BEGIN, *work)
    try:
        yield
    finally:
        LOG.debug(END, *work)


@dataclass(frozen=True)
class Death:
    """How a process died.

    Attributes:
        how: its exit status or signal, in words.
        stage: the stage that it was in.
        keys: of the records that it was working on; none if it worked on no record, but loaded a model, say.
        passed: keys of the records that had gone through all stages.
    """

    how: str
    stage: str = ""
    keys: tuple[str, ...] = ()
    passed: frozenset[str] = frozenset()
