"""The errors of Subjectloom: each message says what happened, to which file or key, and what to do.

- `SubjectloomError`: everything that the user can mend; the command prints it as one line.
  - `InputError`: a source or an output folder cannot be used.
  - `ConfigError`: an option or a config file contradicts itself.
  - `ModelError`: a checkpoint is missing or is of the wrong kind.
  - `OutageError`: a disk, a server or the network fails; `--resume` goes on when it is back.
  - `RecordError`: one record cannot go on; it becomes a reject, the job continues.
"""

import difflib
from collections.abc import Iterable

from schemas.rejects import Reason


def choices(word: str, known: Iterable[str]) -> str:
    """Return the end of a message about a wrong `word`: the closest known word, if one is close, and all known ones."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    listed = ", ".join(known)
    return f", did you mean {close[0]!r}? Choose from {listed}" if close else f": choose from {listed}"


class SubjectloomError(Exception):
    """Base of every error that is shown to the user as one line."""


class InputError(SubjectloomError):
    """A source or an output folder cannot be used as asked."""


class ConfigError(SubjectloomError):
    """An option or a config file is wrong or contradicts another."""


class ModelError(SubjectloomError):
    """A checkpoint is missing or does not fit the code that loads it."""


class OutageError(SubjectloomError):
    """A disk, a server or the network fails, for all records alike."""


class RecordError(SubjectloomError):
    """One record cannot go on. The running step turns it into a `Reject`."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"
