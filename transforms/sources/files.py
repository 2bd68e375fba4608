"""The files of a source: a folder, a glob or one file, on any filesystem that Beam opens."""

import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path

from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems

from schemas.errors import InputError


@dataclass(frozen=True)
class File:
    """A file of a source: the `path` it is opened by, its `name` relative to the source's folder, `size` in bytes.

    `modified` is in seconds since 1970.
    """

    path: str
    name: str
    size: int
    modified: float

    @property
    def uri(self) -> str:
        """What a record's `Source` names: a remote file's full address, a local one's name.

        With its full path, the same pictures in another folder would give other shards.
        """
        return self.path if "://" in self.path else self.name

    @property
    def stem(self) -> str:
        """The name without its last extension."""
        return posixpath.splitext(self.name)[0]

    def has_extension(self, extensions: tuple[str, ...]) -> bool:
        """Whether the name ends in one of `extensions`, which are in lower case and begin with a dot."""
        return self.name.lower().endswith(extensions)

    @property
    def stamp(self) -> str:
        """What changes when the file does."""
        return f"{self.name!r} {self.size} {self.modified}"


def find_files(source: str) -> list[File]:
    """Find the files of a folder (recursively), of a glob, or the one file that `source` names, sorted by name.

    Hidden files, and all inside hidden folders, are passed over: they are the machine's, not the user's.

    Raises:
        InputError: nothing is there, or it cannot be read.
    """
    try:
        found = _find_remote(source) if "://" in source else _find_local(source)
    except (OSError, BeamIOError, ValueError) as error:
        # ValueError: Beam has no filesystem for the scheme, or lacks the package for it.
        raise InputError(f"{source}: cannot be read: {error}") from error
    visible = [file for file in found if not re.search(r"(^|/)\.", file.name)]
    return sorted(visible, key=lambda file: file.name)


def find_beside(files: Iterable[File]) -> list[File]:
    """Find every file in the folders of `files`: a glob of pictures leaves out the captions beside them."""
    beside = []
    for folder, prefix in sorted({(posixpath.dirname(f.path), posixpath.dirname(f.name)) for f in files}):
        root = folder.removesuffix(prefix)
        if "://" in folder:
            beside += _match(f"{folder}/*", root)
        else:
            names = (entry.name for entry in os.scandir(folder or ".") if entry.is_file())
            beside += [_file(posixpath.join(folder, name), root) for name in names]
    return sorted(beside, key=lambda file: file.name)


def _find_local(source: str) -> list[File]:
    """List with Python's own means: Beam's passes over unreadable folders in silence, and has no escape for a "["."""
    if Path(source).is_dir():
        return [_file(path, source) for path in _walk(source.rstrip("/") or "/")]
    if Path(source).exists():
        return [_file(source, posixpath.dirname(source))]
    paths = [path for path in glob(source, recursive=True) if Path(path).is_file()]  # noqa: PTH207 - absolute ones too
    if not paths:
        problem = "no file matches" if has_magic(source) else "there is no such file or folder"
        raise InputError(f"{source}: {problem}")
    return [_file(path, _fixed_part(source)) for path in paths]


def _walk(folder: str) -> Iterator[str]:
    """Yield the paths of all files below `folder`; raise an OSError for a folder that cannot be read."""

    def fail(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        # A link to one of its own parents would be walked for ever.
        here = os.path.realpath(parent)
        folders[:] = [f for f in folders if not f"{here}/".startswith(f"{os.path.realpath(f'{parent}/{f}')}/")]
        yield from (f"{parent}/{name}" for name in names)


def _file(path: str, root: str) -> File:
    name = path.removeprefix(f"{root.rstrip('/')}/") if root else path
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path for each of a million files takes half of the listing
    except OSError:  # a link that leads nowhere: reading it says so, in the record's reject
        return File(path, name, 0, 0.0)
    return File(path, name, status.st_size, status.st_mtime)


def _find_remote(source: str) -> list[File]:
    if has_magic(source):
        found = _match(source, _fixed_part(source))
    else:
        folder = source.rstrip("/")
        found = _match(folder, posixpath.dirname(folder)) or _match(f"{folder}/**", folder)
    if not found:
        raise InputError(f"{source}: no file is there, or matches")
    return found


def _fixed_part(pattern: str) -> str:
    """The folder before the first character of a glob that stands for others."""
    return posixpath.dirname(re.split(r"[*?\[]", pattern, maxsplit=1)[0])


def _match(pattern: str, root: str) -> list[File]:
    found = FileSystems.match([pattern])[0].metadata_list
    prefix = root.rstrip("/") + "/"
    return [
        File(meta.path, meta.path.removeprefix(prefix), meta.size_in_bytes, meta.last_updated_in_seconds)
        for meta in found
    ]
