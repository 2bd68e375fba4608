"""Builds whose source fails for a while: nothing is lost for good, and the run says in one line what happened."""

import errno
import io
import itertools
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import transforms.files
import transforms.outages
import transforms.sources.files
from jobs.build import build
from schemas.errors import OutageError
from schemas.example import Example
from schemas.rejects import Reject
from schemas.samples.base import SampleFormat
from tests.datasets import jpeg
from tests.jobs.test_rescue import QUIET, pictures, request, tars, use
from tests.pictures import read_all, tar
from transforms.batch import Batch, each
from transforms.listing import list_source
from transforms.step import Step, map_batches
from transforms.write import commit_shard


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms.outages, "FIRST_PAUSE", 0.0)


class Flaky(io.BufferedReader):
    """A file whose reads fail, with the error of a broken disk, while `fails(path)`."""

    def __init__(self, path: str, fails: Callable[[str], bool]) -> None:
        super().__init__(io.FileIO(path))
        self._path, self._fails = path, fails

    def read(self, size: int | None = -1, /) -> bytes:
        if self._fails(self._path):
            raise OSError(errno.EIO, os.strerror(errno.EIO), self._path)
        return super().read(size)


def make_flaky(monkeypatch: pytest.MonkeyPatch, fails: Callable[[str], bool]) -> None:
    monkeypatch.setattr(transforms.sources.files, "open_file", lambda path: Flaky(path, fails))


@dataclass(eq=False)
class Unmount(Step):
    """A step that takes the source away when it comes to the picture 020."""

    source: str

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        return map_batches(batches, "unmount", each(self._unmount))

    def _unmount(self, example: Example) -> Example:
        if example.key == "020" and self.source:
            Path(self.source).rename(f"{self.source}.gone")
        return example


def test_a_source_that_vanishes_stops_the_run_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pictures(tmp_path / "pictures", [f"picture {n}" for n in range(60)])
    use(monkeypatch, Unmount(""))
    build(request(source, tmp_path / "whole", 8), QUIET)
    use(monkeypatch, Unmount(str(source)))
    with pytest.raises(OutageError) as raised:
        build(request(source, tmp_path / "out", 8), QUIET)
    line = str(raised.value)
    assert line.startswith("20 of the last ")
    assert "No such file or directory): see whether the source is still there, and run again with --resume" in line
    Path(f"{source}.gone").rename(source)
    use(monkeypatch, Unmount(""))
    info = build(request(source, tmp_path / "out", 8, resume=True), QUIET)
    assert (info.counts.read, info.counts.written) == (60, 60)
    assert tars(tmp_path / "out") == tars(tmp_path / "whole")


def write(folder: Path, kind: str) -> Path:
    """Twelve pictures with captions."""
    if kind == "folder":
        return pictures(folder, [f"picture {n}" for n in range(12)])
    folder.mkdir()
    samples = [(f"{n:02d}", jpeg(32, 24, n), f"picture {n}") for n in range(12)]
    if kind == "parquet":
        table = pa.table(dict(zip(("key", "image", "caption"), zip(*samples, strict=True), strict=True)))
        pq.write_table(table, folder / "a.parquet", row_group_size=3)
    else:
        members = [pair for key, image, text in samples for pair in ((f"{key}.jpg", image), (f"{key}.txt", text))]
        (folder / f"a.{kind}").write_bytes(tar(members, "w" if kind == "tar" else "w:gz"))
    return folder


@pytest.mark.parametrize("kind", ["folder", "tar", "tgz", "parquet"])
def test_reads_that_fail_a_few_times_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    listing = list_source(str(write(tmp_path / "source", kind)), samples_per_shard=4)
    expected, reads = read_all(listing), itertools.count()
    assert len(expected) == 12
    make_flaky(monkeypatch, lambda _: next(reads) in (0, 2, 3))
    assert read_all(listing) == expected
    assert next(reads) > 4


@pytest.mark.parametrize(("kind", "name"), [("tar", "a.tar"), ("parquet", "a.parquet")])
def test_what_follows_in_a_file_that_cannot_be_read_is_one_record_that_may_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    """Not a truncated archive, which would be final."""
    source = write(tmp_path / "source", kind)
    listing = list_source(str(source))
    reads = itertools.count()
    make_flaky(monkeypatch, lambda _: next(reads) > 1)
    *_, last = read_all(listing)
    assert isinstance(last, Reject)
    assert (last.reason, last.detail) == ("read-failed", f"{source}/{name}: Input/output error")


def test_a_shard_with_a_file_that_cannot_be_read_waits_for_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = write(tmp_path / "source", "folder"), tmp_path / "out"
    with monkeypatch.context() as patch:
        make_flaky(patch, lambda path: path.endswith("005.jpg"))
        with pytest.raises(OutageError) as raised:
            build(request(source, output, 4), QUIET)
    assert str(raised.value).startswith(
        f"1 records could not be read, first 005: {source}/005.jpg: Input/output error; 1 shards with such records are "
        "not finished: --resume reads them again, and --resume --unread leave-out leaves out those that still fail"
    )
    before = tars(output)
    assert sorted(before) == ["captioned-000000.tar", "captioned-000002.tar"]
    assert not (output / "dataset.json").exists()
    # On a copy, the record is given up; on the dataset itself, the disk has come back.
    shutil.copytree(output, tmp_path / "copy")
    with monkeypatch.context() as patch:
        make_flaky(patch, lambda path: path.endswith("005.jpg"))
        patch.setattr("transforms.write.commit_shard", committing := Committing())
        asked = request(source, tmp_path / "copy", 4, resume=True)
        fields = asked.config.model_copy(update={"unread": "leave-out"})
        info = build(replace(asked, config=fields), QUIET)
    assert committing.shards == [1]  # the others are done, although a field differs
    assert info.counts.rejects == {"read": {"read-failed": 1}}
    assert (info.counts.read, info.counts.written) == (12, 11)
    assert before.items() <= tars(tmp_path / "copy").items()
    info = build(request(source, output, 4, resume=True), QUIET)
    assert (info.counts.read, info.counts.written) == (12, 12)
    assert before.items() <= tars(output).items()
    assert not list((output / ".subjectloom").glob("unread-*"))


class Committing:
    """`commit_shard`, which remembers what it wrote."""

    def __init__(self) -> None:
        self.shards: list[int] = []

    def __call__(self, output: str, sample_format: SampleFormat, shard: int, *arguments: Any) -> Any:  # noqa: ANN401
        self.shards.append(shard)
        return commit_shard(output, sample_format, shard, *arguments)


def test_damaged_shards_are_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = write(tmp_path / "source", "folder"), tmp_path / "out"
    build(request(source, output, 2), QUIET)
    expected = tars(output)
    contents = [path.read_bytes() for path in sorted(output.glob("*.tar"))]
    (output / "captioned-000000.tar").write_bytes(b"")
    (output / "captioned-000002.tar").write_bytes(contents[2][: len(contents[2]) // 2])
    flipped = bytearray(contents[4])
    flipped[1500] ^= 4
    (output / "captioned-000004.tar").write_bytes(flipped)
    kept = output / "captioned-000001.tar"
    time = kept.stat().st_mtime_ns
    build(request(source, output, 2, resume=True), Console(width=200))
    assert tars(output) == expected
    assert kept.stat().st_mtime_ns == time
    lines = [line for line in capsys.readouterr().out.splitlines() if "damaged" in line]
    assert [line.partition(" is damaged and is made again: ")[::2] for line in lines] == [
        ("captioned-000000.tar", "it has 0 bytes instead of 10,240"),
        ("captioned-000002.tar", "it has 5,120 bytes instead of 10,240"),
        ("captioned-000004.tar", "the sample 008 has another checksum"),
    ]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_cannot_be_written_to_midway_keeps_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    source, output = write(tmp_path / "source", "folder"), tmp_path / "out"
    create = transforms.files._create

    def full(path: str) -> BinaryIO:
        if "000002" in path:
            raise OSError(number, os.strerror(number), path)
        return create(path)

    with monkeypatch.context() as patch:
        patch.setattr(transforms.files, "_create", full)
        with pytest.raises(OutageError) as raised:
            build(request(source, output, 4), QUIET)
    assert str(raised.value).startswith(f"{output}/captioned-000002.tar: {os.strerror(number)}: ")
    assert str(raised.value).endswith("; --resume goes on with the shards that are not done")
    before = tars(output)
    assert sorted(before) == ["captioned-000000.tar", "captioned-000001.tar"]
    info = build(request(source, output, 4, resume=True), QUIET)
    assert (info.counts.read, info.counts.written) == (12, 12)
    assert before.items() <= tars(output).items()
