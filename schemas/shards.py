"""The layout of a shard: a WebDataset tar in which every byte is a function of its samples.

A sample is a key and its members, `KEY.jpg`, `KEY.json` and so on: consecutive files of the tar, sorted by name.
Headers carry no time, no owner and no mode of the machine that wrote them.
"""

import hashlib
import io
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from schemas.errors import InputError

BLOCK = 512
"""Bytes: headers and contents of a tar are padded to this."""


@dataclass(frozen=True)
class Sample:
    """One sample of a shard: `members` maps what follows the first dot of a file's name to its contents."""

    key: str
    members: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True)
class Entry:
    """Where a sample is stored: the `size` bytes at `offset` of the shard are themselves a tar of this sample alone.

    `crc32` is the CRC-32 of those bytes: a JPEG with a flipped bit still decodes, to another picture.
    """

    key: str
    offset: int
    size: int
    crc32: int


def shard_name(prefix: str, shard: int) -> str:
    """Return the file name of a shard, `PREFIX-000000.tar`."""
    return f"{prefix}-{shard:06d}.tar"


def shard_of(key: str, shards: int) -> int:
    """Choose one of `shards` shards for `key` by a hash: evenly, and always the same one."""
    digest = hashlib.blake2b(key.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % shards


def write_tar(stream: BinaryIO, samples: Iterable[Sample]) -> list[Entry]:
    """Write `samples` as a tar and return where each is stored.

    Names longer than 100 characters get a pax header before theirs; every other byte is plain USTAR.

    Args:
        stream: where to write; it need not be seekable.
        samples: in ascending order of their keys.

    Returns:
        An entry per sample, in order; offsets and sizes in bytes.

    Raises:
        InputError: two samples have one key.
    """
    entries: list[Entry] = []
    offset = 0
    for sample in samples:
        if entries and sample.key == entries[-1].key:
            raise InputError(f"two samples have the key {sample.key!r}: keys must differ, rename one of the inputs")
        assert not entries or entries[-1].key < sample.key, f"{sample.key} after {entries[-1].key}: sort the samples"
        size = crc32 = 0
        for block in _blocks(sample):
            stream.write(block)
            size, crc32 = size + len(block), zlib.crc32(block, crc32)
        entries.append(Entry(sample.key, offset, size, crc32))
        offset += size
    stream.write(bytes(tar_size(entries) - offset))
    return entries


def tar_size(entries: Sequence[Entry]) -> int:
    """Return the size, in bytes, of the tar that `write_tar` makes of samples with these entries, in their order."""
    # Two empty blocks end an archive, and tar fills up its last record of 20 blocks.
    end = 2 * BLOCK + (entries[-1].offset + entries[-1].size if entries else 0)
    return end + -end % tarfile.RECORDSIZE


def read_tar(stream: BinaryIO) -> Iterator[tuple[Entry, Sample]]:
    """Read the samples of a shard in order, one in memory at a time.

    Raises:
        tarfile.TarError: `stream` is no tar, or one that was cut off.
    """
    key, start, end = "", 0, 0
    members: dict[str, bytes] = {}
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        for info in tar:
            base, _, name = info.name.partition(".")
            if members and base != key:
                yield _entry(start, end, Sample(key, members))
                members = {}
            if not members:
                key, start = base, info.offset
            content = tar.extractfile(info)
            members[name] = content.read() if content else b""
            end = info.offset_data + info.size + -info.size % BLOCK
    if members:
        yield _entry(start, end, Sample(key, members))


def read_sample(fragment: bytes) -> Sample:
    """Read the one sample of `fragment`, the bytes that an `Entry` points at.

    Raises:
        tarfile.TarError: `fragment` is no tar.
        ValueError: it holds more than one sample, or none.
    """
    samples = [sample for _, sample in read_tar(io.BytesIO(fragment))]
    if len(samples) != 1:
        raise ValueError(f"expected one sample, found {[sample.key for sample in samples]}")
    return samples[0]


def _entry(start: int, end: int, sample: Sample) -> tuple[Entry, Sample]:
    # Writing a sample again gives the bytes that it was read from.
    crc32 = 0
    for block in _blocks(sample):
        crc32 = zlib.crc32(block, crc32)
    return Entry(sample.key, start, end - start, crc32), sample


def _blocks(sample: Sample) -> Iterator[bytes]:
    for name, content in sorted(sample.members.items()):
        info = tarfile.TarInfo(f"{sample.key}.{name}")
        info.size = len(content)
        yield info.tobuf(tarfile.PAX_FORMAT, "ascii", "strict")
        yield content
        yield bytes(-len(content) % BLOCK)
