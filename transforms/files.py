"""Files, local or on any filesystem that Beam opens (gs://, s3:// ...), and writing them whole or not at all.

Local files need no Beam: commands that only read a dataset start in a fraction of the time that importing it takes.
"""

import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from schemas.errors import InputError, OutageError
from transforms.remote import SECONDS_TO_COPY, answer, create_remote, filesystems, open_remote


def is_remote(path: str) -> bool:
    """Whether a path is an address, such as gs://bucket/folder."""
    return "://" in path


def join(folder: str, *names: str) -> str:
    """Join the parts of a path on any filesystem."""
    return "/".join([folder.rstrip("/"), *names])


def exists(path: str) -> bool:
    """Whether there is a file at `path`."""
    if is_remote(path):
        return bool(answer(path, lambda: filesystems(path).exists(path)))
    return Path(path).exists()


def list_files(folder: str) -> list[str]:
    """Return the paths of all files below `folder`, relative to it, sorted.

    Raises:
        InputError: the name of `folder` holds a character that would be read as a pattern.
    """
    if set(folder) & set("*?["):
        raise InputError(f"the folder {folder} has one of * ? [ in its name, which stand for patterns: rename it")
    start = join(folder, "")
    if is_remote(folder):
        found = answer(folder, lambda: filesystems(folder).match([join(folder, "**")])[0].metadata_list)
        return sorted(meta.path.removeprefix(start) for meta in found)
    below = (f"{parent}/{name}" for parent, _, names in os.walk(folder.rstrip("/")) for name in names)
    return sorted(path.removeprefix(start) for path in below)


def open_file(path: str) -> BinaryIO:
    """Open a file of any filesystem for reading, as it is: nothing is decompressed."""
    return open_remote(path) if is_remote(path) else Path(path).open("rb")


def read_file(path: str) -> bytes:
    """Read a whole file."""
    with open_file(path) as stream:
        return stream.read()


def replace_file(path: str, content: bytes) -> None:
    """Write a file so that it is, at any moment, either the old one or the new one."""
    with replacing(path) as stream:
        stream.write(content)


@contextmanager
def replacing(path: str) -> Iterator[BinaryIO]:
    """Open a file for writing under a temporary name beside `path`; on success it is renamed to `path`.

    On a local disk, both the content and the name are on the disk when this returns: what is written next, such as the
    books of a shard, cannot survive a power failure that the shard does not.

    Raises:
        OSError: that failed; it names `path`.
    """
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with _create(temporary) as stream:
            yield stream
            if not is_remote(path):
                stream.flush()
                os.fsync(stream.fileno())
        _rename(temporary, path)
    except BaseException as error:
        if not isinstance(error, OutageError):  # or it would be waited for a second time
            with suppress(OSError):  # on a disk that has become read-only
                remove_files([temporary])
        if isinstance(error, OSError) and error.errno is not None:
            # A write does not say to which file, and nobody knows the temporary name.
            raise OSError(error.errno, error.strerror, path) from error
        raise


def remove_files(paths: Iterable[str]) -> None:
    """Remove those of `paths` that exist."""
    for path in paths:
        if exists(path):
            _delete(path)


def remove_empty_folder(path: str) -> None:
    """Remove a folder if it is empty; remote file systems have no folders."""
    if not is_remote(path):
        with suppress(OSError):
            Path(path).rmdir()


def _create(path: str) -> BinaryIO:
    if is_remote(path):
        return create_remote(path)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return Path(path).open("wb")


def _delete(path: str) -> None:
    if is_remote(path):
        answer(path, lambda: filesystems(path).delete([path]))
    else:
        Path(path).unlink()


def _rename(source: str, destination: str) -> None:
    if is_remote(source):
        answer(destination, lambda: filesystems(source).rename([source], [destination]), SECONDS_TO_COPY)
        return
    Path(source).replace(destination)
    folder = os.open(Path(destination).parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network filesystems cannot, and their servers do without
            os.fsync(folder)
    finally:
        os.close(folder)
