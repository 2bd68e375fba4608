"""Run one Beam pipeline to its end: here, or in a child process, whose death is an answer and not the job's end."""

import ast
import errno
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError
from textwrap import shorten
from typing import Any, BinaryIO, cast

import apache_beam as beam
from apache_beam.internal import pickler
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions

from schemas.errors import OutageError, SubjectloomError
from transforms.outages import describe
from transforms.work import BEGIN, LOG, Death
from transforms.write import STAGE as LAST_STAGE

LOCAL_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
"""Beam's own engine on this machine, by its full name: the short one tries a program first that it downloads."""

_RESULT = "result"


class WorkerDiedError(SubjectloomError):
    """A worker process of the local runner ended before its work."""


def run(transform: beam.PTransform, options: PipelineOptions) -> None:
    """Run one pipeline, which returns a PCollection, to its end.

    Raises:
        WorkerDiedError: a worker process of the local runner died.
        SubjectloomError: the pipeline raised it.
    """
    try:
        with beam.Pipeline(options=options) as pipeline:
            done = pipeline | transform
            if has_processes(options):
                # The runner waits for the output of a stage until its worker dies; for a stage without one, for ever.
                _ = done | "await" >> beam.Map(lambda _: None) | beam.Reshuffle()
    except Exception as error:
        cause = _own_cause(error) or _cause_in_text(str(error))
        if cause is None and is_local(options):
            cause = _worker_error(str(error), options)
        if cause is None:
            raise
        raise cause from error


def is_local(options: PipelineOptions) -> bool:
    """Whether the pipeline runs on this machine, in Beam's own runner."""
    return str(options.view_as(StandardOptions).runner).endswith("FnApiRunner")


def has_processes(options: PipelineOptions) -> bool:
    """Whether that runner's workers are processes of their own."""
    return is_local(options) and options.view_as(DirectOptions).direct_running_mode == "multi_processing"


@contextmanager
def explaining() -> Iterator[None]:
    """Make an error of the operating system one that says what to do, as `explain` does."""
    try:
        yield
    except OSError as error:
        raise explain(error) from error


def explain(error: OSError) -> OutageError:
    """Say what happened, to which file, and how a build goes on."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = "there" if error.filename else f"in the dataset's folder and in {tempfile.gettempdir()} (TMPDIR)"
        return OutageError(f"{describe(error)}: make room {where}; --resume goes on with the shards that are not done")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return OutageError(f"{describe(error)}: allow access to it; --resume goes on with the shards that are not done")
    return OutageError(f"{describe(error)}: when it is back, --resume goes on with the shards that are not done")


def _own_cause(error: BaseException | None) -> SubjectloomError | None:
    """Return our own error among the causes of what Beam raised."""
    while error is not None:
        if isinstance(error, SubjectloomError):
            return type(error)(_without_note(str(error)))
        error = error.__cause__ or error.__context__
    return None


def _cause_in_text(text: str) -> SubjectloomError | None:
    """Return our own error, or one for that of the operating system, which ends the traceback that a worker sent.

    Beam makes an error with one text of most, in the same process too.
    """
    line = _last_line(text)
    kind, _, message = line.partition(": ")
    own = {f"schemas.errors.{error.__name__}": error for error in SubjectloomError.__subclasses__()}
    own["schemas.errors.SubjectloomError"] = SubjectloomError
    if kind in own:
        return own[kind](message)
    match = re.search(r"\[Errno (\d+)\] (.*?)(?:: ('.*'|\".*\"))?$", line)
    return explain(OSError(int(match[1]), match[2], ast.literal_eval(match[3] or "None"))) if match else None


def _worker_error(text: str, options: PipelineOptions) -> SubjectloomError | None:
    """The error for a worker of the local runner. One that fails sends its traceback, one that dies nothing."""
    if text.startswith("Traceback"):
        return SubjectloomError(
            f"a worker failed ({shorten(_last_line(text), 200)}): run again with --resume, and --debug shows where"
        )
    if has_processes(options):
        return WorkerDiedError(f"a worker process died ({text}): run again with --resume")
    return None


def _last_line(text: str) -> str:
    """The last line of a traceback, without the name of the error that Beam made of another one."""
    lines = [line for line in text.splitlines() if line and not line[0].isspace()]
    return _without_note(lines[-1]).removeprefix("RuntimeError: ") if lines else ""


def _without_note(text: str) -> str:
    """Leave out Beam's note on where an error was raised."""
    return text.partition(" [while running")[0]


def run_in_child(transform: beam.PTransform) -> Death | None:
    """Run one pipeline on one worker in a child process; return how that died, None if the pipeline came to its end.

    Raises:
        SubjectloomError: the pipeline raised it.
        RuntimeError: the pipeline raised something else.
    """
    # Not by multiprocessing, whose children run the main module of this process again.
    process = subprocess.Popen(
        [sys.executable, "-c", "from jobs.run import answer_parent; answer_parent()"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    stage, keys, passed = "", (), set[str]()
    has_ended, error = False, None
    try:
        for message, *arguments in _messages(process, pickler.dumps(transform)):
            if message == _RESULT:
                has_ended, error = True, arguments[0]
            elif message == BEGIN:
                stage, keys = arguments
            else:
                passed.update(keys if stage == LAST_STAGE else ())
                stage, keys = "", ()
    except BaseException:
        process.kill()
        raise
    finally:
        process.wait()
    if error is not None:
        raise error
    return None if has_ended else Death(_in_words(process.returncode), stage, keys, frozenset(passed))


def _messages(process: subprocess.Popen[bytes], task: bytes) -> Iterator[tuple[Any, ...]]:
    assert process.stdin
    assert process.stdout
    with process.stdout, suppress(EOFError, UnpicklingError, BrokenPipeError):  # it died, maybe within a message
        with process.stdin:
            process.stdin.write(task)
        while True:
            yield pickle.load(process.stdout)  # noqa: S301 - from our own child


def answer_parent() -> None:
    """Run the pipeline that stdin holds; write to stdout what is worked on, and at last the error raised, or None."""
    task = sys.stdin.buffer.read()
    with os.fdopen(os.dup(1), "wb") as channel:
        os.dup2(2, 1)  # what libraries print is no message
        LOG.setLevel(logging.DEBUG)
        LOG.propagate = False
        LOG.addHandler(_Sender(channel))
        error: Exception | None = None
        try:
            run(pickler.loads(task), PipelineOptions([f"--runner={LOCAL_RUNNER}"]))
        except SubjectloomError as raised:
            error = raised
        except Exception as raised:
            traceback.print_exc()
            error = RuntimeError(f"{type(raised).__name__}: {raised}")
        pickle.dump((_RESULT, error), channel)


class _Sender(logging.Handler):
    """Sends every message with its arguments. If nobody listens any more, that raises an OSError, and the job ends."""

    def __init__(self, channel: BinaryIO) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        """Send a message."""
        pickle.dump((record.msg, *cast("tuple[Any, ...]", record.args)), self._channel)
        self._channel.flush()


def _in_words(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit status {exit_code}"
    name = signal.Signals(-exit_code).name
    return f"{name}, as when memory runs out" if name == "SIGKILL" else name


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Drop what this process and its children write to stderr while the block runs.

    Beam and gRPC print a traceback in each of their threads when a worker dies, and workers log to stderr.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
