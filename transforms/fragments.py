"""Samples of a finished dataset by their rows of the index, as the bytes that a shard has of them."""

import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from schemas.dataset import Row
from schemas.errors import InputError
from transforms.files import join, open_file

OPEN = 32
"""Most shards that are open at a time."""


def read_fragments(folder: str, rows: Iterable[Row]) -> Iterator[tuple[str, bytes]]:
    """Yield the keys and the bytes of the samples with these rows of the index of the dataset in `folder`.

    Raises:
        InputError: a shard is missing, or a sample has another checksum than its row states.
    """
    opened: dict[str, BinaryIO] = {}
    try:
        for row in rows:
            if row["shard"] not in opened:  # samples of joined shards alternate, of a few shards mostly
                if len(opened) >= OPEN:
                    opened.pop(next(iter(opened))).close()
                opened[row["shard"]] = _open(folder, row["shard"])
            yield row["key"], _read(folder, opened[row["shard"]], row)
    finally:
        for stream in opened.values():
            stream.close()


def _open(folder: str, shard: str) -> BinaryIO:
    if "/" in shard:  # an index from elsewhere must not name files outside
        raise InputError(f"{folder}/index.parquet names {shard!r}, which is no shard of this folder")
    try:
        return open_file(join(folder, shard))
    except OSError as error:
        raise InputError(f"{folder}/{shard} cannot be read: {error.strerror or error}") from error


def _read(folder: str, stream: BinaryIO, row: Row) -> bytes:
    stream.seek(row["offset"])
    content = stream.read(row["size"])
    if zlib.crc32(content) != row["crc32"]:
        raise InputError(
            f"{folder}/{row['shard']}: the sample {row['key']} is damaged, its checksum differs: `subjectloom inspect "
            f"{folder}` lists all that are"
        )
    return content
