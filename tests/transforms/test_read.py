import os
import pickle
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to

from schemas.errors import InputError
from schemas.rejects import Reject
from tests.pictures import encode, outcomes, read_all, scene
from transforms.batch import Batch
from transforms.listing import list_source
from transforms.read import ReadBatches, Reading, read_batches
from transforms.work import Death

JPEG = encode(scene(), "JPEG")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twenty-one pictures, the eleventh without a caption."""
    for number in range(21):
        (tmp_path / f"{number:03d}.jpg").write_bytes(JPEG)
        if number != 10:
            (tmp_path / f"{number:03d}.txt").write_text(f"picture {number}")
    return tmp_path


def without_time(batch: Batch) -> tuple[int, list[tuple[str, str]]]:
    return batch.shard, outcomes(batch.records)


def test_a_source_is_cut_into_shards_and_batches_in_its_order(pictures: Path) -> None:
    listing = list_source(str(pictures), samples_per_shard=10, batch_size=4)
    assert (listing.kind, listing.expected, listing.has_segments) == ("folder", 21, False)
    assert [(c.shard, c.expected, len(c.items)) for c in listing.chunks] == [(0, 10, 3), (1, 10, 3), (2, 1, 1)]
    batches = [b for c in listing.chunks for i in c.items for b in read_batches(c.shard, i, Reading(4))]
    assert [(b.shard, len(b.records)) for b in batches] == [(0, 4), (0, 4), (0, 2), (1, 4), (1, 4), (1, 2), (2, 1)]
    assert [r.key for b in batches for r in b.records] == [f"{n:03d}" for n in range(21)]
    assert [stage for b in batches for stage, _ in b.seconds] == ["read"] * 7
    assert min(seconds for b in batches for _, seconds in b.seconds) >= 0


def test_the_pipeline_yields_the_same_batches_at_any_number_of_workers(pictures: Path) -> None:
    chunks = list_source(str(pictures), samples_per_shard=10).chunks
    expected = sorted(without_time(b) for c in chunks for i in c.items for b in read_batches(c.shard, i))
    for workers in (1, 2):
        options = PipelineOptions([f"--direct_num_workers={workers}", "--direct_running_mode=multi_threading"])
        with beam.Pipeline(FnApiRunner(), options) as pipeline:
            batches = pipeline | ReadBatches(chunks) | beam.Map(without_time)
            assert_that(batches, equal_to(expected))


def test_a_deadly_record_is_rejected_in_its_place_and_not_loaded(pictures: Path) -> None:
    chunk = list_source(str(pictures), samples_per_shard=10, batch_size=4).chunks[0]
    (pictures / "002.jpg").unlink()  # loading it would give another reason
    deadly = {"002": Death("SIGSEGV", "segments", ("002",))}
    batch = next(read_batches(0, chunk.items[0], Reading(4, deadly=deadly)))
    assert [record.key for record in batch.records] == ["000", "001", "002", "003"]
    refused = batch.records[2]
    assert isinstance(refused, Reject)
    assert (refused.source, refused.stage, refused.reason) == ("002.jpg", "segments", "killed-worker")
    assert "SIGSEGV" in refused.detail


def test_a_limit_takes_the_first_records(pictures: Path) -> None:
    listing = list_source(str(pictures), samples_per_shard=5, limit=7)
    assert [key for key, _ in outcomes(read_all(listing))] == [f"{n:03d}" for n in range(7)]
    assert [chunk.expected for chunk in listing.chunks] == [5, 2]
    assert list_source(str(pictures), limit=100).expected == 21


def fingerprints(source: Path) -> list[str]:
    return [chunk.fingerprint for chunk in list_source(str(source), samples_per_shard=10).chunks]


def test_a_fingerprint_changes_with_what_its_shard_is_made_from_and_only_then(pictures: Path) -> None:
    before = fingerprints(pictures)
    assert fingerprints(pictures) == before
    assert len(set(before)) == 3

    (pictures / "012.txt").write_text("another caption")
    caption = fingerprints(pictures)
    assert [a == b for a, b in zip(before, caption, strict=True)] == [True, False, True]

    os.utime(pictures / "020.jpg", (1, 1))
    touched = fingerprints(pictures)
    assert [a == b for a, b in zip(caption, touched, strict=True)] == [True, True, False]

    (pictures / "010.txt").write_text("a caption that was missing")
    assert [a == b for a, b in zip(touched, fingerprints(pictures), strict=True)] == [True, False, True]


def test_moving_a_source_changes_no_fingerprint_and_no_record(pictures: Path) -> None:
    before, records = fingerprints(pictures), read_all(list_source(str(pictures)))
    moved = pictures.rename(pictures.parent / "moved")
    assert fingerprints(moved) == before
    assert read_all(list_source(str(moved))) == records


def test_work_items_travel_to_the_workers(pictures: Path) -> None:
    chunks = list_source(str(pictures)).chunks
    assert pickle.loads(pickle.dumps(chunks)) == chunks


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: there is no such file or folder"):
        list_source(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"\*\.jpg: no file matches"):
        list_source(str(tmp_path / "*.jpg"))
    with pytest.raises(
        InputError,
        match=r"x: nosuchscheme:// cannot be opened, only azfs://, gs://, hdfs://, s3://",
    ):
        list_source("nosuchscheme://bucket/x")


def test_a_folder_with_nothing_to_read_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("nothing")
    with pytest.raises(InputError, match=r"nothing to read among its 1 files: no pictures, tars, Parquet"):
        list_source(str(tmp_path))
    with pytest.raises(InputError, match=r"nothing to read as parquet among its 1 files"):
        list_source(str(tmp_path), "parquet")
    with pytest.raises(InputError, match=r"no kind of source 'parkett'"):
        list_source(str(tmp_path), "parkett")


def test_a_source_of_several_kinds_must_be_told(pictures: Path) -> None:
    (pictures / "more.tar").write_bytes(b"")
    with pytest.raises(InputError, match=r"folder \(000\.jpg\), webdataset \(more\.tar\): choose one with --source"):
        list_source(str(pictures))
    assert list_source(str(pictures), "folder").expected == 21


def test_the_statistics_of_img2dataset_are_no_source(pictures: Path) -> None:
    (pictures / "sub").mkdir()
    (pictures / "sub" / "000.jpg").write_bytes(JPEG)
    (pictures / "sub.parquet").write_bytes(b"")
    assert list_source(str(pictures)).kind == "folder"
