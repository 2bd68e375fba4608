"""Builds whose recipe keeps only the best samples: candidates, the choice, the cut."""

import hashlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import jobs.build
import transforms.files
from jobs.build import Request, build
from jobs.inspect import inspect
from pipelines import RECIPES
from pipelines.recipe import BuildConfig, Recipe
from schemas.example import Example
from schemas.samples.mip_adapter import FORMAT
from tests.datasets import example as matched
from tests.datasets import jpeg, scored
from transforms.batch import Batch, each
from transforms.models.presets import resolve
from transforms.selection.cut import Cut
from transforms.step import Step, map_batches

MODELS = resolve("sample", {})
QUIET = Console(quiet=True)
SHARDS, PER_SHARD = 3, 4
COUNT = SHARDS * PER_SHARD


@dataclass(eq=False)
class Score(Step):
    """A step without a model: quality and hash of a picture are computed from its key."""

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        return map_batches(batches, "quality", each(score))


def score(example: Example) -> Example:
    number = int(example.key)
    scene = matched(example.key, size=(example.width, example.height))
    scene = replace(scene, caption=example.caption, image=example.image, source=example.source)
    return scored(scene, quality=(number * 5 % 7) / 10, phash=(number // 2) * 0x0F0F0F0F0F0F)


def scoring(cut: Cut | None) -> Recipe[BuildConfig]:
    return Recipe(FORMAT.recipe, BuildConfig, lambda config, *_: config, lambda *_: [Score()], lambda _: cut)


@pytest.fixture(autouse=True)
def recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, FORMAT.recipe, scoring(Cut(best=5, distance=3)))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(COUNT):
        (folder / f"{number:03d}.jpg").write_bytes(jpeg(64, 48, seed=number))
        (folder / f"{number:03d}.txt").write_text("a dog")
    return folder


def request(pictures: Path, output: Path, **changes: Any) -> Request:  # noqa: ANN401
    config = BuildConfig(samples_per_shard=PER_SHARD)
    return Request("mip-adapter", str(pictures), str(output), **{"config": config, "models": MODELS, **changes})


def contents(output: Path) -> dict[str, Any]:
    """Everything that must be equal, however the dataset was built."""
    tars = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(output.glob("*.tar"))}
    return tars | {name: pq.read_table(output / name) for name in ("index.parquet", "rejects.parquet")}


def test_the_best_of_all_shards_are_kept(pictures: Path, tmp_path: Path) -> None:
    info = build(request(pictures, tmp_path / "out"), QUIET)
    assert inspect(str(tmp_path / "out")).problems == ()
    # Pictures 2i and 2i + 1 have the same hash: the better of each pair stays, and of these six the best five.
    quality = {number: number * 5 % 7 for number in range(COUNT)}
    better = [max((n, n + 1), key=quality.__getitem__) for n in range(0, COUNT, 2)]
    best = sorted(better, key=lambda number: (-quality[number], number))[:5]
    assert pq.read_table(tmp_path / "out" / "index.parquet")["key"].to_pylist() == [f"{n:03d}" for n in sorted(best)]
    assert info.counts.rejects == {"best": {"below-cut": 1, "near-duplicate": 6}}
    assert (info.counts.read, info.counts.written) == (COUNT, 5)


def test_without_a_cut_all_samples_stay(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, FORMAT.recipe, scoring(None))
    assert build(request(pictures, tmp_path / "out"), QUIET).counts.written == COUNT
    assert not (tmp_path / "out" / ".subjectloom" / "chosen.parquet").exists()


def test_shards_that_are_cut_are_not_built_again(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(request(pictures, tmp_path / "out"), QUIET)
    before = contents(tmp_path / "out")
    (tmp_path / "out" / ".subjectloom" / "chosen.parquet").unlink()  # not needed any more
    monkeypatch.setattr(jobs.build, "run", lambda *_: pytest.fail("nothing is left to do"))
    build(request(pictures, tmp_path / "out", resume=True), QUIET)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("chosen", [True, False])
def test_a_shard_that_was_lost_is_built_and_cut_again(pictures: Path, tmp_path: Path, chosen: bool) -> None:
    output = tmp_path / "out"
    build(request(pictures, output), QUIET)
    before = contents(output)
    times = {path.name: path.stat().st_mtime_ns for path in output.glob("*.tar")}
    (output / "mip-adapter-000001.tar").unlink()
    if not chosen:
        (output / ".subjectloom" / "chosen.parquet").unlink()
    build(request(pictures, output, resume=True), QUIET)
    assert contents(output) == before
    again = {path.name for path in output.glob("*.tar") if times[path.name] != path.stat().st_mtime_ns}
    assert again == ({"mip-adapter-000001.tar"} if chosen else set(times))


def test_with_more_pictures_the_choice_is_repeated(pictures: Path, tmp_path: Path) -> None:
    build(request(pictures, tmp_path / "some", limit=2 * PER_SHARD), QUIET)
    build(request(pictures, tmp_path / "some", resume=True), QUIET)
    build(request(pictures, tmp_path / "all"), QUIET)
    assert contents(tmp_path / "some") == contents(tmp_path / "all")


class KilledError(Exception):
    """Raised where a job would have been killed."""


class Files:
    """Records changes to files, and after `allowed` of them raises an error in place of the next, as a kill would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, allowed: int = 10**9) -> None:
        self.changes: list[str] = []
        self.allowed = allowed
        for name in ("_create", "_rename", "_delete"):
            monkeypatch.setattr(transforms.files, name, partial(self._change, getattr(transforms.files, name)))

    def _change(self, change: Any, path: Any, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        if len(self.changes) >= self.allowed:
            raise KilledError("killed here")
        self.changes.append(str(path))
        return change(path, *arguments, **options)


@pytest.mark.slow
def test_a_job_that_is_killed_while_it_cuts_goes_on_to_the_same_bytes(pictures: Path, tmp_path: Path) -> None:
    """Killed before each change to a file in turn, from the choice to the end."""
    with pytest.MonkeyPatch.context() as patch:
        files = Files(patch)
        build(request(pictures, tmp_path / "whole"), QUIET)
    expected = contents(tmp_path / "whole")
    first = next(number for number, path in enumerate(files.changes) if "chosen" in path)
    assert len(files.changes) - first > 5 * SHARDS
    for allowed in range(first, len(files.changes)):
        output = tmp_path / f"killed-{allowed}"
        with pytest.MonkeyPatch.context() as patch:
            Files(patch, allowed)
            with pytest.raises(KilledError, match="killed here"):
                build(request(pictures, output), QUIET)
        assert not (output / "dataset.json").exists()
        build(request(pictures, output, resume=True), QUIET)
        assert contents(output) == expected
        assert not list(output.rglob("*.tmp"))


@pytest.mark.slow
def test_two_workers_write_the_same_bytes_as_one(pictures: Path, tmp_path: Path) -> None:
    options = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")
    build(request(pictures, tmp_path / "one"), QUIET)
    build(request(pictures, tmp_path / "two", beam_options=options), QUIET)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    choices = [(tmp_path / name / ".subjectloom" / "chosen.parquet").read_bytes() for name in ("one", "two")]
    assert choices[0] == choices[1]
