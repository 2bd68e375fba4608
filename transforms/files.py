"""Files, local or on any filesystem that Beam opens (gs://, s3:// ...), and writing them whole or not at all.

Local files need no Beam: commands that only read a dataset start in a fraction of the time that importing it takes.
"""

import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from schemas.errors import InputError

if TYPE_CHECKING:
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions


def is_remote(path: str) -> bool:
    """Whether a path is an address, such as gs://bucket/folder."""
    return "://" in path


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


def join(folder: str, *names: str) -> str:
    """Join the parts of a path on any filesystem."""
    return "/".join([folder.rstrip("/"), *names])


def exists(path: str) -> bool:
    """Whether there is a file at `path`."""
    return filesystems(path).exists(path) if is_remote(path) else Path(path).exists()


def list_files(folder: str) -> list[str]:
    """Return the paths of all files below `folder`, relative to it, sorted.

    Raises:
        InputError: the name of `folder` holds a character that would be read as a pattern.
    """
    if set(folder) & set("*?["):
        raise InputError(f"the folder {folder} has one of * ? [ in its name, which stand for patterns: rename it")
    start = join(folder, "")
    if is_remote(folder):
        found = filesystems(folder).match([join(folder, "**")])[0].metadata_list
        return sorted(meta.path.removeprefix(start) for meta in found)
    below = (f"{parent}/{name}" for parent, _, names in os.walk(folder.rstrip("/")) for name in names)
    return sorted(path.removeprefix(start) for path in below)


def open_file(path: str) -> BinaryIO:
    """Open a file of any filesystem for reading, as it is: nothing is decompressed."""
    if not is_remote(path):
        return Path(path).open("rb")
    from apache_beam.io.filesystem import CompressionTypes

    return filesystems(path).open(path, compression_type=CompressionTypes.UNCOMPRESSED)


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
    """Open a file for writing under a temporary name beside `path`; on success it is renamed to `path`."""
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with _create(temporary) as stream:
            yield stream
        _rename(temporary, path)
    except BaseException:
        remove_files([temporary])
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
    if not is_remote(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return Path(path).open("wb")
    from apache_beam.io.filesystem import CompressionTypes

    return filesystems(path).create(path, compression_type=CompressionTypes.UNCOMPRESSED)


def _delete(path: str) -> None:
    if is_remote(path):
        filesystems(path).delete([path])
    else:
        Path(path).unlink()


def _rename(source: str, destination: str) -> None:
    if is_remote(source):
        filesystems(source).rename([source], [destination])
    else:
        Path(source).replace(destination)
