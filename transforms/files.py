"""Files on any filesystem that Beam opens, local or remote, and writing them whole or not at all."""

import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from schemas.errors import InputError


def join(folder: str, *names: str) -> str:
    """Join the parts of a path on any filesystem."""
    return "/".join([folder.rstrip("/"), *names])


def list_files(folder: str) -> list[str]:
    """Return the paths of all files below `folder`, relative to it, sorted.

    Raises:
        InputError: the name of `folder` holds a character that would be read as a pattern.
    """
    if set(folder) & set("*?["):
        raise InputError(f"the folder {folder} has one of * ? [ in its name, which stand for patterns: rename it")
    start = join(folder, "")
    found = FileSystems.match([join(folder, "**")])[0].metadata_list
    return sorted(meta.path.removeprefix(start) for meta in found)


def open_file(path: str) -> BinaryIO:
    """Open a file of any filesystem for reading, as it is: nothing is decompressed."""
    return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)


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
    """Open a file for writing under a temporary name beside `path`; it gets its name when all went well."""
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with FileSystems.create(temporary, compression_type=CompressionTypes.UNCOMPRESSED) as stream:
            yield stream
        FileSystems.rename([temporary], [path])
    except BaseException:
        remove_files([temporary])
        raise


def remove_files(paths: Iterable[str]) -> None:
    """Remove those of `paths` that exist."""
    existing = [path for path in paths if FileSystems.exists(path)]
    if existing:
        FileSystems.delete(existing)
