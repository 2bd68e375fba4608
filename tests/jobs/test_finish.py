"""Datasets that are finished without the build that made their shards."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

import jobs.build
import jobs.describe
from jobs.build import Request, build
from jobs.engines import beam_options
from jobs.main import app
from jobs.run import run
from pipelines import RECIPES
from pipelines.build import BuildDataset
from schemas.errors import InputError, SubjectloomError
from tests.jobs.test_engines import digests, pictures
from transforms.dataset import read_info, read_table
from transforms.finish import finish_noted
from transforms.models.presets import resolve

QUIET = Console(quiet=True)


def request(source: Path, output: Path) -> Request:
    config = RECIPES["captioned"].config(samples_per_shard=5)
    return Request("captioned", str(source), str(output), config, resolve("sample", {}))


class DriverDiedError(Exception):
    pass


def test_a_pipeline_finishes_its_dataset_when_the_process_that_started_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pictures(tmp_path / "pictures", 12)
    expected = build(request(source, tmp_path / "whole"), QUIET)

    def run_and_die(part: BuildDataset, *_: object, **__: object) -> None:
        part.finishes = True
        run(part, beam_options(()))
        raise DriverDiedError

    monkeypatch.setattr(jobs.build, "make_shards", run_and_die)
    with pytest.raises(DriverDiedError):
        build(request(source, tmp_path / "alone"), QUIET)
    info = read_info(str(tmp_path / "alone"))
    assert info.model_copy(update={"seconds": expected.seconds}) == expected
    assert digests(tmp_path / "alone") == digests(tmp_path / "whole")
    for name in ("index.parquet", "rejects.parquet"):
        assert read_table(str(tmp_path / "alone"), name) == read_table(str(tmp_path / "whole"), name)


def test_the_command_finishes_a_dataset_whose_shards_are_made(tmp_path: Path) -> None:
    output = tmp_path / "out"
    expected = build(request(pictures(tmp_path / "pictures", 6), output), QUIET)
    for name in ("dataset.json", "index.parquet", "report.html"):
        (output / name).unlink(missing_ok=True)
    result = CliRunner().invoke(app, ["finish", str(output)])
    assert result.exit_code == 0, result.output
    assert (output / "report.html").is_file()
    assert read_info(str(output)) == expected == finish_noted(str(output))


def test_what_cannot_be_finished_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^{tmp_path} holds no dataset whose shards are made"):
        finish_noted(str(tmp_path))
    output = tmp_path / "out"
    build(request(pictures(tmp_path / "pictures", 6), output), QUIET)
    for name in ("dataset.json", "captioned-000001.tar"):
        (output / name).unlink()
    message = rf"1 of 2 shards in {re.escape(str(output))} are not finished, such as captioned-000001\.tar: run again"
    with pytest.raises(SubjectloomError, match=message):
        finish_noted(str(output))


def test_shards_of_a_cpu_with_other_instructions_are_not_mixed_silently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pictures(tmp_path / "pictures", 6)
    monkeypatch.setattr(jobs.describe, "instructions", lambda _: {"torch.cpu": "DEFAULT"})
    assert build(request(source, tmp_path / "out"), QUIET).libraries["torch.cpu"] == "DEFAULT"
    monkeypatch.setattr(jobs.describe, "instructions", lambda _: {"torch.cpu": "AVX2"})
    resumed = replace(request(source, tmp_path / "out"), resume=True)
    with pytest.raises(InputError, match=r"were made with torch\.cpu DEFAULT \(now AVX2\): --mix-versions keeps them"):
        build(resumed, QUIET)
    assert build(replace(resumed, mix_versions=True), QUIET).libraries["torch.cpu"] == "DEFAULT"
