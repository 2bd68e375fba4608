"""Filesystems that Beam opens (gs://, s3:// ...), none of which is waited for without end.

Beam repeats a call to a server that does not answer for ten minutes, and says nothing meanwhile. So each call runs in
a thread of its own and has a time limit. What goes wrong is an OSError with a number, as `transforms.outages` needs it.
"""

import errno
import io
import queue
import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from schemas.errors import InputError, OutageError, SubjectloomError

if TYPE_CHECKING:
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions

Value = TypeVar("Value")

SECONDS = 60.0
"""Time limit of a call. One that succeeds takes milliseconds, the upload of a part of some megabytes seconds."""

SECONDS_TO_COPY = 600.0
"""Time limit of a rename, which copies on object stores."""

_BUFFER = 2**20


NEEDS = {
    "gs": ("google.cloud.storage", "subjectloom[gcp]"),
    "s3": ("boto3", "subjectloom[aws]"),
    "hdfs": ("hdfs", "apache-beam[hadoop]"),
    "azfs": ("azure.storage.blob", "apache-beam[azure]"),
}
"""The module that addresses of a scheme need, and what to install for it."""


def filesystems(address: str) -> "type[FileSystems]":
    """Return Beam's filesystems, ready to open `address`.

    Raises:
        InputError: Beam opens no such addresses, or lacks the packages for them.
    """
    from apache_beam.io.filesystem import FileSystem
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions

    scheme = address.partition("://")[0]
    module, requirement = NEEDS.get(scheme, ("", ""))
    if module and not is_installed(module):
        raise InputError(f"{address}: {scheme}:// needs {module}, which is not here: pip install '{requirement}'")
    known = {str(other.scheme()) for other in FileSystem.get_all_subclasses()} - {"None"}
    if scheme not in known:
        opened = ", ".join(f"{name}://" for name in sorted(known | {*NEEDS}))
        raise InputError(f"{address}: {scheme}:// cannot be opened, only {opened}")
    if FileSystems._pipeline_options is None:  # no pipeline has set them yet
        FileSystems.set_options(PipelineOptions([]))
    return FileSystems


def use_options(options: "PipelineOptions") -> None:
    """Use Beam's options, as --s3_endpoint_url, for every address opened from now on."""
    from apache_beam.io.filesystems import FileSystems

    FileSystems.set_options(options)


def is_installed(module: str) -> bool:
    """Whether a module can be imported."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its package is missing
        return False


def answer(path: str, call: Callable[[], Value], seconds: float = 0.0) -> Value:
    """Return what `call`, which concerns the file at `path`, returns within `seconds` (0: `SECONDS`).

    Raises:
        OutageError: it gave no answer in time.
        InputError: Beam has no filesystem for `path`, or lacks the package for it.
        OSError: it failed; the error has a number.
    """
    seconds = seconds or SECONDS
    answers: queue.SimpleQueue[tuple[Value | None, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put((call(), None))
        except BaseException as error:  # passed on to the caller
            answers.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        value, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise OutageError(
            f"{path}: no answer for {seconds:.0f} seconds: run again with --resume when the server can be reached"
        ) from None
    if error is None:
        return cast("Value", value)
    if isinstance(error, (ValueError, SubjectloomError)) or (isinstance(error, OSError) and error.errno is not None):
        raise error
    raise OSError(errno.EIO, _reason(error), path) from error


def _reason(error: BaseException) -> str:
    """What went wrong: Beam puts the cause of an error into a dict by path."""
    details = getattr(error, "exception_details", None)
    causes = [str(cause) for cause in details.values()] if isinstance(details, dict) else []
    return " ".join((causes[0] if causes else str(error) or type(error).__name__).split())


def open_remote(path: str) -> BinaryIO:
    """Open a file for reading, as it is: nothing is decompressed."""
    from apache_beam.io.filesystem import CompressionTypes

    stream = answer(path, lambda: filesystems(path).open(path, compression_type=CompressionTypes.UNCOMPRESSED))
    return cast("BinaryIO", io.BufferedReader(_Limited(path, stream), _BUFFER))


def create_remote(path: str) -> BinaryIO:
    """Open a file for writing."""
    from apache_beam.io.filesystem import CompressionTypes

    stream = answer(path, lambda: filesystems(path).create(path, compression_type=CompressionTypes.UNCOMPRESSED))
    return cast("BinaryIO", io.BufferedWriter(_Limited(path, stream), _BUFFER))


class _Limited(io.RawIOBase):
    """A stream of Beam's, each of whose calls has a time limit; one that passed it is not asked again."""

    def __init__(self, path: str, stream: Any) -> None:  # noqa: ANN401 - a class for each filesystem
        self._path = path
        self._stream = stream
        self._is_lost = False

    def _answer(self, call: Callable[[], Value]) -> Value:
        try:
            return answer(self._path, call)
        except OutageError:
            self._is_lost = True
            raise

    def readable(self) -> bool:
        return bool(self._stream.readable())

    def writable(self) -> bool:
        return bool(self._stream.writable())

    def seekable(self) -> bool:
        return bool(self._stream.seekable())

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401
        content = self._answer(lambda: self._stream.read(len(buffer)))
        buffer[: len(content)] = content
        return len(content)

    def write(self, content: Any) -> int:  # noqa: ANN401
        data = bytes(content)  # the buffer is used again once this returns, and the call may outlive it
        return self._answer(lambda: self._stream.write(data) or len(data))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._stream.seek(offset, whence)
        return self.tell()

    def tell(self) -> int:
        return int(self._stream.tell())

    def close(self) -> None:
        if not self.closed:
            try:
                if not self._is_lost:
                    self._answer(self._stream.close)
            finally:
                super().close()
