"""Thresholds and gates that change without a model: the shards are those of a fresh build, byte by byte."""

import io
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

import jobs.build
from jobs.build import Request, build
from jobs.inspect import inspect
from jobs.scenes import write_scenes
from pipelines import RECIPES
from schemas.errors import SubjectloomError
from transforms.candidates import model_steps
from transforms.listing import Listing
from transforms.models.presets import resolve
from transforms.selection.quality import ScoreQuality
from transforms.step import Step
from transforms.text.phrases import ExtractPhrases

QUIET = Console(quiet=True)
CONFIGS: dict[str, dict[str, Any]] = {
    "fastcomposer": {"samples_per_shard": 5},
    "mip-adapter": {"samples_per_shard": 1, "min_area": 0.01, "fill": 0.3},
    "blip-diffusion": {"samples_per_shard": 2, "rival": 0.9, "min_area": 0.01, "candidates": True},
}
LIMITS = {"fastcomposer": 8, "mip-adapter": 2, "blip-diffusion": 4}
CHANGES: dict[str, list[dict[str, Any]]] = {
    "fastcomposer": [
        {"threshold": 0.72, "min_area": 0.03, "plurals": "leave-out"},
        {"threshold": 0.1, "min_area": 0.0, "only": ("house", "ring")},
    ],
    "mip-adapter": [{"min_score": 0.72, "crowd": 4, "max_area": 0.08, "best": 1}],
    "blip-diffusion": [{"rival": 0.5, "band": 5, "lower": 0.2, "move": True}],
}
FOUND = "shards are made of what the models found before"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("candidates") / "scenes"
    for _ in write_scenes(folder, 8, seed=5, size=256):
        pass
    return folder / "images"


def make(recipe: str, source: Path, output: Path, changes: dict[str, Any], **options: Any) -> str:  # noqa: ANN401
    """Build a dataset, and return what was printed."""
    config = RECIPES[recipe].config(**{**CONFIGS[recipe], **changes})
    console = Console(record=True, width=200, file=io.StringIO())
    build(Request(recipe, str(source), str(output), config, resolve("sample", {}), **options), console)
    assert inspect(str(output)).problems == ()
    return console.export_text()


def contents(output: Path) -> dict[str, Any]:
    """The shards, and the rejects."""
    rejects = pq.read_table(output / "rejects.parquet").to_pylist()
    return {**{path.name: path.read_bytes() for path in output.glob("*.tar")}, "rejects": rejects}


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model can be loaded."""

    def fail(*_: object) -> None:
        raise AssertionError("a model was loaded")

    places = {
        "clip": "load_clip", "segmenter": "load_segmenter", "sam": "load_sam", "clipseg": "load_clipseg",
        "parser": "load_parser",
    }  # fmt: skip
    for module, name in places.items():
        monkeypatch.setattr(f"transforms.models.{module}.{name}", fail)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", list(CONFIGS))
def test_what_is_cut_again_is_what_a_fresh_build_makes(
    recipe: str, scenes: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    fresh = []
    for number, changes in enumerate(CHANGES[recipe]):
        make(recipe, scenes, tmp_path / f"fresh-{number}", changes, limit=LIMITS[recipe])
        fresh.append(contents(tmp_path / f"fresh-{number}"))
    assert FOUND not in make(recipe, scenes, tmp_path / "out", {}, limit=LIMITS[recipe])
    first = contents(tmp_path / "out")
    request.getfixturevalue("no_models")
    for changes, expected in zip(CHANGES[recipe], fresh, strict=True):
        printed = make(recipe, scenes, tmp_path / "out", changes, resume=True, limit=LIMITS[recipe])
        assert f"2 {FOUND}" in printed
        assert contents(tmp_path / "out") == expected
    assert any(expected != first for expected in fresh)


def test_another_source_or_parser_is_not_served_by_candidates(scenes: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for path in sorted(scenes.iterdir())[:6]:
        (source / path.name).write_bytes(path.read_bytes())
    changes: dict[str, Any] = {"similarity": "label", "samples_per_shard": 2}
    make("fastcomposer", source, tmp_path / "out", changes)
    (source / "000002.txt").write_text("a red ball on green grass")
    assert "1 of 2 shards are done" in make("fastcomposer", source, tmp_path / "out", changes, resume=True)
    printed = make("fastcomposer", source, tmp_path / "out", {**changes, "threshold": 0.9}, resume=True)
    assert f"2 {FOUND}" in printed
    assert FOUND not in make(
        "fastcomposer", source, tmp_path / "out", {**changes, "expand_plurals": False}, resume=True
    )


def test_without_candidates_nothing_is_kept(scenes: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"similarity": "label", "candidates": False}
    make("fastcomposer", scenes, tmp_path / "out", changes)
    assert not list((tmp_path / "out" / ".subjectloom").glob("candidate*"))
    assert FOUND not in make("fastcomposer", scenes, tmp_path / "out", {**changes, "threshold": 0.9}, resume=True)


def test_damaged_candidates_are_made_again(scenes: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"similarity": "label"}
    make("fastcomposer", scenes, tmp_path / "out", changes)
    stored = sorted((tmp_path / "out" / ".subjectloom").glob("candidates-*.parquet"))
    assert len(stored) == 2
    stored[0].write_bytes(b"no parquet")
    printed = make("fastcomposer", scenes, tmp_path / "out", {**changes, "threshold": 0.9}, resume=True)
    assert f"1 {FOUND}" in printed
    assert pq.read_metadata(stored[0]).num_rows == 5


def test_candidates_of_other_pictures_stop_the_build(scenes: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"similarity": "label"}
    make("fastcomposer", scenes, tmp_path / "out", changes)
    first, second = sorted((tmp_path / "out" / ".subjectloom").glob("candidates-*.parquet"))
    metadata = pq.read_schema(first).metadata
    pq.write_table(pq.read_table(second).replace_schema_metadata(metadata), first)
    with pytest.raises(SubjectloomError, match=r"candidates-000000\.parquet does not belong to this source"):
        make("fastcomposer", scenes, tmp_path / "out", {**changes, "threshold": 0.9}, resume=True)


def test_a_run_that_died_leaves_candidates_for_the_next(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"similarity": "label", "batch_size": 2}
    make("fastcomposer", scenes, tmp_path / "whole", changes)
    with monkeypatch.context() as patch:
        patch.setattr(jobs.build, "finish_noted", lambda _: (_ for _ in ()).throw(SubjectloomError("killed")))
        with pytest.raises(SubjectloomError, match="killed"):
            make("fastcomposer", scenes, tmp_path / "out", changes)
    printed = make("fastcomposer", scenes, tmp_path / "out", {**changes, "threshold": 0.9}, resume=True)
    assert f"2 {FOUND}" in printed
    make("fastcomposer", scenes, tmp_path / "whole", {**changes, "threshold": 0.9}, overwrite=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not list((tmp_path / "out" / ".subjectloom").glob("candidate-pieces*/**/*"))


def test_steps_up_to_the_last_model_find_candidates() -> None:
    parse: Step = ExtractPhrases("p")
    assert model_steps([parse, ScoreQuality()]) == 1
    assert model_steps([ScoreQuality(), parse]) == 0
    assert model_steps([ScoreQuality()]) == 0
    models, listing = resolve("sample", {}), Listing("folder", ())
    for recipe, last in (("fastcomposer", "ScoreSimilarity"), ("mip-adapter", "EmbedObjects")):
        described = RECIPES[recipe]
        steps = described.steps(described.settle(described.config(), models, listing), models, listing)
        assert type(steps[model_steps(steps) - 1]).__name__ == last
