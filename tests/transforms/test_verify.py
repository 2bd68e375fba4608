"""Damaged shards are found by their books."""

import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.shards import Sample, tar_size, write_tar
from tests.remote import SCHEME
from transforms.verify import verify_shard

STREAM = io.BytesIO()
BOOKS = write_tar(STREAM, [Sample("a", {"jpg": b"x" * 1000, "txt": b"a dog"}), Sample("b" * 150, {"jpg": b""})])
TAR = STREAM.getvalue()


def problem(folder: Path, content: bytes, scheme: str = "") -> str | None:
    (folder / "x.tar").write_bytes(content)
    return verify_shard(f"{scheme}{folder}/x.tar", BOOKS)


def test_a_shard_as_it_was_written_is_intact(tmp_path: Path) -> None:
    assert tar_size(BOOKS) == len(TAR)
    assert tar_size([]) == len(TAR) == 10240  # one record of twenty blocks each
    assert problem(tmp_path, TAR) is None


@pytest.mark.parametrize("content", [b"", TAR[:512], TAR[:-1], TAR + b"\0", TAR[: len(TAR) // 2]])
@pytest.mark.parametrize("scheme", ["", f"{SCHEME}://"])
def test_another_size_is_damage(tmp_path: Path, content: bytes, scheme: str) -> None:
    assert problem(tmp_path, content, scheme) == f"it has {len(content):,} bytes instead of 10,240"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, len(TAR) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_damage(tmp_path: Path, place: int, bit: int) -> None:
    content = bytearray(TAR)
    content[place] ^= 1 << bit
    found = problem(tmp_path, bytes(content))
    end = BOOKS[1].offset + BOOKS[1].size
    key = "a" if place < BOOKS[1].offset else BOOKS[1].key
    expected = f"the sample {key} has another checksum" if place < end else "bytes after its last sample are not zero"
    assert found == expected
