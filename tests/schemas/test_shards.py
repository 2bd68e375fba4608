import gzip
import hashlib
import io
import subprocess
import tarfile
import zlib
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import InputError
from schemas.shards import Sample, read_sample, read_tar, shard_name, shard_of, write_tar

keys = st.from_regex(r"[A-Za-z0-9_-]{1,200}", fullmatch=True)
members = st.dictionaries(st.sampled_from(["jpg", "json", "txt", "alpha.png"]), st.binary(max_size=1500), min_size=1)


def tar_of(samples: list[Sample]) -> tuple[bytes, list[tuple[str, int, int]]]:
    stream = io.BytesIO()
    entries = write_tar(stream, samples)
    return stream.getvalue(), [(e.key, e.offset, e.size) for e in entries]


def test_a_shard_is_pinned_byte_for_byte() -> None:
    samples = [
        Sample("a", {"jpg": b"\xff\xd8\xff\xd9", "json": b'{"key":"a"}'}),
        Sample("b-" + "x" * 150, {"txt": b"", "jpg": bytes(range(256)) * 2}),
    ]
    tar, entries = tar_of(samples)
    # a: two members of a header and a block. b: two pax blocks and a header each, the picture one block more.
    assert entries == [("a", 0, 4 * 512), ("b-" + "x" * 150, 4 * 512, 7 * 512)]
    assert len(tar) == 10240
    assert hashlib.sha256(tar).hexdigest() == "1c633de3a7e721574e026724bc31f7de8d6c24f09b365831302c947aa7eba35d"


def test_headers_say_nothing_of_the_machine() -> None:
    tar, _ = tar_of([Sample("a", {"jpg": b"1"})])
    info = tarfile.TarInfo.frombuf(tar[:512], "ascii", "strict")
    assert (info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) == (0, 0, 0, "", "", 0o644)
    assert tar[257:265] == b"ustar\x0000"


def test_the_order_in_which_members_were_given_does_not_matter() -> None:
    one, _ = tar_of([Sample("a", {"jpg": b"1", "json": b"2"})])
    other, _ = tar_of([Sample("a", {"json": b"2", "jpg": b"1"})])
    assert one == other


@given(st.dictionaries(keys, members, max_size=6))
def test_what_was_written_is_read_back_as_a_whole_and_from_each_offset(contents: dict[str, dict[str, bytes]]) -> None:
    samples = [Sample(key, contents[key]) for key in sorted(contents)]
    tar, entries = tar_of(samples)
    assert len(tar) % 10240 == 0
    read = list(read_tar(io.BytesIO(tar)))
    assert [sample for _, sample in read] == samples
    assert [(e.key, e.offset, e.size) for e, _ in read] == entries
    assert all(zlib.crc32(tar[e.offset : e.offset + e.size]) == e.crc32 for e, _ in read)
    assert [e for e, _ in read] == write_tar(io.BytesIO(), samples)
    assert [read_sample(tar[offset : offset + size]) for _, offset, size in entries] == samples


def test_gnu_tar_lists_a_shard_without_complaint(tmp_path: Path) -> None:
    tar, _ = tar_of([Sample("a", {"jpg": b"1"}), Sample("b" * 200, {"jpg": b"2", "json": b"{}"})])
    (tmp_path / "s.tar").write_bytes(tar)
    done = subprocess.run(["tar", "-tf", str(tmp_path / "s.tar")], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["a.jpg", "b" * 200 + ".jpg", "b" * 200 + ".json"]
    assert done.stderr == ""


def test_two_samples_of_one_key_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"^two samples have the key 'b': keys must differ, rename one of the inputs$"):
        tar_of([Sample("a", {"jpg": b"1"}), Sample("b", {"jpg": b"1"}), Sample("b", {"jpg": b"2"})])


def test_samples_out_of_order_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(AssertionError, match=r"^a after b: sort the samples"):
        tar_of([Sample("b", {"jpg": b"1"}), Sample("a", {"jpg": b"2"})])


def test_a_tar_that_was_cut_off_is_not_read_as_if_it_were_whole() -> None:
    tar, _ = tar_of([Sample("a", {"jpg": bytes(3000)})])
    with pytest.raises(tarfile.TarError):
        list(read_tar(io.BytesIO(tar[:2000])))


def test_a_compressed_tar_is_no_shard() -> None:
    """Its offsets would point into the compressed bytes."""
    tar, _ = tar_of([Sample("a", {"jpg": b"1"})])
    with pytest.raises(tarfile.TarError):
        list(read_tar(io.BytesIO(gzip.compress(tar))))


def test_what_is_no_file_in_a_foreign_tar_holds_nothing() -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        folder = tarfile.TarInfo("a.folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    ((_, sample),) = read_tar(io.BytesIO(stream.getvalue()))
    assert sample == Sample("a", {"folder": b""})


@pytest.mark.parametrize("names", [[], ["a", "b"]])
def test_a_fragment_that_is_not_one_sample_is_refused(names: list[str]) -> None:
    tar, _ = tar_of([Sample(name, {"jpg": b"1"}) for name in names])
    with pytest.raises(ValueError, match=f"^expected one sample, found \\[.*{'.*'.join(names)}"):
        read_sample(tar)


def test_keys_spread_evenly_and_stay_where_they_are() -> None:
    counts = Counter(shard_of(f"key-{i}", 8) for i in range(4000))
    assert set(counts) == set(range(8))
    assert max(counts.values()) < 600
    assert [shard_of(key, 1000) for key in ("dog", "cat")] == [335, 519]


def test_shards_are_numbered_in_six_digits() -> None:
    assert shard_name("fastcomposer", 12) == "fastcomposer-000012.tar"
