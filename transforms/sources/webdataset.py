"""WebDataset tars, as img2dataset writes them: consecutive members with one key are a sample.

    000000012.jpg   000000012.txt   000000012.json {"caption": ..., "url": ..., "license": ...}

A tar is read as a stream, never unpacked, and becomes one shard. As in webdataset, the key of a member ends at the
first dot of its file name; what follows is its kind.
"""

import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Self

from schemas.example import Example
from schemas.keys import clean_key
from schemas.rejects import Reason, Reject
from transforms.batch import Outcome
from transforms.files import open_file
from transforms.sources.files import File
from transforms.sources.records import (
    IMAGE_EXTENSIONS,
    Chunk,
    attempt,
    caption_of,
    first_caption,
    parse_metadata,
    refuse,
    source_of,
    to_example,
)

EXTENSIONS = (".tar", ".tar.gz", ".tgz")

_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
_BROKEN = (tarfile.TarError, EOFError, zlib.error, OSError)

Members = dict[str, bytes]
"""The contents of a sample by kind: what follows the first dot of the member's name, in lower case."""


class StrictTarInfo(tarfile.TarInfo):
    """A header that ends the archive only if it is the end mark.

    `tarfile` takes a header that is missing, truncated or corrupt for the end: samples would be lost silently.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """Read the next header.

        Raises:
            tarfile.ReadError: it is neither complete nor the end mark.
        """
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {archive.offset:,}") from error


@dataclass(frozen=True)
class Tar:
    """An item that is a tar. Its keys begin with `prefix`; only the first `limit` records are taken (None: all)."""

    file: File
    prefix: str
    limit: int | None = None

    @property
    def stamp(self) -> str:
        """The file's stamp, the prefix and the limit."""
        return f"{self.file.stamp} {self.prefix!r} {self.limit}"

    def read(self) -> Iterator[Outcome]:
        """Yield a record per sample, and a reject if the tar is truncated or corrupt."""
        for sample in self.samples():
            yield sample if isinstance(sample, Reject) else attempt(sample.key, sample.uri, sample.load)

    def samples(self) -> Iterator["TarSample | Reject"]:
        """Yield the samples; a reject for the second sample of a key, and if the tar is truncated or corrupt."""
        return islice(self._samples(), self.limit)

    def count(self, limit: int) -> int:
        """Count its records up to `limit`, without decoding them."""
        return sum(1 for _ in islice(self._samples(), limit))

    def _samples(self) -> Iterator["TarSample | Reject"]:
        keys: set[str] = set()
        try:
            with (
                open_file(self.file.path) as stream,
                tarfile.open(fileobj=stream, mode="r|*", tarinfo=StrictTarInfo) as archive,
            ):
                for raw, members in read_samples(archive):
                    sample = TarSample(clean_key(f"{self.prefix}{raw}"), f"{self.file.uri}/{raw}", members)
                    if sample.key in keys:
                        detail = f"{self.file.name} has an earlier sample {raw}"
                        yield refuse(sample.key, sample.uri, Reason.DUPLICATE_KEY, detail)
                    else:
                        keys.add(sample.key)
                        yield sample
        except _BROKEN as error:
            # Without any sample it is no tar, or cannot be accessed; otherwise a part of it has been read.
            reason = Reason.TRUNCATED_ARCHIVE if keys else Reason.UNREADABLE_FILE
            detail = f"{self.file.name} breaks off after {len(keys)} samples: {error}"
            yield refuse(clean_key(self.file.name), self.file.uri, reason, detail)


@dataclass(frozen=True)
class TarSample:
    """A sample of a tar."""

    key: str
    uri: str
    members: Members

    def load(self) -> Example:
        """Make its example; the caption is that of the .txt, the .caption or the .json, the first that is not empty."""
        fields = parse_metadata(self.members["json"]) if "json" in self.members else {}
        caption = first_caption(self.members.get("txt"), self.members.get("caption"), caption_of(fields))
        return to_example(self.key, picture_of(self.members), caption, source_of(fields, self.uri))


def is_tar(file: File) -> bool:
    """Whether a file has the extension of a tar."""
    return file.has_extension(EXTENSIONS)


def list_tars(files: Sequence[File], limit: int | None) -> list[Chunk]:
    """Make a chunk per tar, in the order of their names.

    With one tar, keys are those of its samples; with several, they begin with the tar's name, as samples of two tars
    may have the same key. With `limit`, tars are read here up to that number of samples.
    """
    tars = take_tars([Tar(file, prefix) for file, prefix in zip(files, prefixes(files), strict=True)], limit)
    return [Chunk.of(shard, [tar], tar.limit) for shard, tar in enumerate(tars)]


def take_tars(tars: Sequence[Tar], limit: int | None) -> list[Tar]:
    """Return the tars with the first `limit` records, the last one limited to them; all tars if it is None."""
    if limit is None:
        return [*tars]
    taken: list[Tar] = []
    for tar in tars:
        if limit == 0:
            break
        count = tar.count(limit)
        taken.append(Tar(tar.file, tar.prefix, count))
        limit -= count
    return taken


def read_samples(archive: tarfile.TarFile) -> Iterator[tuple[str, Members]]:
    """Yield the key and the members of each sample.

    Raises:
        tarfile.ReadError, EOFError, zlib.error, OSError: the archive is truncated or corrupt. The last sample before
            that has been yielded only if it has a picture and a caption and none of its members is incomplete.
    """
    key, members, inside = "", Members(), False
    try:
        for info in archive:
            match = _MEMBER.fullmatch(info.name)
            content = archive.extractfile(info) if match and info.isfile() else None
            if not match or not content:
                continue
            # "tar -c ." puts "./" before every name.
            name, kind = match[1].removeprefix("./"), match[2].lower()
            if members and (name != key or kind in members):
                yield key, members
                members = {}
            key, inside = name, True
            members[kind] = content.read()
            inside = False
    except _BROKEN:
        if not inside and picture_of(members) and ("txt" in members or "json" in members):
            yield key, members
        raise
    if members:
        yield key, members


def picture_of(members: Members) -> bytes | None:
    """The picture of a sample; None if it has none."""
    return next((members[kind] for kind in IMAGE_EXTENSIONS if kind in members), None)


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
