"""The files of a source: a folder, a glob or one file, local or on any filesystem that Beam opens.

What is no plain file is never opened: a named pipe would be waited for without end, a device read without end. A link
that leads out of the source is refused too, unless `follow_links` is asked for: a data set from elsewhere must not be
able to name /etc or another user's pictures.
"""

import errno
import os
import posixpath
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from glob import glob, has_magic
from pathlib import Path
from typing import BinaryIO

from schemas.errors import InputError, RecordError
from schemas.rejects import Reason
from transforms.files import exists, is_remote, open_file
from transforms.outages import describe, retry
from transforms.remote import answer, filesystems

MAX_PICTURE = 2**28
"""Most bytes of a picture file, 268 MB: one of 2**26 pixels has less in every format that is decoded, but for 16-bit
TIFF without compression."""

MAX_TEXT = 2**26
"""Most bytes of a text or JSON beside a picture, 67 MB."""

MAX_TABLE = 2**33
"""Most bytes of a file that describes many pictures, 8.6 GB."""

SECONDS_TO_LIST = 3600.0
"""Time limit of listing a bucket: a million names take some minutes."""

Problem = tuple[Reason, str]
"""Why a file is not read: the reason and the detail of the reject of its record."""


@dataclass(frozen=True)
class File:
    """A file of a source.

    Attributes:
        path: how it is opened.
        name: the path relative to the source's folder.
        size: bytes.
        modified: time of its last change, seconds since 1970.
        problem: why it must not be read, found when it was listed; None for a plain file.
    """

    path: str
    name: str
    size: int
    modified: float
    problem: Problem | None = None

    def open(self) -> BinaryIO:
        """Open it for reading, as it is.

        Raises:
            RecordError: it has a problem.
            OSError: that failed; trying again may help.
        """
        self.check()
        return open_file(self.path)

    def read(self, limit: int) -> bytes:
        """Read it whole.

        Raises:
            RecordError: it has a problem, or more than `limit` bytes.
            OSError: that failed; trying again may help.
        """
        if self.size > limit:
            raise too_large(self.name, self.size, limit)
        with self.open() as stream:
            content = stream.read(limit + 1)
        if len(content) > limit:  # it has grown, or is one of /proc
            raise too_large(self.name, len(content), limit)
        return content

    def check(self) -> None:
        """Raise a RecordError if the file has a problem."""
        if self.problem:
            raise RecordError(*self.problem)

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
        problem = f" {self.problem[1]}" if self.problem else ""
        return f"{self.name!r} {self.size} {self.modified}{problem}"


def too_large(name: str, size: int, limit: int) -> RecordError:
    """The error for a file, or a member of a tar, of more than `limit` bytes."""
    reason = Reason.HUGE_IMAGE if limit == MAX_PICTURE else Reason.HUGE_FILE
    return RecordError(reason, f"{name} has {size:,} bytes or more, the limit is {limit:,}")


def find_files(source: str, *, follow_links: bool = False) -> list[File]:
    """Find the files of a folder (recursively), of a glob, or the one file that `source` names, sorted by name.

    Hidden files, and files in hidden folders, are left out: they belong to the system, not to the user. A link to a
    folder outside of the source is listed as a file with a problem.

    Raises:
        InputError: nothing is there, or it cannot be read.
    """
    return sorted(walk_files(source, follow_links=follow_links), key=lambda file: file.name)


def walk_files(source: str, *, follow_links: bool = False) -> Iterator[File]:
    """Yield the files that `find_files` finds, in any order: a local folder's one by one, as it is walked.

    Raises:
        InputError: nothing is there, or it cannot be read.
    """
    try:
        found = retry(lambda: _find_remote(source) if is_remote(source) else _find_local(source, follow_links))
        for file in found:
            if not re.search(r"(^|/)\.", file.name):
                yield file
    except (OSError, ValueError) as error:
        # ValueError: Beam has no filesystem for the scheme, or lacks the package for it.
        raise InputError(
            f"{source}: cannot be read: {describe(error) if isinstance(error, OSError) else error}"
        ) from error


def find_beside(files: Iterable[File], *, follow_links: bool = False) -> list[File]:
    """Find all files in the folders of `files`: a glob of pictures leaves out the captions beside them."""
    beside = []
    for folder, prefix in sorted({(posixpath.dirname(f.path), posixpath.dirname(f.name)) for f in files}):
        root = folder.removesuffix(prefix)
        if is_remote(folder):
            beside += _match(f"{folder}/*", root)
        else:
            inside = None if follow_links else os.path.realpath(root or ".")
            with os.scandir(folder or ".") as entries:
                found = [(entry.name, entry.is_symlink()) for entry in entries if not _is_folder(entry)]
            beside += [_file(posixpath.join(folder, name), root, inside if link else None) for name, link in found]
    return sorted(beside, key=lambda file: file.name)


def find_file(folder: str, name: str) -> File | None:
    """The file `name` in `folder`, which has a problem if it is a link out of the folder; None if there is none."""
    path = posixpath.join(folder, name)
    if is_remote(folder):
        return File(path, name, 0, 0.0) if exists(path) else None
    return _file(path, folder, os.path.realpath(folder)) if os.path.lexists(path) else None


def refuse_links(files: Iterable[File]) -> None:
    """Refuse a source among whose files is a link to a folder outside of it, where no record can be rejected for it.

    Raises:
        InputError: there is one.
    """
    for file in files:
        if file.problem and file.name.endswith("/"):
            raise InputError(f"{file.path}: {file.problem[1]}")


def _find_local(source: str, follow_links: bool) -> Iterable[File]:
    """List local files. Beam's own listing silently leaves out unreadable folders, and cannot escape a "["."""
    if Path(source).is_dir():
        return _walk(source.rstrip("/") or "/", follow_links)
    if os.path.lexists(source):  # a link that the user named is followed
        return [_file(source, posixpath.dirname(source), None)]
    paths = [path for path in glob(source, recursive=True) if not Path(path).is_dir()]  # noqa: PTH207 - absolute ones too
    if not paths:
        problem = "no file matches" if has_magic(source) else "there is no such file or folder"
        raise InputError(f"{source}: {problem}")
    root = _fixed_part(source)
    inside = None if follow_links else os.path.realpath(root or ".")
    folders = {posixpath.dirname(path) for path in paths}
    outside = {folder for folder in folders if _leads_out(posixpath.join(folder, "x"), inside)}
    return [_file(p, root, inside if posixpath.dirname(p) in outside or Path(p).is_symlink() else None) for p in paths]


def _walk(root: str, follow_links: bool) -> Iterator[File]:
    """Yield all files below `root`; raise an OSError for a folder that cannot be read."""
    inside = None if follow_links else os.path.realpath(root)
    left: list[tuple[str, tuple[str, ...]]] = [(root, ())]
    while left:
        folder, links = left.pop()  # with the folders in which the links on the way to it lie
        here = os.path.realpath(folder)
        with retry(partial(os.scandir, folder)) as entries:
            for entry in entries:
                path = f"{folder.rstrip('/')}/{entry.name}"
                if not _is_folder(entry):
                    yield retry(partial(_file, path, root, inside if entry.is_symlink() else None))
                elif not entry.is_symlink():
                    left.append((path, links))
                elif _leads_out(path, inside):
                    yield File(f"{path}/", f"{path.removeprefix(root).lstrip('/')}/", 0, 0.0, _outside(path))
                elif not any(f"{above}/".startswith(f"{os.path.realpath(path)}/") for above in (here, *links)):
                    # Following a link to a folder that the way to it has come through would never end.
                    left.append((path, (here, *links)))


def _file(path: str, root: str, inside: str | None) -> File:
    """A file below `root`; where it leads out of the folder `inside`, it is a problem."""
    name = path.removeprefix(f"{root.rstrip('/')}/") if root else path
    try:
        status = os.stat(path)  # noqa: PTH116 - making a million Paths would double the time
    except OSError as error:
        # Without a link, it is an outage, or the file has just been removed.
        if error.errno not in _BROKEN or not Path(path).is_symlink():
            raise
        return File(path, name, 0, 0.0, (Reason.UNREADABLE_FILE, f"{name} is a broken link: {error.strerror}"))
    return File(path, name, status.st_size, status.st_mtime, _problem(path, name, status.st_mode, inside))


def _problem(path: str, name: str, mode: int, inside: str | None) -> Problem | None:
    if _leads_out(path, inside):
        return _outside(path)
    if not stat.S_ISREG(mode):
        return Reason.UNREADABLE_FILE, f"{name} is no plain file, but a {_KINDS.get(stat.S_IFMT(mode), 'special file')}"
    if not os.access(path, os.R_OK):
        return Reason.UNREADABLE_FILE, f"{name} must not be read: {os.strerror(errno.EACCES)}"
    return None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno not in _BROKEN:
            raise
        return False


_BROKEN = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EACCES, errno.ENAMETOOLONG)
"""Errors of a link that leads nowhere, in a circle, or where this user may not go."""

_KINDS = {
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFDIR: "folder",
}


def _leads_out(path: str, inside: str | None) -> bool:
    if inside is None:
        return False
    return not os.path.realpath(path).startswith(f"{inside.rstrip('/')}/")


def _outside(path: str) -> Problem:
    target = os.path.realpath(path)
    return Reason.OUTSIDE_LINK, f"a link out of the source, to {target}: --follow-links reads such files"


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
    with suppress(OSError):  # a server that is not there is noticed at once, and not at the end of that limit
        answer(pattern, lambda: filesystems(pattern).exists(pattern))
    found = answer(pattern, lambda: filesystems(pattern).match([pattern])[0].metadata_list, SECONDS_TO_LIST)
    prefix = root.rstrip("/") + "/"
    return [
        File(meta.path, meta.path.removeprefix(prefix), meta.size_in_bytes, meta.last_updated_in_seconds)
        for meta in found
    ]
