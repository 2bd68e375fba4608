"""What a failing pipeline says: one line about what happened, to which file, and how to go on.

Worker processes send the same text as worker threads.
"""

import errno
import os
import tempfile

import pytest

from jobs.engines import beam_options
from jobs.run import explain, run
from schemas.errors import InputError, OutageError, SubjectloomError
from tests.jobs.test_rescue import Last

ENGINES = {
    "in-process": (),
    "threads": ("--direct_num_workers=2", "--direct_running_mode=multi_threading"),
}
FULL = "OUT/a.tar: No space left on device: make room there; --resume goes on with the shards that are not done"


def fill_the_disk(_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "OUT/a.tar")


def lose_a_file(_: object) -> None:
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "IN/a's.jpg")


def refuse(_: object) -> None:
    raise InputError("the source: is [gone]")


def break_down(_: object) -> None:
    raise ZeroDivisionError("by zero")


@pytest.mark.parametrize(
    ("engine", "work", "kind", "line"),
    [
        ("in-process", fill_the_disk, OutageError, FULL),
        ("threads", fill_the_disk, OutageError, FULL),
        (
            "in-process",
            lose_a_file,
            OutageError,
            "IN/a's.jpg: No such file or directory: when it is back, --resume goes",
        ),
        ("threads", lose_a_file, OutageError, "IN/a's.jpg: No such file or directory: when it is back, --resume goes"),
        ("in-process", refuse, InputError, "the source: is [gone]"),
        ("threads", refuse, InputError, "the source: is [gone]"),
        (
            "threads",
            break_down,
            SubjectloomError,
            "a worker failed (ZeroDivisionError: by zero): run again with --resume",
        ),
    ],
)
def test_an_error_of_a_worker_is_one_line(engine: str, work: object, kind: type[Exception], line: str) -> None:
    with pytest.raises(SubjectloomError) as raised:
        run(Last(work), beam_options(ENGINES[engine]))
    assert type(raised.value) is kind
    assert str(raised.value).startswith(line)
    assert "\n" not in str(raised.value)


def test_a_defect_in_this_process_stays_what_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        run(Last(break_down), beam_options(()))


def test_what_to_do_follows_from_the_error() -> None:
    texts = [str(explain(OSError(number, os.strerror(number), "OUT/x"))) for number in (errno.EROFS, errno.EIO)]
    assert texts == [
        "OUT/x: Read-only file system: allow access to it; --resume goes on with the shards that are not done",
        "OUT/x: Input/output error: when it is back, --resume goes on with the shards that are not done",
    ]
    nameless = str(explain(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    assert nameless.startswith(
        f"No space left on device: make room in the dataset's folder and in {tempfile.gettempdir()} (TMPDIR);"
    )
