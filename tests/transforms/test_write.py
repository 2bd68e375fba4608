import gc
import hashlib
import tarfile
from pathlib import Path

import apache_beam as beam
import pyarrow.parquet as pq
import pytest
import webdataset
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to

import transforms.write
from schemas.dataset import decode_part
from schemas.errors import InputError, SubjectloomError
from schemas.example import Example
from schemas.rejects import Reason, Reject
from schemas.samples.fastcomposer import FORMAT
from schemas.shards import Sample, read_sample
from tests.datasets import JOB, example
from transforms.batch import Batch
from transforms.dataset import finished_shards, prepare_output
from transforms.finish import finish_dataset
from transforms.pieces import piece_name, write_piece
from transforms.settled import Settled, settle
from transforms.sources.records import Chunk
from transforms.write import WriteDataset, WriteWebDataset, commit_pieces, commit_shard, write_shard

NO_PHRASE = Reject("c", "pictures/c.jpg", "phrases", Reason.NO_PHRASE, "nothing to see")


def pipeline(workers: int = 1) -> beam.Pipeline:
    options = PipelineOptions([f"--direct_num_workers={workers}", "--direct_running_mode=multi_processing"])
    return beam.Pipeline(runner=FnApiRunner(), options=options if workers > 1 else PipelineOptions([]))


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tar"))}


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves the closing of its files to Python
def test_any_samples_become_shards_that_webdataset_reads(tmp_path: Path) -> None:
    samples = [
        (1, Sample("d", {"txt": b"4"})),
        (0, Sample("b", {"txt": b"2", "jpg": b"x"})),
        (0, Sample("a", {"txt": b"1"})),
    ]
    expected = [
        {"key": "a", "shard": "train-000000.tar", "offset": 0, "size": 1024, "crc32": 2365926660},
        {"key": "b", "shard": "train-000000.tar", "offset": 1024, "size": 2048, "crc32": 917993762},
        {"key": "d", "shard": "train-000001.tar", "offset": 0, "size": 1024, "crc32": 3559163459},
    ]
    with pipeline() as p:
        rows = p | beam.Create(samples) | WriteWebDataset(str(tmp_path / "deep" / "train"))
        assert_that(rows, equal_to(expected))
    assert files(tmp_path / "deep") == ["train-000000.tar", "train-000001.tar"]
    urls = [str(tmp_path / "deep" / name) for name in files(tmp_path / "deep")]
    read = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    gc.collect()
    assert [(s["__key__"], s["txt"]) for s in read] == [("a", b"1"), ("b", b"2"), ("d", b"4")]


def test_a_prefix_without_a_folder_writes_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_shard("", "train", 0, [Sample("a", {"txt": b"1"})])
    assert files(tmp_path) == ["train-000000.tar"]


def test_a_shard_without_samples_is_no_file_and_an_old_one_goes(tmp_path: Path) -> None:
    write_shard(str(tmp_path), "train", 0, [Sample("a", {"txt": b"1"})])
    assert write_shard(str(tmp_path), "train", 0, []) == []
    assert files(tmp_path) == []


def test_one_key_twice_in_a_shard_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train-000000.tar: two samples have the key 'a'"):
        write_shard(str(tmp_path), "train", 0, [Sample("a", {"txt": b"1"}), Sample("a", {"txt": b"2"})])
    assert files(tmp_path) == []


def test_a_write_that_breaks_leaves_the_old_shard_and_no_other_file(tmp_path: Path) -> None:
    write_shard(str(tmp_path), "train", 0, [Sample("a", {"txt": b"1"})])
    before = digests(tmp_path)
    broken = Sample("b", {"txt": None})  # type: ignore[dict-item]
    with pytest.raises(TypeError):
        write_shard(str(tmp_path), "train", 0, [Sample("a", {"txt": b"1"}), broken])
    assert digests(tmp_path) == before
    assert files(tmp_path) == ["train-000000.tar"]


def test_a_batch_settles_into_samples_and_rejects() -> None:
    broken = Example("d", b"jpeg", 64, 48, "a dog", example("d").source, "a dog")
    settled = settle(Batch(3, (example("a"), NO_PHRASE, broken), (("read", 2.0),)), FORMAT)
    assert (settled.read, [s.key for s in settled.samples]) == (3, ["a"])
    assert [(r.key, r.stage, r.reason) for r in settled.rejects] == [
        ("c", "phrases", "no-phrase"),
        ("d", "write", "no-match"),
    ]
    assert settled.rows[0]["shard"] == "fastcomposer-000003.tar"
    assert dict(settled.seconds).keys() == {"read", "write"}


def test_a_part_holds_the_books_of_its_shard(tmp_path: Path) -> None:
    batches = [Batch(0, (example("b"), NO_PHRASE), (("read", 2.0),)), Batch(0, (example("a"),), (("read", 0.5),))]
    settled = [settle(batch, FORMAT) for batch in batches]
    part = commit_shard(str(tmp_path), FORMAT, 0, "print", settled)
    assert (part.read, part.written, part.fingerprint, part.seconds["read"]) == (3, 2, "print", 2.5)
    table = pq.read_table(tmp_path / ".subjectloom" / "part-000000.parquet")
    assert decode_part(table.schema.metadata) == part
    tar = (tmp_path / "fastcomposer-000000.tar").read_bytes()
    for row, key in zip(table.to_pylist(), "ab", strict=True):
        assert read_sample(tar[row["offset"] : row["offset"] + row["size"]]).key == row["key"] == key


def test_a_record_that_got_lost_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(
        SubjectloomError, match=r"books of fastcomposer-000000.tar do not balance: 2 read, 0 written, 1 rej"
    ):
        commit_shard(
            str(tmp_path), FORMAT, 0, "print", [Settled(read=2, rejects=settle(Batch(0, (NO_PHRASE,)), FORMAT).rejects)]
        )
    assert not (tmp_path / ".subjectloom").exists()


def test_a_batch_that_never_came_is_noticed(tmp_path: Path) -> None:
    settled = settle(Batch(0, (example("a"), NO_PHRASE)), FORMAT)
    write_piece(str(tmp_path), piece_name(0, "print", 0, 0, is_last=True), FORMAT, settled)
    with pytest.raises(SubjectloomError, match=r"fastcomposer-000000.tar: 3 records were listed for it, 2 were read"):
        commit_pieces(str(tmp_path), FORMAT, Chunk(0, (), "print", 3))
    assert files(tmp_path) == []


def test_while_a_shard_is_written_again_it_does_not_look_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_output(str(tmp_path), JOB)
    commit_shard(str(tmp_path), FORMAT, 0, "old", [settle(Batch(0, (example("a"),)), FORMAT)])
    assert finished_shards(str(tmp_path)) == {0: "old"}
    before = digests(tmp_path)
    twice = settle(Batch(0, (example("a"), example("a"))), FORMAT)
    with pytest.raises(InputError, match=r"two samples"):
        commit_shard(str(tmp_path), FORMAT, 0, "new", [twice])
    assert (finished_shards(str(tmp_path)), digests(tmp_path)) == ({0: "old"}, before)

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(transforms.write, "replace_file", fail)
    with pytest.raises(OSError, match="no space"):
        commit_shard(str(tmp_path), FORMAT, 0, "new", [settle(Batch(0, (example("b"),)), FORMAT)])
    assert digests(tmp_path) != before
    assert finished_shards(str(tmp_path)) == {}


def build(output: Path, workers: int) -> None:
    """Six shards of two batches each; the last one has no record, the one before only rejects."""
    batches = [
        Batch(
            shard,
            (example(f"{shard}-{half}-a", extra_segments=half), example(f"{shard}-{half}-b")),
            piece=piece_name(shard, f"print-{shard}", half, 0, is_last=True),
        )
        for shard in range(4)
        for half in range(2)
    ]
    prepare_output(str(output), JOB)
    chunks = [Chunk(shard, (), f"print-{shard}", {0: 4, 4: 1, 5: 0}.get(shard)) for shard in range(6)]
    fingerprints = {chunk.shard: chunk.fingerprint for chunk in chunks}
    refused = Batch(4, (NO_PHRASE,), piece=piece_name(4, "print-4", 0, 0, is_last=True))
    with pipeline(workers) as p:
        batches_of = p | beam.Create([*batches, refused]) | beam.Reshuffle()
        batches_of | WriteDataset(str(output), FORMAT, chunks)
    assert finished_shards(str(output)) == fingerprints
    finish_dataset(str(output), JOB, fingerprints, FORMAT)


@pytest.mark.slow
def test_a_pipeline_writes_the_same_bytes_with_one_and_with_two_workers(tmp_path: Path) -> None:
    build(tmp_path / "one", workers=1)
    build(tmp_path / "two", workers=2)
    assert len(digests(tmp_path / "one")) == 4
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    for name in ("index.parquet", "rejects.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert len(files(tmp_path / "one")) == 4 + 4 + 6 + 1 + 4
    with tarfile.open(tmp_path / "one" / "fastcomposer-000002.tar") as tar:
        assert tar.getnames()[:3] == ["2-0-a.jpg", "2-0-a.json", "2-0-b.jpg"]
