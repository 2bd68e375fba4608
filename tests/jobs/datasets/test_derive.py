"""Datasets made from others: samples are copied byte by byte, books balance, the origins stay as they are."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.datasets.choices import Choice, filter_by, merge_of, sample_of, split_of
from jobs.datasets.derive import derive
from jobs.inspect import inspect
from jobs.report.page import breakable, write_report
from schemas.errors import ConfigError, InputError
from schemas.rejects import Reason, Reject
from schemas.samples import FORMATS
from schemas.shards import read_sample
from tests.datasets import JOB, example, write_dataset
from tests.objects import TWO, example_of_objects
from tests.training.pairs import pair

REJECT = Reject("lost", "pictures/lost.jpg", "matches", Reason.NO_MATCH, "nothing is like it")
TWICE = (("a dog", (4, 6, 20, 16)), ("a cat", (30, 6, 20, 16)))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three shards of 3, 2 and 1 samples, and a reject; every second sample has two subjects, the first is larger."""
    size = {"a": (128, 96)}
    shards: list[list[Any]] = [
        [
            example(key, TWICE) if key in "bdf" else example(key, license="", size=size.get(key, (64, 48)))
            for key in shard
        ]
        for shard in ("abc", "de", "f")
    ]
    write_dataset(tmp_path / "data", [*shards[:2], [*shards[2], REJECT]])
    return tmp_path / "data"


@contextmanager
def untouched(*folders: Path) -> Iterator[None]:
    """Check that the block changes no file of these folders."""
    before = [{path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} for folder in folders]
    yield
    after = [{path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} for folder in folders]
    assert after == before


def run(data: Path, output: Path, choice: Choice, *more: Path) -> dict[str, Any]:
    with untouched(data, *more):
        info = derive([str(folder) for folder in (data, *more)], str(output), choice)
    assert inspect(str(output)).problems == ()
    assert info.counts.read == info.counts.written + info.counts.rejected
    return json.loads((output / "dataset.json").read_text())


def keys(output: Path) -> str:
    return "".join(pq.read_table(output / "index.parquet")["key"].to_pylist())


def samples(output: Path) -> dict[str, dict[str, bytes]]:
    found = {}
    for row in pq.read_table(output / "index.parquet").to_pylist():
        content = (output / row["shard"]).read_bytes()[row["offset"] :][: row["size"]]
        found[row["key"]] = dict(read_sample(content).members)
    return found


def test_a_filter_keeps_what_is_true_and_rejects_the_rest(data: Path, tmp_path: Path) -> None:
    info = run(data, tmp_path / "out", filter_by(str(data), 'subjects == 2 and "cat" in labels', None))
    assert keys(tmp_path / "out") == "bdf"
    assert info["counts"]["read"] == 7
    assert info["counts"]["rejects"] == {"filter": {"filtered-out": 3}, "matches": {"no-match": 1}}
    assert info["licenses"] == {"CC0": 3}
    assert {key: members for key, members in samples(data).items() if key in "bdf"} == samples(tmp_path / "out")
    rejects = {row["key"]: row for row in pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()}
    assert rejects["a"]["detail"] == 'not true: subjects == 2 and "cat" in labels'
    assert rejects["a"]["source"] == "pictures/a.jpg"
    assert rejects["lost"]["detail"] == REJECT.detail


def test_what_is_left_of_small_shards_is_joined(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "out", filter_by(str(data), "subjects == 1", None))
    assert keys(tmp_path / "out") == "ace"
    assert [path.name for path in sorted((tmp_path / "out").glob("*.tar"))] == ["fastcomposer-000000.tar"]
    # Nothing is left out: the first shard is full, the other two fit into one.
    run(data, tmp_path / "all", filter_by(str(data), "width > 0", None))
    first = "fastcomposer-000000.tar"
    assert (tmp_path / "all" / first).read_bytes() == (data / first).read_bytes()
    assert len(list((tmp_path / "all").glob("*.tar"))) == 2
    assert samples(tmp_path / "all") == samples(data)


def test_an_exclusion_list_goes_before_an_expression(data: Path, tmp_path: Path) -> None:
    listed = tmp_path / "excluded.txt"
    listed.write_text("# chosen by hand\na\n\nb\nnowhere\n")
    info = run(data, tmp_path / "out", filter_by(str(data), "subjects == 1", listed))
    assert keys(tmp_path / "out") == "ce"
    assert info["counts"]["rejects"]["filter"] == {"excluded": 2, "filtered-out": 2}
    assert info["derived"]["options"] == {"exclude": str(listed), "where": "subjects == 1"}


def test_where_a_dataset_comes_from_is_written_down(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "once", filter_by(str(data), "subjects == 2", None))
    info = run(tmp_path / "once", tmp_path / "twice", sample_of(str(tmp_path / "once"), 2, 0))
    (origin,) = info["derived"]["origins"]
    (first,) = origin["info"]["derived"]["origins"]
    assert (origin["folder"], first["folder"]) == (str(tmp_path / "once"), str(data))
    assert (info["config"], info["seed"], info["models"]) == (JOB.config, JOB.seed, first["info"]["models"])
    assert info["seconds"]["segment"] == pytest.approx(first["info"]["seconds"]["segment"])
    page = Path(write_report(str(tmp_path / "twice"))).read_text()
    assert "subjectloom sample" in page
    assert f"{breakable(str(tmp_path / 'once'))}, 3 samples" in page


def test_a_sample_is_a_function_of_its_seed_and_larger_ones_contain_smaller_ones(data: Path, tmp_path: Path) -> None:
    found = {}
    for count, seed in ((2, 0), (4, 0), (2, 1), (9, 0)):
        output = tmp_path / f"{count}-{seed}"
        run(data, output, sample_of(str(data), count, seed))
        found[count, seed] = keys(output)
    assert len(found[2, 0]) == 2
    assert set(found[2, 0]) < set(found[4, 0])
    assert len(found[4, 0]) == 4
    assert found[2, 1] != found[2, 0]
    assert found[9, 0] == "abcdef"
    run(data, tmp_path / "again", sample_of(str(data), 2, 0))
    again = (tmp_path / "again" / "fastcomposer-000000.tar").read_bytes()
    assert again == (tmp_path / "2-0" / "fastcomposer-000000.tar").read_bytes()


def test_the_parts_of_a_split_are_the_whole(tmp_path: Path) -> None:
    records: list[Any] = [example(f"{n:03d}") for n in range(200)]
    rejects = [Reject(f"r{n}", f"pictures/r{n}.jpg", "matches", Reason.NO_MATCH, "-") for n in range(100)]
    write_dataset(tmp_path / "data", [[*records[:100], *rejects], records[100:]])
    shares = {"train": 8.0, "validation": 1.0, "test": 1.0}
    for name in shares:
        run(tmp_path / "data", tmp_path / name, split_of(shares, name, 0))
    infos = [json.loads((tmp_path / name / "dataset.json").read_text()) for name in shares]
    parts = [pq.read_table(tmp_path / name / "index.parquet")["key"].to_pylist() for name in shares]
    assert sorted(key for part in parts for key in part) == sorted(record.key for record in records)
    assert sum(info["counts"]["read"] for info in infos) == 300
    assert [len(part) for part in parts] == pytest.approx([160, 20, 20], abs=15)
    assert sum(info["seconds"]["segment"] for info in infos) == pytest.approx(3.0, abs=0.01)


def test_samples_of_one_picture_are_in_one_part(tmp_path: Path) -> None:
    records = [replace(example(f"{n:02d}-{i}"), source=example(f"{n:02d}").source) for n in range(30) for i in range(3)]
    write_dataset(tmp_path / "data", [records])
    for name in ("train", "test"):
        run(tmp_path / "data", tmp_path / name, split_of({"train": 1, "test": 1}, name, 3))
        found = pq.read_table(tmp_path / name / "index.parquet")["source"].to_pylist()
        assert {found.count(source) for source in found} == {3}


def test_of_merged_samples_with_one_key_the_first_dataset_s_stays(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    job = JOB.model_copy(update={"config": {**JOB.config, "threshold": 0.5}, "models": {}})
    write_dataset(other, [[example("a", TWICE), example("g")]], job=job)
    info = run(data, tmp_path / "out", merge_of([str(data), str(other)]), other)
    assert keys(tmp_path / "out") == "abcdefg"
    assert samples(tmp_path / "out")["a"] == samples(data)["a"] != samples(other)["a"]
    assert info["counts"]["rejects"] == {"finish": {"duplicate-key": 1}, "matches": {"no-match": 1}}
    assert info["config"] == {"input": "pictures"}
    assert [origin["info"]["config"]["threshold"] for origin in info["derived"]["origins"]] == [0.25, 0.5]


def test_datasets_of_several_recipes_are_not_merged(data: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "other", [[example("a")]], sample_format=FORMATS["captioned"])
    with pytest.raises(InputError, match="of several recipes"):
        derive([str(data), str(tmp_path / "other")], str(tmp_path / "out"), merge_of(["x", "y"]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("recipe", ["blip-diffusion", "mip-adapter", "captioned"])
def test_every_recipe_s_dataset_can_be_filtered(recipe: str, tmp_path: Path) -> None:
    made: dict[str, Any] = {"blip-diffusion": lambda key: pair(key, size=(120, 80), box=(10, 8, 40, 50))}
    made |= {"mip-adapter": lambda key: example_of_objects(key, TWO), "captioned": example}
    write_dataset(tmp_path / "data", [[made[recipe](key) for key in "ab"]], sample_format=FORMATS[recipe])
    run(tmp_path / "data", tmp_path / "out", filter_by(str(tmp_path / "data"), 'key == "b"', None))
    assert keys(tmp_path / "out") == "b"


def test_a_damaged_sample_stops_it_and_nothing_is_left(data: Path, tmp_path: Path) -> None:
    shard = data / "fastcomposer-000001.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match=r"fastcomposer-000001\.tar: the sample d is damaged"):
        derive([str(data)], str(tmp_path / "out"), filter_by(str(data), "width > 0", None))
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_folder_with_files_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="holds files already"):
        derive([str(data)], str(tmp_path / "out"), sample_of(str(data), 1, 0))
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
    with pytest.raises(InputError, match="holds files already"), untouched(data):
        derive([str(data)], str(data), sample_of(str(data), 1, 0))


def test_a_wrong_expression_leaves_no_folder(data: Path, tmp_path: Path) -> None:
    for where, message in (("scor > 1", "no column 'scor'"), ("caption > 3", "cannot be computed")):
        with pytest.raises(ConfigError, match=message):
            filter_by(str(data), where, None)
    with pytest.raises(ConfigError, match="filter needs --where"):
        filter_by(str(data), None, None)
    with pytest.raises(InputError, match=r"the list .* cannot be read: No such file"):
        filter_by(str(data), None, tmp_path / "none.txt")


def test_the_memory_s_bound_on_rejects_does_not_show(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.datasets.derive.REJECTS", 2)
    info = run(data, tmp_path / "out", filter_by(str(data), "width < 0", None))
    assert info["counts"]["rejected"] == 7
    assert info["counts"]["shards"] == 0


def test_all_samples_may_be_left_out_of_a_chain(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "none", filter_by(str(data), "width < 0", None))
    info = run(tmp_path / "none", tmp_path / "again", sample_of(str(tmp_path / "none"), 3, 0))
    assert info["counts"] == {**info["counts"], "read": 7, "written": 0, "rejected": 7}


def test_an_index_names_no_file_outside(data: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes((data / "fastcomposer-000000.tar").read_bytes())
    index = pq.read_table(data / "index.parquet")
    place = index.column_names.index("shard")
    pq.write_table(index.set_column(place, "shard", [["../secret"] * len(index)]), data / "index.parquet")
    with pytest.raises(InputError, match=r"names '\.\./secret', which is no shard of this folder"):
        derive([str(data)], str(tmp_path / "out"), sample_of(str(data), 1, 0))
