"""What a build would take, said before it begins."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import jobs.dry_run
from jobs.build import Request
from jobs.dry_run import describe_models, download_size, dry_run, in_bytes, loaded_files
from jobs.plan import Measured
from pipelines import RECIPES
from pipelines.recipe import BuildConfig
from schemas.errors import ConfigError, InputError, ModelError
from tests.datasets import jpeg
from tests.jobs.conftest import Run
from transforms.models.presets import PRESETS, resolve

QUIET = Console(quiet=True)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02d}.jpg").write_bytes(jpeg(32, 24, seed=number))
        (folder / f"{number:02d}.txt").write_text("a dog")
    return folder


def request(pictures: Path, recipe: str = "captioned", preset: str = "sample", **changes: Any) -> Request:  # noqa: ANN401
    config = RECIPES[recipe].config(samples_per_shard=5)
    return Request(recipe, str(pictures), str(pictures.parent / "out"), config, resolve(preset, {}), **changes)


FILES = {
    "config.json": 700, "tokenizer.json": 2_000_000, "model.safetensors": 10**9, "pytorch_model.bin": 2 * 10**9,
    "open_clip_model.safetensors": 3 * 10**9, "open_clip_config.json": 300, "onnx/model.onnx": 7 * 10**9,
}  # fmt: skip


class Hub:
    """A hub whose repositories all have `FILES`."""

    def model_info(self, name: str, *, revision: str | None, files_metadata: bool) -> Any:  # noqa: ANN401
        assert (revision, files_metadata) == (None, True)
        if name == "no/such":
            raise OSError("offline")
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=n, size=size) for n, size in FILES.items()])


def test_the_source_the_models_and_a_probe_are_told_and_nothing_is_written(run: Run, pictures: Path) -> None:
    out = pictures.parent / "out"
    command = ("build", "captioned", "--input", pictures, "--output", out, "--samples-per-shard", "5", "--dry-run")
    status, printed = run(*command)
    assert status == 0, printed
    size = sum(path.stat().st_size for path in pictures.iterdir())
    assert f"source   {pictures}: folder" in printed
    assert f"bytes    {in_bytes(size)}" in printed
    assert "records  12\n" in printed
    assert "shards   3, in" in printed
    assert "probe    12 pictures" in printed
    assert "100% written" in printed
    assert "about 12 samples" in printed
    assert not out.exists()


def test_time_and_bytes_follow_from_the_probe(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Measured(pictures=44, start=20.0, round=5.0, picture=0.5, bytes=10**6, written=0.25, memory=1)
    monkeypatch.setattr(jobs.dry_run, "measure", lambda _: measured)
    text = "\n".join(dry_run(request(pictures), QUIET))
    assert "time     26.0 seconds on one process" in text
    assert "writes   about 3 samples, 12.0 MB" in text
    two = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")
    assert "not less than 13.0 seconds on 2" in "\n".join(dry_run(request(pictures, beam_options=two), QUIET))


def test_models_that_are_not_here_are_not_downloaded_for_a_probe(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.dry_run, "measure", lambda _: pytest.fail("the probe ran"))
    monkeypatch.setattr(jobs.dry_run, "is_here", lambda checkpoint: checkpoint == "en_core_web_sm")
    monkeypatch.setattr(jobs.dry_run, "hub_file", lambda checkpoint: (checkpoint, "config.json"))
    hub: Any = Hub()
    lines = list(dry_run(request(pictures, "fastcomposer", "hub"), QUIET, hub))
    segmenter = next(line for line in lines if line.startswith("model    segmenter"))
    assert segmenter == "model    segmenter: facebook/mask2former-swin-large-coco-panoptic, to be downloaded: 1.0 GB"
    assert lines[-1] == "time     not measured: segmenter, clip must be downloaded first"


def test_of_a_model_in_several_formats_one_is_downloaded() -> None:
    hub: Any = Hub()
    assert download_size("some/model", hub) == 10**9 + 2_000_000 + 700 + 300
    names = list(FILES)
    assert "open_clip_model.safetensors" in loaded_files(names, "open_clip_config.json")
    assert "model.safetensors" not in loaded_files(names, "open_clip_config.json")
    assert loaded_files(["a.pth", "b.pth", "config.json"], "a.pth") == ["a.pth"]
    assert loaded_files(["pytorch_model.bin", "config.json"], "config.json") == ["pytorch_model.bin", "config.json"]
    with pytest.raises(ModelError, match="does not say how much"):
        download_size("no/such", hub)


def test_models_of_the_package_are_here_and_their_size_is_told() -> None:
    sample = PRESETS["sample"]
    found = describe_models({"parser": sample.parser, "clip": sample.clip})
    assert found["parser"].startswith("sample/parser, on this machine (")
    assert found["clip"].endswith(" MB)")
    hub: Any = Hub()
    missing = describe_models({"parser": "en_core_web_xx", "sam": "no/such"}, hub)
    assert missing["parser"] == "en_core_web_xx, to be installed: python -m spacy download en_core_web_xx"
    assert missing["sam"] == "no/such, to be downloaded: the hub does not say how much"


def test_a_source_that_is_too_small_has_no_time(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: Request) -> Measured:
        raise InputError("in holds 3 pictures: a plan needs more than 4 to measure a rate")

    monkeypatch.setattr(jobs.dry_run, "measure", none)
    assert list(dry_run(request(pictures), QUIET))[-1].startswith("time     not measured: in holds 3 pictures")


def test_it_fails_as_the_build_would(pictures: Path) -> None:
    with pytest.raises(ConfigError, match="leave out --resume"):
        list(dry_run(request(pictures, resume=True), QUIET))
    with pytest.raises(InputError, match="nothing to read as parquet"):
        list(dry_run(request(pictures, kind="parquet"), QUIET))
    config = BuildConfig(captions="most-linked")
    with pytest.raises(ConfigError, match="needs phrases that are linked"):
        list(dry_run(Request("captioned", str(pictures), "out", config, resolve("sample", {})), QUIET))


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 bytes"), (1500, "1.5 kB"), (2_500_000, "2.5 MB"), (3e12, "3,000.0 GB")]
)
def test_bytes_have_a_unit(size: float, words: str) -> None:
    assert in_bytes(size) == words
