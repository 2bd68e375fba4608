"""The commands on finished datasets, as they are typed."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.report.page import write_report
from tests.datasets import example, write_dataset
from tests.jobs.conftest import Run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    records: list[Any] = [example(f"{n:02d}", size=(64 + n, 48)) for n in range(20)]
    write_dataset(tmp_path / "data", [records[:10], records[10:]])
    write_report(str(tmp_path / "data"))
    return tmp_path / "data"


def test_a_dataset_is_filtered_merged_split_and_sampled(run: Run, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "filtered"
    listed = tmp_path / "list.txt"
    listed.write_text("03\nnowhere\n")
    status, printed = run("filter", data, out, "--where", "width < 70", "--exclude", listed)
    assert status == 0, printed
    assert f"1 keys of {listed} are not in {data}" in printed
    assert f"dataset  {out}: 5 samples in 1 shards" in printed
    assert (out / "report.html").exists()
    assert run("sample", data, tmp_path / "some", "--count", "7")[0] == 0
    assert pq.read_metadata(tmp_path / "some" / "index.parquet").num_rows == 7
    assert run("merge", out, tmp_path / "some", "--output", tmp_path / "merged")[0] == 0
    status, printed = run("split", data, tmp_path / "parts", "--part", "a=1", "--part", "b=1")
    assert status == 0, printed
    rows = [pq.read_metadata(tmp_path / "parts" / part / "index.parquet").num_rows for part in "ab"]
    assert sum(rows) == 20
    assert min(rows) > 3
    assert run("inspect", tmp_path / "parts" / "a")[0] == 0


def test_statistics_are_lines_or_json(run: Run, data: Path) -> None:
    status, printed = run("stats", data)
    assert status == 0
    assert "width" in printed
    found = json.loads(run("stats", data, "--json")[1])
    assert found["columns"]["width"]["max"] == 83


def test_a_push_can_be_looked_at_before_it_is_sent(run: Run, data: Path) -> None:
    status, printed = run("push", data, "me/dogs", "--dry-run")
    assert status == 0
    assert printed.startswith("---\nlicense: cc0-1.0\n")
    assert "file     fastcomposer-000000.tar" in printed
    assert ".subjectloom" not in printed


def test_a_dataset_made_from_others_is_not_built_on(run: Run, data: Path, tmp_path: Path) -> None:
    assert run("sample", data, tmp_path / "some", "--count", "7")[0] == 0
    status, printed = run("build", "fastcomposer", "--input", data, "--output", tmp_path / "some", "--resume")
    assert status == 1
    assert "was made from other datasets by `subjectloom sample`" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["filter", "DATA", "OUT"], "filter needs --where EXPRESSION"),
        (["filter", "DATA", "OUT", "--where", "widht > 3"], "no column 'widht', did you mean 'width'"),
        (["filter", "DATA", "OUT", "--exclude", "/no/where"], "the list /no/where cannot be read"),
        (["filter", "/no/where", "OUT", "--where", "width > 3"], "/no/where/index.parquet cannot be read"),
        (["sample", "/no/where", "OUT", "--count", "3"], "cannot be read"),
        (["merge", "DATA", "--output", "OUT"], "merge needs two datasets or more"),
        (["merge", "DATA", "DATA/", "--output", "OUT"], "each named once"),
        (["split", "DATA", "OUT", "--part", "train=0.9"], "a split has two parts or more"),
        (["split", "DATA", "OUT", "--part", "train=0.9", "--part", "../x=1"], "--part ../x=1: write NAME=SHARE"),
        (["split", "DATA", "OUT", "--part", "a=1", "--part", "a=1"], "each name once"),
        (["split", "DATA", "OUT", "--part", "a=1", "--part", "b=-1"], "--part b=-1"),
        (["split", "DATA", "OUT", "--part", "a=1", "--part", "b=nan"], "--part b=nan"),
        (["split", "DATA", "DATA"], "holds files already"),
        (["stats", "/no/where"], "/no/where holds no dataset"),
        (["push", "DATA", "dogs"], "is no repository: write OWNER/NAME"),
    ],
)
def test_an_error_is_a_plain_message(run: Run, data: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    places = {"DATA": str(data), "DATA/": f"{data}/", "OUT": str(tmp_path / "out")}
    status, printed = run(*(places.get(argument, argument) for argument in arguments))
    assert status == 1
    assert message in " ".join(printed.split())
    assert len(printed.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
