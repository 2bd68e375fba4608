from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import transforms.spool
from schemas.example import Example
from schemas.rejects import Reason, Reject
from transforms.members import Members, MembersWriter, ShardSize, cut_entries, read_members
from transforms.sources.records import Chunk, Entry, Group

HOW = {"kind": "folder"}
SIZE = ShardSize(samples=3, bytes=1000)


@dataclass(frozen=True)
class Fake:
    """An entry of `length` bytes."""

    key: str
    length: int = 10

    @property
    def uri(self) -> str:
        return self.key

    @property
    def stamp(self) -> str:
        return self.key

    def load(self) -> Example:
        raise NotImplementedError


def entries(keys: Sequence[str]) -> list[Entry | Reject]:
    return [Fake(key) for key in keys]


def keys_of(chunks: Sequence[Chunk]) -> dict[int, str]:
    groups = {chunk.shard: cast("Sequence[Group]", chunk.items) for chunk in chunks}
    return {shard: "".join(e.key for group in items for e in group.entries) for shard, items in groups.items()}


def cut(keys: Sequence[str], members: Members | None = None, size: ShardSize = SIZE) -> list[Chunk]:
    return list(cut_entries(entries(keys), members or Members(), size, batch_size=2))


def after(path: Path, chunks: Sequence[Chunk]) -> Members:
    writer = MembersWriter(str(path), HOW)
    for chunk in chunks:
        writer.add(chunk)
    writer.close()
    return read_members(str(path), HOW)


def test_a_first_run_cuts_in_order() -> None:
    assert keys_of(cut("abcdefg")) == {0: "abc", 1: "def", 2: "g"}
    assert [len(chunk.items) for chunk in cut("abcdefg")] == [2, 2, 1]
    assert cut("") == []


def test_a_shard_ends_at_a_number_of_bytes_too_and_a_record_is_never_cut() -> None:
    files: list[Entry | Reject] = [Fake("a", 400), Fake("b", 600), Fake("c", 1), Fake("d", 5000), Fake("e", 1)]
    assert keys_of(list(cut_entries(files, Members(), SIZE, 2))) == {0: "ab", 1: "c", 2: "d", 3: "e"}


def test_what_sorts_first_leaves_the_other_shards_alone(tmp_path: Path) -> None:
    first = cut("bcdefgh")
    members = after(tmp_path / "members", first)
    grown = cut("AbcBdefghC", members)
    assert keys_of(grown) == {0: "bcd", 1: "efg", 2: "hAB", 3: "C"}
    assert [chunk.fingerprint for chunk in grown[:2]] == [chunk.fingerprint for chunk in first[:2]]
    assert members.lost() == {}
    again = after(tmp_path / "again", grown)
    assert keys_of(cut("AbcBdefghC", again)) == keys_of(grown)
    assert keys_of(cut("0AbcBdefghC", again))[3] == "C0"


def test_what_is_gone_leaves_a_gap_and_is_counted(tmp_path: Path) -> None:
    members = after(tmp_path / "members", cut("abcdefg"))
    assert keys_of(cut("acg", members)) == {0: "ac", 2: "g"}
    assert members.lost() == {0: 1, 1: 3}
    members = after(tmp_path / "members", cut("abcdefg"))
    assert keys_of(cut("abz", members)) == {0: "ab", 3: "z"}  # the number of a shard is not used again


def test_inputs_that_were_cut_in_another_way_and_damaged_files_do_not_count(tmp_path: Path) -> None:
    after(tmp_path / "members", cut("abc"))
    assert len(read_members(str(tmp_path / "members"), {"kind": "parquet"})) == 0
    assert len(read_members(str(tmp_path / "none"), HOW)) == 0
    (tmp_path / "members").write_bytes(b"PAR1")
    assert len(read_members(str(tmp_path / "members"), HOW)) == 0


def test_a_reject_is_not_taken_for_the_record_whose_key_it_has(tmp_path: Path) -> None:
    twin = Reject("a", "a.png", "read", Reason.DUPLICATE_KEY, "")
    both: list[Entry | Reject] = [Fake("a"), twin]
    members = after(tmp_path / "members", list(cut_entries(both, Members(), ShardSize(1), 2)))
    placed = {chunk.shard: chunk.items[0] for chunk in cut_entries(both, members, ShardSize(1), 2)}
    assert [cast("Group", placed[n]).entries for n in (0, 1)] == [(both[0],), (twin,)]


@settings(max_examples=25)
@given(st.lists(st.sets(st.integers(0, 60)), min_size=1, max_size=5), st.integers(1, 5))
def test_any_growth_keeps_every_record_once_and_where_it_was(
    tmp_path_factory: pytest.TempPathFactory, runs: list[set[int]], most: int
) -> None:
    """Against a model in memory; sorting happens on disk."""
    folder = tmp_path_factory.mktemp("members")
    members, known, where = Members(), set[int](), dict[str, int]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transforms.spool, "IN_MEMORY", 4)
        for number, new in enumerate(runs):
            known |= new
            names = [f"{n:02d}" for n in sorted(known)]
            chunks = list(cut_entries(entries(names), members, ShardSize(most), 2))
            groups = {chunk.shard: cast("Sequence[Group]", chunk.items) for chunk in chunks}
            placed = {e.key: shard for shard, items in groups.items() for group in items for e in group.entries}
            assert sorted(placed) == names
            assert placed.items() >= where.items()
            assert all((chunk.expected or 0) <= most for chunk in chunks)
            assert len(chunks) == -(-len(names) // most)
            where, members = placed, after(folder / str(number), chunks)
