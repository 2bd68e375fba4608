"""Verifying a dataset, and what the commands that read one load."""

import dataclasses
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from jobs.inspect import SHOWN, Inspection, Problem, inspect, show
from schemas.errors import InputError
from schemas.rejects import Reason, Reject
from schemas.samples import FORMATS, format_of
from schemas.shards import Sample, read_tar, write_tar
from tests.datasets import example, write_dataset
from tests.paths import ROOT

NO_MATCH = Reject("r", "pictures/r.jpg", "match", Reason.NO_MATCH, "nothing above 0.25")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("inspect") / "dataset"
    write_dataset(output, [[example("a"), example("b")], [example("c"), NO_MATCH]])
    return output


@pytest.fixture
def output(dataset: Path, tmp_path: Path) -> Path:
    """A copy of the dataset, to be damaged."""
    return shutil.copytree(dataset, tmp_path / "dataset")


def complaints(output: Path) -> list[str]:
    return [str(problem) for problem in inspect(str(output)).problems]


def rewrite_shard(output: Path, change: Callable[[list[Sample]], list[Sample]]) -> None:
    """Write the first shard again, changed, and give the index the new places of its samples."""
    path = output / "fastcomposer-000000.tar"
    with path.open("rb") as stream:
        samples = [sample for _, sample in read_tar(stream)]
    with path.open("wb") as changed:
        places = {entry.key: entry for entry in write_tar(changed, change(samples))}

    def place(row: dict[str, Any]) -> dict[str, Any]:
        entry = places.get(row["key"])
        return row | dataclasses.asdict(entry) if entry else row

    rewrite_table(output, "index.parquet", place)


def rewrite_table(output: Path, name: str, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    table = pq.read_table(output / name)
    rows = [changed for row in table.to_pylist() if (changed := change(row)) is not None]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), output / name)


def with_members(sample: Sample, **members: bytes) -> Sample:
    return Sample(sample.key, {**sample.members, **members})


def test_a_whole_dataset_has_no_problem(output: Path) -> None:
    found = inspect(str(output))
    assert found.problems == ()
    assert found.info.counts.written == 3
    assert found.size == sum(row["size"] for row in pq.read_table(output / "index.parquet").to_pylist())


def test_a_sample_that_changed_is_named_with_its_shard(output: Path) -> None:
    def change(samples: list[Sample]) -> list[Sample]:
        record = json.loads(samples[1].members["json"])
        record["subjects"][0]["area"] += 1
        return [samples[0], with_members(samples[1], json=json.dumps(record).encode())]

    rewrite_shard(output, change)
    assert complaints(output) == ["fastcomposer-000000.tar: b: subjects[0] has area 321, its mask 320 pixels"]


def test_a_picture_that_broke_is_named(output: Path) -> None:
    rewrite_shard(output, lambda s: [with_members(s[0], jpg=s[0].members["jpg"][:300]), s[1]])
    (complaint,) = complaints(output)
    assert complaint.startswith("fastcomposer-000000.tar: a: a.jpg cannot be decoded: ")


def test_a_missing_and_a_foreign_member_are_named(output: Path) -> None:
    rewrite_shard(output, lambda s: [Sample("a", {"jpg": s[0].members["jpg"]}), with_members(s[1], txt=b"")])
    assert complaints(output) == [
        "fastcomposer-000000.tar: a: has members jpg, not jpg, json",
        "fastcomposer-000000.tar: b: has members jpg, json, txt, not jpg, json",
    ]


def test_samples_that_only_the_shard_or_only_the_index_knows_are_named(output: Path) -> None:
    rewrite_shard(output, lambda s: [s[0], Sample("z", s[1].members)])
    assert complaints(output) == [
        "fastcomposer-000000.tar: z: is in the shard, but not in the index",
        "fastcomposer-000000.tar: b: is in the index, but not in the shard",
    ]


def test_an_offset_that_points_elsewhere_is_named(output: Path) -> None:
    rewrite_table(output, "index.parquet", lambda row: row | {"offset": row["offset"] + (row["key"] == "b") * 512})
    (complaint,) = complaints(output)
    assert complaint.startswith("fastcomposer-000000.tar: b: the index says ")


def test_a_caption_that_differs_between_index_and_sample_is_named(output: Path) -> None:
    rewrite_table(output, "index.parquet", lambda row: row | {"caption": row["caption"].replace("dog", "cat")})
    assert "fastcomposer-000001.tar: c: the index says caption 'a cat', the record 'a dog'" in complaints(output)


def test_a_flipped_bit_that_still_decodes_is_noticed(output: Path) -> None:
    path = output / "fastcomposer-000000.tar"
    tar = bytearray(path.read_bytes())
    tar[tar.index(b"pictures/a.jpg")] ^= 1
    path.write_bytes(bytes(tar))
    assert (
        "fastcomposer-000000.tar: a: its bytes have changed since they were written: the checksums differ"
        in complaints(output)
    )


def test_a_shard_that_was_cut_off_is_named(output: Path) -> None:
    path = output / "fastcomposer-000000.tar"
    path.write_bytes(path.read_bytes()[:700])
    assert complaints(output) == [
        "fastcomposer-000000.tar: cannot be read: unexpected end of data",
        "fastcomposer-000000.tar: a: is in the index, but not in the shard",
        "fastcomposer-000000.tar: b: is in the index, but not in the shard",
    ]


def test_a_shard_that_is_gone_or_no_tar_is_named(output: Path) -> None:
    (output / "fastcomposer-000000.tar").unlink()
    (output / "fastcomposer-000001.tar").write_bytes(b"not a tar" * 200)
    found = complaints(output)
    assert any(line.startswith("fastcomposer-000000.tar: cannot be read: ") for line in found)
    assert any(line.startswith("fastcomposer-000001.tar: cannot be read: ") for line in found)


def test_a_shard_that_the_index_does_not_know_is_named(output: Path) -> None:
    (output / "fastcomposer-000007.tar").write_bytes(bytes(10240))
    assert complaints(output) == ["fastcomposer-000007.tar: the index lists no sample of it"]


def test_an_index_of_other_columns_is_named(output: Path) -> None:
    index = pq.read_table(output / "index.parquet")
    index = index.drop_columns(["license"]).set_column(0, "key", pa.array([1, 2, 3]))
    pq.write_table(index, output / "index.parquet")
    assert complaints(output) == [
        "index.parquet: column key is int64, not string",
        "index.parquet: has no column license",
    ]


def test_a_key_that_is_twice_in_the_index_is_named(output: Path) -> None:
    index = pq.read_table(output / "index.parquet")
    pq.write_table(pa.concat_tables([index, index.slice(0, 1)]), output / "index.parquet")
    assert complaints(output) == [
        "index.parquet: a: occurs more than once",
        "dataset.json: counts 3 written, the index 4",
        "dataset.json: counts licenses {'CC0': 3}, the index {'CC0': 4}",
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"read": 5}, ["dataset.json: counts 5 read, but 3 written and 1 rejected"]),
        ({"read": 5, "written": 4}, ["dataset.json: counts 4 written, the index 3"]),
        ({"shards": 3}, ["dataset.json: counts 3 shards, the index 2"]),
        ({"read": 5, "rejected": 2}, ["dataset.json: counts 2 rejected, rejects.parquet 1"]),
        (
            {"rejects": {"match": {"no-phrase": 1}}},
            ["dataset.json: counts rejects {'match': {'no-phrase': 1}}, which are not those of rejects.parquet"],
        ),
    ],
)
def test_counts_that_do_not_hold_are_named(output: Path, changes: dict[str, Any], expected: list[str]) -> None:
    info = json.loads((output / "dataset.json").read_text())
    info["counts"] |= changes
    (output / "dataset.json").write_text(json.dumps(info))
    assert complaints(output) == expected


def test_a_recipe_of_another_version_is_named() -> None:
    with pytest.raises(InputError, match=rf"recipe is 'telepathy', known are {', '.join(FORMATS)}: update"):
        format_of("telepathy")


def printed(inspection: Inspection) -> str:
    stream = io.StringIO()
    show(inspection, Console(file=stream, width=100))
    return stream.getvalue()


def test_the_numbers_are_printed(output: Path) -> None:
    text = printed(inspect(str(output)))
    for words in (
        "3 samples in 2 shards",
        "1 no-match",
        "seconds, segment",
        "licence           3 × CC0",
        "no problem found",
    ):
        assert words in text


def test_problems_are_printed_a_line_each_and_a_flood_is_cut(output: Path) -> None:
    info = inspect(str(output)).info
    text = printed(
        Inspection(info, 0, tuple(Problem("s.tar", f"k{i}", "[bold] x" + "y" * 200) for i in range(SHOWN + 5)))
    )
    assert f"s.tar: k7: [bold] x{'y' * 200}\n" in text
    assert f"k{SHOWN - 1}:" in text
    assert f"k{SHOWN}:" not in text
    assert "... and 5 more\n105 problems" in text


def test_one_problem_is_not_several(output: Path) -> None:
    info = inspect(str(output)).info
    assert "\n1 problem\n" in printed(Inspection(info, 0, (Problem("s.tar", "", "x"),)))


READ = """
import sys
from jobs.main import main

source, destination = sys.argv[1:]
for arguments in (["inspect", source], ["report", source], ["export", source, destination, "--format", "coco"]):
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as stopped:
        assert not stopped.code, arguments
print("loaded:", *(name for name in ("apache_beam", "torch", "spacy", "transformers") if name in sys.modules))
"""


def test_commands_that_read_a_local_dataset_load_neither_beam_nor_models(output: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", READ, str(output), str(tmp_path / "coco")]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.endswith("\nloaded:\n")
    assert (output / "report.html").exists()
    assert (tmp_path / "coco" / "annotations" / "instances.json").exists()
