"""Arrow files as Hugging Face `datasets` saves them: the same records as from Parquet, and bad files."""

import io
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from schemas.errors import InputError
from schemas.example import Example
from schemas.rejects import Reject
from tests.datasets import jpeg
from transforms.batch import Outcome
from transforms.listing import list_source
from transforms.read import read_batches


def records(source: Path, kind: str | None = None, samples_per_shard: int = 1000) -> list[Outcome]:
    listing = list_source(str(source), kind, samples_per_shard=samples_per_shard)
    return [r for c in listing.chunks for item in c.items for b in read_batches(c.shard, item) for r in b.records]


def examples(found: list[Outcome]) -> list[Example]:
    assert all(isinstance(record, Example) for record in found)
    return [record for record in found if isinstance(record, Example)]


def png(colour: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), (colour, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def table() -> pa.Table:
    pictures = [{"bytes": jpeg(16, 12, seed=i), "path": f"p{i}.jpg"} for i in range(150)]
    return pa.table({"image": pictures, "text": [f"picture {i}" for i in range(150)]})


def save(table: pa.Table, folder: Path, shards: int = 1) -> None:
    data = datasets.Dataset(table).cast_column("image", datasets.Image())
    data.save_to_disk(str(folder), num_shards=shards)


@pytest.mark.parametrize("samples_per_shard", [1000, 37])
def test_a_saved_dataset_gives_the_records_of_the_same_parquet_file(
    table: pa.Table, tmp_path: Path, samples_per_shard: int
) -> None:
    save(table, tmp_path / "saved", shards=2)
    pq.write_table(table, tmp_path / "all.parquet", row_group_size=40)
    listing = list_source(str(tmp_path / "saved"))
    assert (listing.kind, listing.expected) == ("arrow", 150)
    found = examples(records(tmp_path / "saved", samples_per_shard=samples_per_shard))
    expected = examples(records(tmp_path / "all.parquet", samples_per_shard=samples_per_shard))
    assert [e.image for e in found] == [e.image for e in expected]
    assert [e.caption for e in found] == [f"picture {i}" for i in range(150)]
    assert found[0].key == "data-00000-of-00002-00000000"


def test_splits_are_read_and_cached_results_are_not(table: pa.Table, tmp_path: Path) -> None:
    for split, rows in (("train", table[:3]), ("test", table[3:5])):
        save(rows, tmp_path / "saved" / split)
    (tmp_path / "saved" / "train" / "cache-0123456789abcdef.arrow").write_bytes(b"not to be read")
    assert [e.caption for e in examples(records(tmp_path / "saved"))] == [f"picture {i}" for i in (3, 4, 0, 1, 2)]


def test_many_small_batches_and_the_file_form_are_read_alike(table: pa.Table, tmp_path: Path) -> None:
    for name, new in (("stream", pa.ipc.new_stream), ("file", pa.ipc.new_file)):
        (tmp_path / name).mkdir()
        with pa.OSFile(str(tmp_path / name / "t.arrow"), "wb") as sink, new(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    found = {name: examples(records(tmp_path / name, samples_per_shard=20)) for name in ("stream", "file")}
    assert [e.image for e in found["stream"]] == [e.image for e in found["file"]]
    assert [e.caption for e in found["file"]] == [f"picture {i}" for i in range(150)]


def test_keys_of_a_column_are_taken_and_a_second_one_is_a_reject(tmp_path: Path) -> None:
    table = pa.table({"key": ["a", "b", "a"], "image": [png(c) for c in (1, 2, 3)], "caption": ["x", "y", "z"]})
    with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    first, second, third = records(tmp_path / "t.arrow", "arrow")
    assert (first.key, second.key, third.key) == ("a", "b", "a")
    assert isinstance(third, Reject)
    assert third.reason == "duplicate-key"


def test_a_file_that_is_cut_off_or_no_arrow_file_is_a_reject_and_costs_no_other(
    table: pa.Table, tmp_path: Path
) -> None:
    save(table[:4], tmp_path / "saved")
    (tmp_path / "saved" / "data-zero.arrow").write_bytes(b"")
    (tmp_path / "saved" / "data-noise.arrow").write_bytes(b"noise" * 100)
    whole = (tmp_path / "saved" / "data-00000-of-00001.arrow").read_bytes()
    (tmp_path / "saved" / "data-cut.arrow").write_bytes(whole[: len(whole) * 2 // 3])
    found = records(tmp_path / "saved")
    rejects = {r.key: r for r in found if isinstance(r, Reject)}
    assert sum(isinstance(record, Example) for record in found) == 4
    assert {r.reason for r in rejects.values()} == {"unreadable-file"}
    assert len(rejects) == 3
    assert all("no Arrow file" in r.detail for r in rejects.values())


def test_a_missing_column_or_only_broken_files_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    plain = pa.table({"text": ["a"]})
    with pa.OSFile(str(tmp_path / "plain" / "t.arrow"), "wb") as sink, pa.ipc.new_stream(sink, plain.schema) as writer:
        writer.write_table(plain)
    with pytest.raises(InputError, match=r"t\.arrow has no column of .*image"):
        list_source(str(tmp_path / "plain"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "t.arrow").write_bytes(b"noise")
    with pytest.raises(InputError, match=r"t\.arrow: no Arrow file"):
        list_source(str(tmp_path / "broken"))
