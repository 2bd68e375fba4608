"""What a source that grew, shrank or is read with other libraries does to a dataset that is finished."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from rich.console import Console

import jobs.build
import jobs.describe
import transforms.spool
import transforms.write
from jobs.build import Request, build
from jobs.inspect import inspect
from jobs.run import run as run_pipeline
from pipelines.build import BuildDataset
from pipelines.recipe import BuildConfig
from schemas.errors import InputError
from tests.datasets import jpeg
from tests.remote import SCHEME
from transforms.dataset import library_versions, read_job
from transforms.models.presets import resolve
from transforms.pieces import write_piece
from transforms.sources.records import Item
from transforms.spool import Shelved

QUIET = Console(quiet=True)


def pictures(folder: Path, names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / f"{name}.jpg").write_bytes(jpeg(32, 24, seed=ord(name)))
        (folder / f"{name}.txt").write_text("a dog")
    return folder


def run(source: Path, output: Path, **changes: Any) -> None:  # noqa: ANN401
    config = BuildConfig(samples_per_shard=3, batch_size=2)
    build(Request("captioned", str(source), str(output), config, resolve("sample", {}), **changes), QUIET)
    assert inspect(str(output)).problems == ()
    assert not (output / ".subjectloom" / "pieces").exists()


def tars(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.glob("*.tar")}


def keys(output: Path) -> str:
    return "".join(pq.read_table(output / "index.parquet")["key"].to_pylist())


def changed(before: dict[str, bytes], output: Path) -> set[str]:
    now = tars(output)
    return {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}


def test_a_picture_that_sorts_first_makes_one_shard(tmp_path: Path) -> None:
    source, output = pictures(tmp_path / "in", "bcdefg"), tmp_path / "out"
    run(source, output)
    before = tars(output)
    pictures(source, "a")
    run(source, output, resume=True)
    assert keys(output) == "abcdefg"
    assert changed(before, output) == {"captioned-000002.tar"}
    before = tars(output)
    run(pictures(source, "A"), output, resume=True)
    assert changed(before, output) == {"captioned-000002.tar"}  # it had room
    run(source, output, overwrite=True)
    assert changed(before, output) == set(before)


@pytest.mark.parametrize("limit", [None, 2])
def test_a_source_that_lacks_what_shards_were_made_from_is_refused(tmp_path: Path, limit: int | None) -> None:
    source, output = pictures(tmp_path / "in", "bcdefg"), tmp_path / "out"
    run(source, output)
    before = tars(output)
    for name in "cef":
        (source / f"{name}.jpg").unlink()
        (source / f"{name}.txt").unlink()
    with pytest.raises(InputError, match=r"lacks [34] inputs that 2 finished shards of .* were made from: .*--prune"):
        run(source, output, resume=True, limit=limit)
    assert changed(before, output) == set()
    run(source, output, resume=True, limit=limit, prune=True)
    assert keys(output) == ("bdg" if limit is None else "bd")


def test_a_folder_that_lists_no_members_is_resumed_as_before_and_not_shortened(tmp_path: Path) -> None:
    source, output = pictures(tmp_path / "in", "bcdefg"), tmp_path / "out"
    run(source, output)
    before = tars(output)
    (output / ".subjectloom" / "members.parquet").unlink()
    with pytest.raises(InputError, match=r"lacks inputs that 1 finished shards"):
        run(source, output, resume=True, limit=3)
    (output / ".subjectloom" / "members.parquet").unlink(missing_ok=True)
    run(pictures(source, "h"), output, resume=True)
    assert changed(before, output) == {"captioned-000002.tar"}


def test_other_versions_of_libraries_are_named_and_may_be_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = pictures(tmp_path / "in", "bcde"), tmp_path / "out"
    versions = library_versions()
    monkeypatch.setattr(jobs.describe, "library_versions", lambda *_: versions | {"torch": "1.0"})
    run(source, output)
    monkeypatch.undo()
    before = tars(output)
    with pytest.raises(
        InputError, match=rf"were made with torch 1.0 \(now {versions['torch']}\): --mix-versions keeps"
    ):
        run(pictures(source, "f"), output, resume=True)
    run(source, output, resume=True, mix_versions=True)
    assert changed(before, output) == {"captioned-000001.tar"}
    assert read_job(str(output)).libraries["torch"] == "1.0"
    assert inspect(str(output)).info.libraries["torch"] == f"1.0, {versions['torch']}"


def test_a_parquet_file_that_sorts_first_leaves_full_shards_alone(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()

    def write(name: str, rows: str) -> None:
        images = [jpeg(32, 24, seed=ord(row)) for row in rows]
        pq.write_table(pa.table({"key": list(rows), "image": images, "caption": ["a dog"] * len(rows)}), source / name)

    write("m.parquet", "bcdefgh")
    run(source, output)
    before = tars(output)
    write("a.parquet", "xyza")
    run(source, output, resume=True)
    assert keys(output) == "abcdefghxyz"
    assert changed(before, output) == {"captioned-000002.tar", "captioned-000003.tar"}


def test_a_folder_that_does_not_fit_into_memory_is_built_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pictures(tmp_path / "in", "bcdefg")
    (source / "b.png").write_bytes((source / "b.jpg").read_bytes())  # a second picture of one key
    (source / "orphan.txt").write_text("a cat")
    (source / "c.jpg.json").write_text('{"caption": "a dog", "license": "CC0"}')
    run(source, tmp_path / "small")
    monkeypatch.setattr(transforms.spool, "IN_MEMORY", 4)
    monkeypatch.setattr("transforms.sources.folder._TOGETHER", 3)
    run(source, tmp_path / "large")
    assert changed(tars(tmp_path / "small"), tmp_path / "large") == set()
    for name in ("index.parquet", "rejects.parquet"):
        assert (tmp_path / "small" / name).read_bytes() == (tmp_path / "large" / name).read_bytes()
    before = tars(tmp_path / "large")
    run(pictures(source, "a"), tmp_path / "large", resume=True)
    assert len(changed(before, tmp_path / "large")) == 1


def test_workers_elsewhere_need_no_file_of_the_machine_that_lists_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output is on a filesystem with addresses; the temporary files are gone when the pipeline runs."""

    def run_elsewhere(part: BuildDataset, options: PipelineOptions) -> None:
        for chunk in part.chunks:
            Path(cast("Shelved[Item]", chunk.items).path).unlink(missing_ok=True)
        assert not part.progress
        run_pipeline(part, options)

    source = pictures(tmp_path / "in", "bcdefg")
    run(source, tmp_path / "here")
    monkeypatch.setattr(jobs.build, "is_local", lambda _: False)
    monkeypatch.setattr(jobs.build, "run", run_elsewhere)
    monkeypatch.setattr("transforms.read.PER_GROUP", 1)
    config = BuildConfig(samples_per_shard=3, batch_size=2)
    address = f"{SCHEME}://{tmp_path / 'there'}"
    build(Request("captioned", str(source), address, config, resolve("sample", {})), QUIET)
    assert tars(tmp_path / "there") == tars(tmp_path / "here")
    left = {path.name for path in (tmp_path / "there" / ".subjectloom").rglob("*") if path.is_file()}
    assert left == {"expected.json", "job.json", "members.parquet", "part-000000.parquet", "part-000001.parquet"}


def test_what_a_killed_run_had_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It dies in the fifth of six batches."""
    source, output = pictures(tmp_path / "in", "abcdef"), tmp_path / "out"
    done: list[str] = []

    def write(folder: str, name: str, *rest: Any) -> None:  # noqa: ANN401
        done.append(name)
        if len(done) == 5:
            raise RuntimeError("the disk was pulled out")
        write_piece(folder, name, *rest)

    config = BuildConfig(samples_per_shard=6, batch_size=1)
    request = Request("captioned", str(source), str(output), config, resolve("sample", {}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transforms.write, "write_piece", write)
        with pytest.raises(RuntimeError, match="pulled out"):
            build(request, QUIET)
    assert len(list((output / ".subjectloom" / "pieces").rglob("*-last"))) == 4
    first = set(done[:4])
    done.clear()

    def count(folder: str, name: str, *rest: Any) -> None:  # noqa: ANN401
        done.append(name)
        write_piece(folder, name, *rest)

    monkeypatch.setattr(transforms.write, "write_piece", count)
    build(replace(request, resume=True), QUIET)
    assert len(done) == 2
    assert not first.intersection(done)
    assert keys(output) == "abcdef"
    assert inspect(str(output)).problems == ()
