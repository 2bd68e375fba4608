import gzip
import zlib
from pathlib import Path

import numpy as np
import pytest

from transforms.matting import inflate
from transforms.matting.inflate import IndexedGzip, indexed_gzip


@pytest.mark.parametrize("padding", [b"", bytes(700), bytes(40_000)])
def test_any_part_of_concatenated_gzip_files_is_read_from_any_point(tmp_path: Path, padding: bytes) -> None:
    rng = np.random.default_rng(0)
    plain = rng.integers(0, 40, 700_000, np.uint8).tobytes()  # it shrinks to two thirds
    parts = [plain[:1], plain[1:400_000], plain[400_000:400_000], plain[400_000:]]
    (tmp_path / "a.gz").write_bytes(padding.join(map(gzip.compress, parts)) + padding)
    file = IndexedGzip(str(tmp_path / "a.gz"), spacing=50_000)
    for start in (399_990, 0, *rng.integers(0, len(plain) - 500, 20).tolist(), len(plain) - 500):
        assert file.read(start, 500) == plain[start : start + 500]
    assert len(plain) / 50_000 / 2 < len(file._points) <= len(plain) / 50_000 + 1
    with pytest.raises(EOFError, match=r"a\.gz ends after 700,000 decompressed bytes"):
        file.read(len(plain) - 1, 2)


def test_a_file_is_decompressed_once_and_then_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = np.random.default_rng(0).bytes(4_000_000)
    (tmp_path / "a.gz").write_bytes(gzip.compress(plain, 1))
    read: list[int] = []

    class Counting:
        def __init__(self, path: str) -> None:
            self.file = Path(path).open("rb")  # noqa: SIM115 - closed in __exit__

        def __enter__(self) -> "Counting":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def seek(self, position: int) -> int:
            return self.file.seek(position)

        def read(self, size: int) -> bytes:
            read.append(size)
            return self.file.read(size)

    monkeypatch.setattr(inflate, "open_file", Counting)
    file = IndexedGzip(str(tmp_path / "a.gz"), spacing=100_000)
    file.read(len(plain) - 10, 10)
    assert sum(read) >= len(plain)
    for start in (3_500_000, 10, 2_000_000):
        read.clear()
        assert file.read(start, 1000) == plain[start : start + 1000]
        assert sum(read) < 100_000 + 3 * 2**15


def test_what_is_cut_off_or_corrupt_raises_and_another_file_of_the_name_is_another(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    whole = gzip.compress(np.random.default_rng(0).bytes(200_000))
    path.write_bytes(whole[:150_000])
    with pytest.raises(EOFError):
        indexed_gzip(str(path), "1", 1000).read(190_000, 10)
    path.write_bytes(whole[:50_000] + b"\xff" * 50_000 + whole[100_000:])
    with pytest.raises(zlib.error):
        indexed_gzip(str(path), "2", 1000).read(190_000, 10)
    path.write_bytes(whole)
    assert len(indexed_gzip(str(path), "3", 1000).read(190_000, 10)) == 10
    assert indexed_gzip(str(path), "3", 1000) is indexed_gzip(str(path), "3", 1000)
