"""The files of a source: a folder, a glob or one file, local or on any filesystem that Beam opens."""

import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path

from schemas.errors import InputError
from transforms.files import filesystems, is_remote


@dataclass(frozen=True)
class File:
    """A file of a source.

    Attributes:
        path: how it is opened.
        name: the path relative to the source's folder.
        size: bytes.
        modified: time of its last change, seconds since 1970.
    """

    path: str
    name: str
    size: int
    modified: float

    @property
    def uri(self) -> str:
        """The address in a record's `Source`: of a remote file the full one, of a local file its name.

        With local paths, the same pictures in another folder would give other shards.
        """
        return self.path if is_remote(self.path) else self.name

    @property
    def stem(self) -> str:
        """The name without its last extension."""
        return posixpath.splitext(self.name)[0]

    def has_extension(self, extensions: tuple[str, ...]) -> bool:
        """Whether the name ends in one of `extensions`, which are in lower case and begin with a dot."""
        return self.name.lower().endswith(extensions)

    @property
    def stamp(self) -> str:
        """A text that changes when the file does."""
        return f"{self.name!r} {self.size} {self.modified}"


def find_files(source: str) -> list[File]:
    """Find the files of a folder (recursively), of a glob, or the one file that `source` names, sorted by name.

    Hidden files, and files in hidden folders, are left out: they belong to the system, not to the user.

    Raises:
        InputError: nothing is there, or it cannot be read.
    """
    try:
        found = _find_remote(source) if is_remote(source) else _find_local(source)
    except (OSError, ValueError) as error:
        # ValueError: Beam has no filesystem for the scheme, or lacks the package for it.
        raise InputError(f"{source}: cannot be read: {error}") from error
    visible = [file for file in found if not re.search(r"(^|/)\.", file.name)]
    return sorted(visible, key=lambda file: file.name)


def find_beside(files: Iterable[File]) -> list[File]:
    """Find all files in the folders of `files`: a glob of pictures leaves out the captions beside them."""
    beside = []
    for folder, prefix in sorted({(posixpath.dirname(f.path), posixpath.dirname(f.name)) for f in files}):
        root = folder.removesuffix(prefix)
        if is_remote(folder):
            beside += _match(f"{folder}/*", root)
        else:
            names = (entry.name for entry in os.scandir(folder or ".") if entry.is_file())
            beside += [_file(posixpath.join(folder, name), root) for name in names]
    return sorted(beside, key=lambda file: file.name)


def _find_local(source: str) -> list[File]:
    """List local files. Beam's own listing silently leaves out unreadable folders, and cannot escape a "["."""
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
        # Following a link to one of its own parents would never end.
        here = os.path.realpath(parent)
        folders[:] = [f for f in folders if not f"{here}/".startswith(f"{os.path.realpath(f'{parent}/{f}')}/")]
        yield from (f"{parent}/{name}" for name in names)


def _file(path: str, root: str) -> File:
    name = path.removeprefix(f"{root.rstrip('/')}/") if root else path
    try:
        status = os.stat(path)  # noqa: PTH116 - making a million Paths would double the time
    except OSError:  # a broken link: reading it fails, and the record becomes a reject
        return File(path, name, 0, 0.0)
    return File(path, name, status.st_size, status.st_mtime)


def _find_remote(source: str) -> list[File]:
    if has_magic(source):
        found = _match(source, _fixed_part(source))
    else:
        folder = source.rstrip("/")
        is_bucket = "/" not in folder.partition("://")[2]  # Beam would ask for minutes for a file of that name
        found = [] if is_bucket else _match(folder, posixpath.dirname(folder))
        found = found or _match(f"{folder}/**", folder)
    if not found:
        raise InputError(f"{source}: no file is there, or matches")
    return found


def _fixed_part(pattern: str) -> str:
    """The folder before the first wildcard of a glob."""
    return posixpath.dirname(re.split(r"[*?\[]", pattern, maxsplit=1)[0])


def _match(pattern: str, root: str) -> list[File]:
    found = filesystems(pattern).match([pattern])[0].metadata_list
    prefix = root.rstrip("/") + "/"
    return [
        File(meta.path, meta.path.removeprefix(prefix), meta.size_in_bytes, meta.last_updated_in_seconds)
        for meta in found
    ]
