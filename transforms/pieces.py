"""Pieces: the results of batches, in files of their own until their shard is written.

    OUT/.subjectloom/pieces/000012-0123456789abcdef/000003-000000-last
                            shard, fingerprint      item, batch of the item

Only names go through Beam, not pictures: neither a runner's shuffle nor the memory of a laptop holds a shard, and what
a killed run had done is kept. A piece is the fragments of its samples (see `schemas.shards`), the books of the batch
as a part (see `schemas.dataset`), and the length of that part. When all batches of a shard are done, its tar is
composed of the fragments in its pieces, one at a time.
"""

import io
import os
import struct
import uuid
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow.parquet as pq

from schemas.dataset import Part, Row, decode_part, encode_part
from schemas.errors import SubjectloomError
from schemas.rejects import PASSING
from schemas.samples.base import SampleFormat
from schemas.shards import fragment
from transforms.dataset import PIECES, STATE
from transforms.files import is_remote, join, list_files, open_file, remove_empty_folder, remove_files, replacing
from transforms.settled import Settled

LAST, UNREAD = "-last", "-unread"

_LENGTH = struct.Struct(">Q")


def piece_name(shard: int, fingerprint: str, item: int, batch: int, *, is_last: bool) -> str:
    """The name of the piece of a batch, by the numbers of its shard, of its item there, and its own in that item."""
    return f"{_folder(shard, fingerprint)}/{item:06d}-{batch:06d}{LAST if is_last else ''}"


def write_piece(output: str, name: str, sample_format: SampleFormat, settled: Settled) -> None:
    """Write the results of a batch. If records could not be read for a cause that may pass, its name says so."""
    if any(reject.reason in PASSING for reject in settled.rejects):
        name += UNREAD
    fragments = [fragment(sample) for sample in settled.samples]
    rows, offset = [], 0
    for row, content in zip(settled.rows, fragments, strict=True):
        rows.append(row | {"offset": offset, "size": len(content), "crc32": zlib.crc32(content)})
        offset += len(content)
    seconds: dict[str, float] = defaultdict(float)
    for stage, spent in settled.seconds:
        seconds[stage] += spent
    part = Part(
        shard=0, fingerprint="", read=settled.read, written=len(rows), rejects=[*settled.rejects], seconds=dict(seconds)
    )
    books = encode_part(part, rows, sample_format.index_columns)
    _write(join(output, STATE, PIECES, name), [*fragments, books, _LENGTH.pack(len(books))])


def _write(path: str, blocks: Iterable[bytes]) -> None:
    if is_remote(path):
        with replacing(path) as stream:
            stream.writelines(blocks)
        return
    # Not made durable: what a power failure takes is found by its checksum, and made again.
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with Path(temporary).open("wb") as file:
            file.writelines(blocks)
        Path(temporary).replace(path)
    except BaseException:
        remove_files([temporary])
        raise


def finished_items(output: str, shard: int, fingerprint: str) -> frozenset[int]:
    """The items of a shard all of whose pieces an earlier run has written; those of other items are removed."""
    folder = _folder(shard, fingerprint)
    names = _names(output, shard, fingerprint)
    batches: dict[int, set[int]] = defaultdict(set)
    last: dict[int, int] = {}
    for name in names:
        item, batch = map(int, name.split("-")[:2])
        batches[item].add(batch)
        if LAST in name:
            last[item] = batch
        if name.endswith(UNREAD):
            batches[item].add(-1)
    # The pieces of an item are written in their order; one with records to be read again makes the item unfinished.
    finished = frozenset(item for item, batch in last.items() if batches[item] == {*range(batch + 1)})
    left = [name for name in names if int(name.split("-")[0]) not in finished]
    remove_files(join(output, STATE, PIECES, folder, name) for name in left)
    return finished


def read_pieces(output: str, shard: int, fingerprint: str) -> tuple[Settled, Iterator[tuple[str, bytes]]]:
    """Read what the pieces of a shard hold.

    Returns:
        Their books in one, without samples, the rows sorted by key; and the keys and fragments of these rows, which are
        read one at a time. The rows of equal keys are those of the first piece first.
    """
    paths = [_path(output, shard, fingerprint, name) for name in _names(output, shard, fingerprint)]
    found = [_read_books(path) for path in paths]
    places = [(row, path) for path, (_, rows) in zip(paths, found, strict=True) for row in rows]
    places.sort(key=lambda place: place[0]["key"])
    parts = [part for part, _ in found]
    books = Settled(
        read=sum(part.read for part in parts),
        rows=tuple(row for row, _ in places),
        rejects=tuple(reject for part in parts for reject in part.rejects),
        seconds=tuple(pair for part in parts for pair in part.seconds.items()),
    )
    return books, _fragments(places)


def piece_names(output: str, shard: int, fingerprint: str) -> tuple[str, list[str]]:
    """Return the folder of a shard's pieces, as their names begin, and the names of their batches."""
    return _folder(shard, fingerprint), [name.removesuffix(UNREAD) for name in _names(output, shard, fingerprint)]


def remove_pieces(output: str, shard: int, fingerprint: str) -> None:
    """Remove the pieces of a shard."""
    names = _names(output, shard, fingerprint)
    remove_files(_path(output, shard, fingerprint, name) for name in names)
    remove_empty_folder(join(output, STATE, PIECES, _folder(shard, fingerprint)))


def remove_unread_pieces(output: str, shard: int, fingerprint: str) -> None:
    """Remove those pieces of a shard some of whose records could not be read for a cause that may pass."""
    names = [name for name in _names(output, shard, fingerprint) if name.endswith(UNREAD)]
    remove_files(_path(output, shard, fingerprint, name) for name in names)


def remove_all_pieces(output: str) -> None:
    """Remove the pieces of all shards."""
    for folder in (join(output, STATE, PIECES), join(output, STATE, "candidate-pieces")):
        remove_files(join(folder, name) for name in list_files(folder))
        remove_empty_folder(folder)


def _folder(shard: int, fingerprint: str) -> str:
    return f"{shard:06d}-{fingerprint[:16]}"


def _path(output: str, shard: int, fingerprint: str, name: str) -> str:
    return join(output, STATE, PIECES, _folder(shard, fingerprint), name)


def _names(output: str, shard: int, fingerprint: str) -> list[str]:
    names = list_files(join(output, STATE, PIECES, _folder(shard, fingerprint)))
    return [name for name in names if not name.endswith(".tmp")]


def _read_books(path: str) -> tuple[Part, list[Row]]:
    try:
        with open_file(path) as stream:
            end = stream.seek(-_LENGTH.size, os.SEEK_END)
            (length,) = _LENGTH.unpack(stream.read(_LENGTH.size))
            stream.seek(end - length)
            table = pq.read_table(io.BytesIO(stream.read(length)))
        return decode_part(table.schema.metadata), table.to_pylist()
    except (ValueError, KeyError, struct.error) as error:  # Arrow's errors are ValueErrors
        raise _damaged(path) from error


def _fragments(places: Iterable[tuple[Row, str]]) -> Iterator[tuple[str, bytes]]:
    opened, stream = "", cast("BinaryIO", io.BytesIO())
    try:
        for row, path in places:
            if path != opened:  # mostly the next one: keys are in the order of the pieces
                stream.close()
                opened, stream = path, open_file(path)
            stream.seek(row["offset"])
            content = stream.read(row["size"])
            if zlib.crc32(content) != row["crc32"]:
                raise _damaged(path)
            yield row["key"], content
    finally:
        stream.close()


def _damaged(path: str) -> SubjectloomError:
    remove_files([path])
    return SubjectloomError(f"{path} was damaged and is removed: run again with --resume")
