"""WebDataset tars, as img2dataset writes them: consecutive members with one key are a sample.

    000000012.jpg   000000012.txt   000000012.json {"caption": ..., "url": ..., "license": ...}

A tar is read as a stream, never unpacked, and becomes one shard. As in webdataset, the key of a member ends at the
first dot of its file name; what follows is its kind. So photo.1.jpg and photo.2.jpg have one key: they are rejects,
unless keys are chosen to end at the last dot. A member of an unknown kind, or without a dot, is the sample's picture if
it begins like one and there is no other.
"""

import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BufferedReader, BytesIO
from itertools import islice
from typing import Any, Literal, cast

from schemas.errors import RecordError
from schemas.example import Example
from schemas.images import HEAD, is_picture
from schemas.keys import clean_key
from schemas.maps import MAP_FILES
from schemas.rejects import Reason, Reject
from transforms.batch import check_blame
from transforms.outages import is_passing
from transforms.sources.files import MAX_PICTURE, MAX_TEXT, File, too_large
from transforms.sources.records import (
    IMAGE_EXTENSIONS,
    OTHER_EXTENSIONS,
    STAGE,
    Unloaded,
    caption_of,
    first_caption,
    parse_metadata,
    refuse,
    source_of,
    stated_scores,
    to_example,
)
from transforms.sources.strict_tar import StrictTar

EXTENSIONS = (".tar", ".tar.gz", ".tgz")

Keys = Literal["first-dot", "last-dot"]
"""Where the key of a member ends: at the first dot of its file name, as in webdataset, or at the last one."""

_MEMBERS = {
    "first-dot": re.compile(r"((?:.*/)?[^./]+)(?:\.([^/]*))?", re.DOTALL),
    "last-dot": re.compile(r"((?:.*/)?[^./][^/]*?)(?:\.([^./]*))?", re.DOTALL),
}
_PICTURES = (*IMAGE_EXTENSIONS, *OTHER_EXTENSIONS)
_CAPTIONS = ("txt", "json")
Members = dict[str, bytes]
"""The contents of a sample by kind: what follows the first dot of the member's name, in lower case.

Only of pictures, captions and maps; of other members, which nobody reads, and of those that are too large, it is b"".
"""

MAX_SAMPLE = MAX_PICTURE + MAX_TEXT
"""Most bytes of a sample's pictures and captions together."""


@dataclass(frozen=True)
class Tar:
    """An item that is a tar, or a part of one. Its keys begin with `prefix`.

    Only the first `limit` records are taken (None: all). A part holds the samples that begin at the bytes
    [start, stop); `stop` is None for the last part.
    """

    file: File
    prefix: str
    limit: int | None = None
    ends: Keys = "first-dot"
    start: int = 0
    stop: int | None = None

    @property
    def name(self) -> str:
        """The file's name, and of a part that is not the first, where it begins."""
        return f"{self.file.name}@{self.start}" if self.start else self.file.name

    @property
    def stamp(self) -> str:
        """The file's stamp, the prefix, the limit, where keys end, and which part it is."""
        ends = "" if self.ends == "first-dot" else f" {self.ends}"
        part = f" [{self.start}, {self.stop})" if self.start or self.stop else ""
        return f"{self.file.stamp} {self.prefix!r} {self.limit}{ends}{part}"

    def split(self, length: int) -> list["Tar"]:
        """Split a tar into parts of `length` bytes. One that is compressed stays whole, as it has one beginning."""
        if self.file.size <= length or not self.file.has_extension((".tar",)):
            return [self]
        starts = range(0, self.file.size, length)
        return [replace(self, start=s, stop=s + length if s + length < self.file.size else None) for s in starts]

    def read(self) -> Iterator[Unloaded | Reject]:
        """Yield a record per sample, and a reject if the tar is truncated or corrupt."""
        for sample in self.samples():
            yield sample if isinstance(sample, Reject) else Unloaded(sample.key, sample.uri, sample.load)

    def samples(self) -> Iterator["TarSample | Reject"]:
        """Yield the samples.

        A reject for the second sample of a key, for each picture whose key has a dot, and if the tar is truncated or
        corrupt.
        """
        return islice(self._samples(), self.limit)

    def count(self, limit: int) -> int:
        """Count its records up to `limit`, without decoding them."""
        return sum(1 for _ in islice(self._samples(), limit))

    def _samples(self) -> Iterator["TarSample | Reject"]:
        begin, earlier = self._begin()
        if begin < 0:
            return
        # Of the samples that were read, by their keys.
        kinds: dict[str, frozenset[str]] = {clean_key(f"{self.prefix}{raw}"): frozenset() for raw in earlier}
        try:
            with self.file.open() as stream, StrictTar.stream(stream, begin) as archive:
                for offset, raw, members, problem in read_samples(archive, self.ends):
                    if self.stop is not None and begin + offset >= self.stop:
                        return
                    dotted = dotted_pictures(members)
                    for part, name in dotted.items():
                        key, uri = clean_key(f"{self.prefix}{raw}.{part}"), f"{self.file.uri}/{raw}.{part}"
                        yield refuse(key, uri, Reason.MISSING_IMAGE, _dotted(f"{raw}.{name}"))
                    if dotted and not picture_of(members):
                        continue
                    sample = TarSample(clean_key(f"{self.prefix}{raw}"), f"{self.file.uri}/{raw}", members, problem)
                    if sample.key in kinds:
                        detail = f"{self.file.name} has an earlier sample {raw}"
                        if not kinds[sample.key] & members.keys():
                            detail += _SCATTERED.format(", ".join(sorted(kinds[sample.key])), ", ".join(members))
                        yield refuse(sample.key, sample.uri, Reason.DUPLICATE_KEY, detail)
                    else:
                        kinds[sample.key] = frozenset(members)
                        yield sample
        except Exception as error:  # tarfile and the decompressors raise a dozen types for a corrupt archive
            yield self._broken(error, len(kinds))

    def _broken(self, error: Exception, samples: int) -> Reject:
        """The reject of the tar, for which an error came after so many samples; one that may pass is raised."""
        if is_passing(error):
            raise error
        check_blame(error, STAGE)
        if isinstance(error, RecordError):
            return refuse(clean_key(self.file.name), self.file.uri, error.reason, error.detail)
        # Without any sample it is no tar, or cannot be accessed; otherwise a part of it has been read.
        reason = Reason.TRUNCATED_ARCHIVE if samples else Reason.UNREADABLE_FILE
        detail = f"{self.file.name} breaks off after {samples} samples: {error}"
        return refuse(clean_key(self.file.name), self.file.uri, reason, detail)

    def _begin(self) -> tuple[int, set[str]]:
        """Where its first sample begins, in bytes (-1 if there is none), and the keys of the samples before it."""
        if not self.start:
            return 0, set()
        try:
            return find_part(self.file, self.start, self.ends)
        except Exception as error:  # an earlier part breaks off there, and says so
            if is_passing(error):
                raise
            check_blame(error, STAGE)
            return -1, set()


@dataclass(frozen=True)
class TarSample:
    """A sample of a tar; `too_large` says which of its members is not read for its size, if one is."""

    key: str
    uri: str
    members: Members
    too_large: RecordError | None = None

    def load(self) -> Example:
        """Make its example; the caption is that of the .txt, the .caption or the .json, the first that is not empty.

        Raises:
            RecordError: a member is too large, or what `to_example` raises.
        """
        self.check()
        fields = parse_metadata(self.members["json"]) if "json" in self.members else {}
        caption = first_caption(self.members.get("txt"), self.members.get("caption"), caption_of(fields))
        example = to_example(self.key, picture_of(self.members), caption, source_of(fields, self.uri), self.members)
        return replace(example, stated=stated_scores(fields))

    def check(self) -> None:
        """Raise a RecordError if a member is too large."""
        if self.too_large:
            raise self.too_large


def is_tar(file: File) -> bool:
    """Whether a file has the extension of a tar."""
    return file.has_extension(EXTENSIONS)


def list_tars(files: Sequence[File], limit: int | None, length: int, ends: Keys = "first-dot") -> list[Tar]:
    """List tars in the order of their names, those of more than `length` bytes in parts.

    With one tar, keys are those of its samples; with several, they begin with the tar's name, as samples of two tars
    may have the same key. With `limit`, tars are read here up to that number of samples. `ends` is where keys end.
    """
    tars = [Tar(file, prefix, ends=ends) for file, prefix in zip(files, prefixes(files), strict=True)]
    return take_tars([part for tar in tars for part in tar.split(length)], limit)


def find_part(file: File, start: int, ends: Keys) -> tuple[int, set[str]]:
    """Find the first sample of a tar that begins at byte `start` or behind, from the headers before it.

    Returns:
        Where it begins, in bytes (-1 if there is none), and the keys of the samples before it.

    Raises:
        Exception: the tar is corrupt before that.
    """
    earlier: set[str] = set()
    raw, kinds = "", set[str]()
    with file.open() as stream, StrictTar.open(fileobj=stream, mode="r:", ignore_zeros=True) as archive:
        for info in archive:
            cast("Any", archive).members = []  # it would keep them all
            match = _MEMBERS[ends].fullmatch(info.name)
            if not match or not info.isfile():
                continue
            name, kind = match[1].removeprefix("./"), match[2].lower()
            if name != raw or kind in kinds:  # as in `read_samples`
                if info.offset >= start:
                    return info.offset, earlier
                raw, kinds = name, set()
                earlier.add(raw)
            kinds.add(kind)
        return -1, earlier


def take_tars(tars: Sequence[Tar], limit: int | None) -> list[Tar]:
    """Return the tars with the first `limit` records, the last one limited to them; all tars if it is None."""
    if limit is None:
        return [*tars]
    taken: list[Tar] = []
    for tar in tars:
        if limit == 0:
            break
        count = tar.count(limit)
        taken.append(replace(tar, limit=count))
        limit -= count
    return taken


def read_samples(
    archive: tarfile.TarFile, ends: Keys = "first-dot"
) -> Iterator[tuple[int, str, Members, RecordError | None]]:
    """Yield the offset in bytes, the key and the members of each sample, and the error for one that is too large.

    `ends` is where keys end.

    Raises:
        Exception: the archive is truncated or corrupt. The last sample before that has been yielded only if it has a
            picture and a caption and none of its members is incomplete.
    """
    key, members, inside, read, offset = "", Members(), False, 0, 0
    problem: RecordError | None = None
    try:
        for info in archive:
            match = _MEMBERS[ends].fullmatch(info.name)
            if not match:
                continue
            # "tar -c ." puts "./" before every name.
            name, kind = match[1].removeprefix("./"), (match[2] or "").lower()
            member = _open_member(archive, info, kind)
            if not member:
                continue
            if members and (name != key or kind in members):
                yield offset, key, members, problem
                members, problem, read = {}, None, 0
            offset = offset if members else info.offset
            key, inside = name, True
            content, members[kind], limit = member
            # A megabyte of a compressed tar may stand for gigabytes.
            if limit and (info.size > limit or read + info.size > MAX_SAMPLE):
                problem = too_large(info.name, info.size, limit)
            elif limit:
                members[kind] = content.read()
                read += info.size
            inside = False
    except Exception:
        if not inside and picture_of(members) and ("txt" in members or "json" in members):
            yield offset, key, members, problem
        raise
    if members:
        yield offset, key, members, problem


def _open_member(
    archive: tarfile.TarFile, info: tarfile.TarInfo, kind: str
) -> tuple[BufferedReader, bytes, int] | None:
    """Open a member of a sample.

    Returns:
        Its content; what it begins with, if nobody reads its kind and it is a picture; and the most bytes that are
        read. None if it belongs to no sample, as a README.
    """
    if kind in _PICTURES and (info.islnk() or info.issym()):
        return BufferedReader(BytesIO()), b"", MAX_PICTURE  # it has no content of its own, and a stream no way back
    if not info.isfile():
        return None
    content = cast("BufferedReader", archive.extractfile(info))
    if limit := _limit_of(kind):
        return content, b"", limit
    head = content.peek(HEAD)[:HEAD]
    if not is_picture(head):
        return (content, b"", 0) if kind else None
    return content, head, 0 if "." in kind else MAX_PICTURE


def _limit_of(kind: str) -> int:
    """The most bytes of a member that are read, 0 if nobody reads it."""
    if kind in _PICTURES or kind in MAP_FILES:
        return MAX_PICTURE
    return MAX_TEXT if kind in (*_CAPTIONS, "caption") else 0


def picture_of(members: Members) -> bytes | None:
    """The picture of a sample, by its kind or else by its content; None if it has none."""
    known = next((members[kind] for kind in _PICTURES if kind in members), None)
    if known is not None:
        return known
    plain = (content for kind, content in members.items() if "." not in kind)
    return next((content for content in plain if is_picture(content[:HEAD])), None)


_SCATTERED = (
    " with other members ({} there, {} here): those of one sample must stand beside each other in the tar, so make it "
    "with sorted names, as by tar --sort=name -cf NEW.tar FOLDER"
)


def dotted_pictures(members: Members) -> dict[str, str]:
    """The pictures of a sample that are samples themselves by the last dot of their names.

    These are the pictures with a caption of their own, or all pictures if none has the sample's key alone; other ones
    (1.seg.png beside 1.jpg) are maps of the sample's picture.

    Returns:
        What the key of each would end in, and of it one picture's name without the sample's key: {"1": "1.jpg"}.
    """
    parts = [(name, *name.rpartition(".")[::2]) for name in members if "." in name]
    captioned = {part for _, part, kind in parts if kind in _CAPTIONS}
    is_bare = picture_of(members) is None
    return {
        part: name
        for name, part, kind in parts
        if (is_bare or part in captioned) and (kind in _PICTURES or is_picture(members[name][:HEAD]))
    }


def _dotted(name: str) -> str:
    return (
        f"the name {name} has a dot before its extension, and keys end at the first one: rename it, or read the tar "
        "with --keys last-dot"
    )


def prefixes(files: Sequence[File]) -> list[str]:
    """The prefix of each tar's keys: "" for a single tar, else its name."""
    if len(files) == 1:
        return [""]
    stems = [re.sub(r"(\.tar|\.tar\.gz|\.tgz)$", "", file.name, flags=re.IGNORECASE) for file in files]
    # "a" + "_" + "b_c" and "a_b" + "_" + "c" would be the same key; with full names and "/" that cannot happen.
    starts = {stem[: mark.start()] for stem in stems for mark in re.finditer("_", stem)}
    if starts.intersection(stems) or len(set(stems)) < len(stems):
        return [f"{file.name}/" for file in files]
    return [f"{stem}_" for stem in stems]
