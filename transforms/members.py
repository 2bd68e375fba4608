"""Which shard each input of a dataset is in, from run to run: growth leaves finished shards as they are.

    OUT/.subjectloom/members.parquet     id, shard, place

An input is a picture with files of its own, a tar or a part of one, or a Parquet file; its id is a hash of its name.
A first run cuts its inputs into shards in the order of their names. A resumed one leaves every input where it was,
whatever now comes before it; new inputs fill the last shard up, and then make shards of their own. So a dataset that
grew has the samples of one that was built at once, in other shards.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.rejects import Reject
from transforms.files import exists, open_file
from transforms.sources.records import Chunk, Entry, Group, Item
from transforms.spool import Sorted

COLUMNS = pa.schema([("id", pa.uint64()), ("shard", pa.int32()), ("place", pa.int32())])

_KEY = b"subjectloom"
_NEW = 2**31
"""In place of a shard's number: the input is in none yet. Larger than any number, so that these come last."""


@dataclass(frozen=True)
class ShardSize:
    """Most records of a shard, and most bytes of their pictures: whichever is reached first. A record is never cut."""

    samples: int = 1000
    bytes: int = 10**9


def input_id(name: str) -> int:
    """The id of an input: 64 bits of a hash of its name, which must differ from those of the others."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


class Members:
    """The inputs of an earlier run: shard and place of each. In memory 17 bytes for each; none for a first run."""

    def __init__(self, table: pa.Table | None = None) -> None:
        table = COLUMNS.empty_table() if table is None else table
        ids, shards, places = (table[name].to_numpy() for name in COLUMNS.names)
        order = np.argsort(ids, kind="stable")
        self._ids, self._shards, self._places = ids[order], shards[order], places[order]
        self._found = np.zeros(len(ids), bool)
        self.last = int(shards.max()) if len(shards) else -1
        """The number of the last shard; -1 if there is none."""

    def __len__(self) -> int:
        return len(self._ids)

    def find(self, name: str) -> tuple[int, int] | None:
        """The shard of an input and its place there; None if it is new. It counts as found from now on."""
        number = np.uint64(input_id(name))
        index = int(np.searchsorted(self._ids, number))
        if index == len(self._ids) or self._ids[index] != number:
            return None
        self._found[index] = True
        return int(self._shards[index]), int(self._places[index])

    def lost(self) -> Mapping[int, int]:
        """How many inputs of each shard were not found, for shards of which some were not."""
        shards, counts = np.unique(self._shards[~self._found], return_counts=True)
        return dict(zip(shards.tolist(), counts.tolist(), strict=True))


def read_members(path: str, how: Mapping[str, Any]) -> Members:
    """Read the members that `MembersWriter` wrote; none if there is no such file, or inputs were cut in another way."""
    if not exists(path):
        return Members()
    try:
        with open_file(path) as stream:
            table = pq.read_table(stream)
        if json.loads(table.schema.metadata[_KEY]) != dict(how):
            return Members()
        return Members(table)
    except (pa.ArrowException, KeyError, TypeError, ValueError):
        return Members()  # damaged: shards are cut anew, and those that come out the same are kept


class MembersWriter:
    """Writes members, chunk by chunk, to a local file; `how` states how inputs are cut into shards."""

    def __init__(self, path: str, how: Mapping[str, Any]) -> None:
        schema = COLUMNS.with_metadata({_KEY: json.dumps(dict(how))})
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._chunks: list[Chunk] = []
        self._count = 0

    def add(self, chunk: Chunk) -> None:
        """Add the inputs of a chunk."""
        self._chunks.append(chunk)
        self._count += len(chunk.ids)
        if self._count >= 65_536:
            self._flush()

    def close(self) -> None:
        """Finish the file."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        columns = [
            np.array([i for chunk in self._chunks for i in chunk.ids], np.uint64),
            np.repeat([chunk.shard for chunk in self._chunks], [len(chunk.ids) for chunk in self._chunks]),
            np.array([place for chunk in self._chunks for place in range(len(chunk.ids))], np.int32),
        ]
        arrays = [pa.array(column, kind) for column, kind in zip(columns, COLUMNS.types, strict=True)]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._writer.schema))
        self._chunks, self._count = [], 0


def cut_entries(
    entries: Iterable[Entry | Reject], members: Members, size: ShardSize, batch_size: int
) -> Iterator[Chunk]:
    """Cut entries into chunks, and these into items of `batch_size`.

    Args:
        entries: in the order in which new ones are cut.
        members: those of the earlier run.
        size: of a shard of new entries; known ones stay together whatever it is.
        batch_size: records of a batch.
    """
    for shard, run in _runs(entries, members, size):
        groups = [Group(tuple(run[i : i + batch_size])) for i in range(0, len(run), batch_size)]
        yield Chunk.of(shard, groups, len(run), tuple(input_id(_name(entry)) for entry in run))


def _runs(
    entries: Iterable[Entry | Reject], members: Members, size: ShardSize
) -> Iterator[tuple[int, list[Entry | Reject]]]:
    """Yield the number and the entries of each shard, in ascending order of the numbers."""
    shard, run, held = -1, list[Entry | Reject](), 0
    for known, entry in _placed(entries, members):
        if known < _NEW:
            is_other = known != shard
        else:
            is_full = len(run) >= size.samples or held + _bytes(entry) > size.bytes
            is_other = not run or is_full or shard < members.last
        if is_other:
            if run:
                yield shard, run
            shard, run, held = known if known < _NEW else max(shard, members.last) + 1, [], 0
        run.append(entry)
        held += _bytes(entry)
    if run:
        yield shard, run


def _placed(entries: Iterable[Entry | Reject], members: Members) -> Iterable[tuple[int, Entry | Reject]]:
    """Entries with the number of their shard, `_NEW` for new ones; sorted by it and, within a shard, by place."""
    if not len(members):
        return ((_NEW, entry) for entry in entries)
    places = ((members.find(_name(entry)) or (_NEW, 0), entry) for entry in entries)
    ordered = Sorted(places, key=lambda pair: pair[0])
    return ((shard, entry) for (shard, _), entry in ordered)


def _name(entry: Entry | Reject) -> str:
    # A reject has the key of the record that it is a copy of.
    return f"{entry.key}\n{entry.source}\n{entry.reason}" if isinstance(entry, Reject) else entry.key


def _bytes(entry: Entry | Reject) -> int:
    return 0 if isinstance(entry, Reject) else entry.length


def cut_items(items: Sequence[tuple[str, Item, int | None]], members: Members) -> list[Chunk]:
    """Make a chunk of each item, given as its name, the item and its number of records, None if that is not known."""
    chunks, last = [], members.last
    for name, item, expected in items:
        place = members.find(name)
        last += place is None
        chunks.append(Chunk.of(place[0] if place else last, [item], expected, (input_id(name),)))
    return sorted(chunks, key=lambda chunk: chunk.shard)


def in_earlier_order(names: Sequence[str], members: Members) -> list[int]:
    """The indices of `names` in the order of the earlier run; new ones come last, in their own order."""
    places = [members.find(name) or (_NEW, 0) for name in names]
    return sorted(range(len(names)), key=places.__getitem__)
