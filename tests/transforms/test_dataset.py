import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import transforms.tables
from jobs.inspect import inspect
from schemas.dataset import DatasetInfo
from schemas.errors import ConfigError, InputError, SubjectloomError
from schemas.example import Example
from schemas.rejects import Reason, Reject
from schemas.samples.fastcomposer import FORMAT
from schemas.shards import read_sample
from tests.datasets import JOB, example, write_dataset
from transforms.batch import Batch
from transforms.dataset import finished_shards, prepare_output, read_info, read_table
from transforms.files import list_files
from transforms.finish import finish_dataset
from transforms.settled import settle
from transforms.write import commit_shard

NO_MATCH = Reject("r", "pictures/r\udce4.jpg", "match", Reason.NO_MATCH, "nothing above 0.25")
SHARDS: list[list[Example | Reject]] = [
    [example("b"), example("a", license="CC BY 4.0")],
    [NO_MATCH],
    [],
    [example("aa")],
]


def commit(output: Path, shard: int, *keys: str, fingerprint: str = "") -> None:
    settled = settle(Batch(shard, tuple(example(key) for key in keys)), FORMAT)
    commit_shard(str(output), FORMAT, shard, fingerprint or f"print-{shard}", [settled])


def test_gaps_of_the_source_are_in_the_books(tmp_path: Path) -> None:
    prepare_output(str(tmp_path), JOB)
    commit(tmp_path, 0, "a")
    info = finish_dataset(str(tmp_path), JOB, {0: "print-0"}, FORMAT, {"pictures without boxes": 3})
    assert read_info(str(tmp_path)).gaps == info.gaps == {"pictures without boxes": 3}


def test_a_finished_dataset_tells_what_it_holds(tmp_path: Path) -> None:
    info = write_dataset(tmp_path, SHARDS)
    assert info == read_info(str(tmp_path)) == DatasetInfo.model_validate_json((tmp_path / "dataset.json").read_text())
    assert info.counts.model_dump() == {
        "read": 4,
        "written": 3,
        "rejected": 1,
        "shards": 2,
        "rejects": {"match": {"no-match": 1}},
    }
    assert info.licenses == {"CC BY 4.0": 1, "CC0": 2}
    assert info.seconds["segment"] == 6.0
    assert info.libraries["pillow"].count(".") == 2
    assert (info.recipe, info.seed, info.config, info.models) == (JOB.recipe, JOB.seed, JOB.config, JOB.models)
    assert list_files(str(tmp_path)) == [
        ".huggingface.yaml",
        ".subjectloom/job.json",
        *(f".subjectloom/part-{n:06d}.parquet" for n in range(4)),
        "dataset.json",
        "fastcomposer-000000.json",
        "fastcomposer-000000.tar",
        "fastcomposer-000003.json",
        "fastcomposer-000003.tar",
        "index.parquet",
        "rejects.parquet",
    ]


def test_the_index_is_sorted_and_its_offsets_give_each_sample_alone(tmp_path: Path) -> None:
    write_dataset(tmp_path, SHARDS)
    index = pq.read_table(tmp_path / "index.parquet")
    assert index.schema.equals(FORMAT.index_columns)
    assert index["key"].to_pylist() == ["a", "aa", "b"]
    for row in index.to_pylist():
        with (tmp_path / row["shard"]).open("rb") as tar:
            tar.seek(row["offset"])
            sample = read_sample(tar.read(row["size"]))
        assert json.loads(sample.members["json"])["key"] == row["key"]


def test_rejects_are_a_table_even_of_a_file_name_that_is_no_utf_8(tmp_path: Path) -> None:
    write_dataset(tmp_path, SHARDS)
    assert read_table(str(tmp_path), "rejects.parquet").to_pylist() == [
        {
            "key": "r",
            "source": "pictures/r\\udce4.jpg",
            "stage": "match",
            "reason": "no-match",
            "detail": "nothing above 0.25",
        }
    ]


def test_a_dataset_of_rejects_alone_is_finished_too(tmp_path: Path) -> None:
    info = write_dataset(tmp_path, [[NO_MATCH]])
    assert (info.counts.written, info.counts.shards) == (0, 0)
    assert len(pq.read_table(tmp_path / "index.parquet")) == 0


@pytest.mark.parametrize("in_memory", [50_000, 3])
def test_of_samples_with_one_key_the_first_stays_and_the_others_become_rejects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: int
) -> None:
    monkeypatch.setattr(transforms.tables, "IN_MEMORY", in_memory)
    shards = [[example("a"), example("b")], [example("b", extra_segments=1), example("c")], [example("b")]]
    info = write_dataset(tmp_path, shards)
    assert inspect(str(tmp_path)).problems == ()
    assert (info.counts.read, info.counts.written, info.counts.shards) == (5, 3, 2)
    assert info.counts.rejects == {"finish": {"duplicate-key": 2}}
    index = read_table(str(tmp_path), "index.parquet")
    assert list(zip(index["key"].to_pylist(), index["shard"].to_pylist(), strict=True)) == [
        ("a", "fastcomposer-000000.tar"),
        ("b", "fastcomposer-000000.tar"),
        ("c", "fastcomposer-000001.tar"),
    ]
    details = read_table(str(tmp_path), "rejects.parquet")["detail"].to_pylist()
    assert details == ["fastcomposer-000000.tar has an earlier sample of the same key"] * 2
    assert finished_shards(str(tmp_path)) == {n: f"print-{n}" for n in range(3)}


def test_a_dataset_with_a_missing_or_an_outdated_shard_is_not_finished(tmp_path: Path) -> None:
    prepare_output(str(tmp_path), JOB)
    commit(tmp_path, 0, "a")
    commit(tmp_path, 1, "b", fingerprint="old")
    with pytest.raises(
        SubjectloomError, match=r"2 of 3 shards in .* are not finished, such as fastcomposer-000001.tar"
    ):
        finish_dataset(str(tmp_path), JOB, {shard: f"print-{shard}" for shard in range(3)}, FORMAT)


def test_a_shard_whose_tar_or_part_was_lost_or_damaged_is_not_done(tmp_path: Path) -> None:
    prepare_output(str(tmp_path), JOB)
    for shard in range(4):
        commit(tmp_path, shard, f"key-{shard}")
    (tmp_path / "fastcomposer-000000.tar").unlink()
    (tmp_path / ".subjectloom" / "part-000001.parquet").unlink()
    (tmp_path / ".subjectloom" / "part-000002.parquet").write_bytes(b"PAR1 and no more")
    pq.write_table(pa.table({"a": [1]}), tmp_path / ".subjectloom" / "part-000004.parquet")
    assert finished_shards(str(tmp_path)) == {3: "print-3"}


def test_finishing_removes_what_an_earlier_run_left_and_only_that(tmp_path: Path) -> None:
    write_dataset(tmp_path, SHARDS)
    (tmp_path / "mine-000009.tar").write_bytes(b"not ours")
    (tmp_path / ("fastcomposer-000000.tar." + "0" * 32 + ".tmp")).write_bytes(b"half a shard")
    prepare_output(str(tmp_path), JOB, resume=True)
    finish_dataset(str(tmp_path), JOB, {0: "print-0", 1: "print-1"}, FORMAT)
    assert list_files(str(tmp_path)) == [
        ".huggingface.yaml",
        ".subjectloom/job.json",
        ".subjectloom/part-000000.parquet",
        ".subjectloom/part-000001.parquet",
        "dataset.json",
        "fastcomposer-000000.json",
        "fastcomposer-000000.tar",
        "index.parquet",
        "mine-000009.tar",
        "rejects.parquet",
    ]
    assert read_table(str(tmp_path), "index.parquet")["key"].to_pylist() == ["a", "b"]


def test_a_new_or_an_empty_folder_is_taken(tmp_path: Path) -> None:
    prepare_output(str(tmp_path), JOB)
    prepare_output(str(tmp_path / "new" / "deep"), JOB)
    assert list_files(str(tmp_path / "new")) == ["deep/.subjectloom/job.json"]


def test_a_finished_dataset_is_refused_and_both_ways_out_are_named(tmp_path: Path) -> None:
    write_dataset(tmp_path, SHARDS)
    with pytest.raises(InputError, match=r"already holds a fastcomposer dataset: --overwrite .* --resume"):
        prepare_output(str(tmp_path), JOB)


def test_an_interrupted_run_is_refused_and_both_ways_out_are_named(tmp_path: Path) -> None:
    prepare_output(str(tmp_path), JOB)
    commit(tmp_path, 0, "a")
    with pytest.raises(InputError, match=r"an interrupted run with 1 finished shards: --resume goes on .*--overwrite"):
        prepare_output(str(tmp_path), JOB)


@pytest.mark.parametrize(("overwrite", "resume"), [(False, False), (True, False), (False, True)])
def test_a_folder_with_other_files_is_never_touched(tmp_path: Path, overwrite: bool, resume: bool) -> None:
    (tmp_path / "fastcomposer-000000.tar").write_bytes(b"whose is it?")
    with pytest.raises(InputError, match=r"files that do not belong to a dataset, such as fastcomposer-000000.tar"):
        prepare_output(str(tmp_path), JOB, overwrite=overwrite, resume=resume)
    assert list_files(str(tmp_path)) == ["fastcomposer-000000.tar"]


def test_overwrite_removes_the_dataset_and_leaves_what_is_not_ours(tmp_path: Path) -> None:
    write_dataset(tmp_path, SHARDS)
    (tmp_path / "notes.txt").write_text("keep me")
    (tmp_path / "report.html").write_text("ours")
    prepare_output(str(tmp_path), JOB, overwrite=True)
    assert list_files(str(tmp_path)) == [".subjectloom/job.json", "notes.txt"]


def test_overwrite_does_not_remove_the_dataset_of_another_recipe(tmp_path: Path) -> None:
    write_dataset(tmp_path, SHARDS)
    before = list_files(str(tmp_path))
    other = JOB.model_copy(update={"recipe": "blip-diffusion"})
    with pytest.raises(
        InputError, match=r"holds a fastcomposer dataset, which a blip-diffusion build does not replace"
    ):
        prepare_output(str(tmp_path), other, overwrite=True)
    assert list_files(str(tmp_path)) == before


def test_a_finished_dataset_without_samples_is_replaced(tmp_path: Path) -> None:
    write_dataset(tmp_path, SHARDS)
    info = json.loads((tmp_path / "dataset.json").read_text())
    info["counts"] |= {"written": 0}
    (tmp_path / "dataset.json").write_text(json.dumps(info))
    prepare_output(str(tmp_path), JOB)
    assert list_files(str(tmp_path)) == [".subjectloom/job.json"]


def test_resume_keeps_the_shards_and_the_dataset_no_longer_looks_finished(tmp_path: Path) -> None:
    write_dataset(tmp_path, SHARDS)
    before = (tmp_path / "fastcomposer-000000.tar").read_bytes()
    prepare_output(str(tmp_path), JOB, resume=True)
    assert finished_shards(str(tmp_path)) == {n: f"print-{n}" for n in range(4)}
    assert (tmp_path / "fastcomposer-000000.tar").read_bytes() == before
    with pytest.raises(InputError, match=r"is not finished: run its build again with --resume"):
        read_info(str(tmp_path))


def test_resume_with_another_recipe_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path, SHARDS)
    other = JOB.model_copy(update={"recipe": "blip-diffusion"})
    with pytest.raises(InputError, match=r"holds a fastcomposer dataset: --resume cannot go on with blip-diffusion"):
        prepare_output(str(tmp_path), other, resume=True)


def test_both_options_at_once_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"choose one"):
        prepare_output(str(tmp_path), JOB, overwrite=True, resume=True)


def test_a_folder_whose_state_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".subjectloom").mkdir()
    (tmp_path / ".subjectloom" / "job.json").write_text("{}")
    with pytest.raises(InputError, match=r"job.json cannot be read, so its contents are unknown"):
        prepare_output(str(tmp_path), JOB, overwrite=True)


def test_a_name_that_is_a_pattern_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"out\[1\] has one of"):
        prepare_output(str(tmp_path / "out[1]"), JOB)


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to .*file"):
        prepare_output(str(tmp_path / "file"), JOB)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match=r"cannot write to"):
        prepare_output(str(tmp_path / "out"), JOB)


def test_a_folder_without_a_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no dataset: there is no dataset.json"):
        read_info(str(tmp_path))


def test_a_dataset_json_of_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"recipe": 3}')
    with pytest.raises(InputError, match=r"dataset.json cannot be read: recipe: Input should be a valid string"):
        read_info(str(tmp_path))


def test_an_index_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"index.parquet cannot be read"):
        read_table(str(tmp_path), "index.parquet")
    (tmp_path / "index.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"index.parquet cannot be read"):
        read_table(str(tmp_path), "index.parquet")
