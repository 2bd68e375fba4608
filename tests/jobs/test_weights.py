"""`subjectloom weights export`: models from the checkpoints of a run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from tests.datasets import example, write_dataset
from tests.jobs.conftest import Run
from training.recipes import fastcomposer

SUBJECTS = (("a red dog", (4, 6, 20, 16)), ("a cat", (30, 10, 20, 30)))
TRAINED = ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {f"{name} {key}": value for name in TRAINED for key, value in load_file(folder / name).items()}


def equal(first: Path, second: Path) -> bool:
    a, b = weights_of(first), weights_of(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_model_of_any_checkpoint_can_be_exported(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no sample picture can be drawn, and when the dataset has moved."""

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(fastcomposer.Model, "sample", fail)
    AcceleratorState._reset_state(reset_partial_state=True)
    write_dataset(tmp_path / "data", [[example(f"key{i}", SUBJECTS) for i in range(4)]])
    fields = ("--set", "batch=2", "--set", "workers=0", "--set", "checkpoint_every=1", "--set", "sample_every=2")
    command = ("train", "fastcomposer", "--data", tmp_path / "data", "--output", tmp_path / "run", "--steps", 2)
    status, printed = run(*command, *fields, "--set", "lora=2", "--set", "held_out=1")
    assert status == 0, printed
    assert "no sample pictures at step 2: MemoryError()" in printed
    assert "held_out" in printed

    export = ("weights", "export", tmp_path / "run")
    shutil.move(tmp_path / "data", tmp_path / "moved")
    status, printed = run(*export, tmp_path / "none")
    assert status == 1
    assert "no shard" in printed
    moved = ("--data", tmp_path / "moved")
    status, printed = run(*export, tmp_path / "new" / "last", *moved)
    assert status == 0, printed
    assert printed == f"model    {tmp_path}/new/last\n"
    assert run(*export, tmp_path / "first", "--step", 1, *moved)[0] == 0
    assert equal(tmp_path / "new" / "last", tmp_path / "run" / "model")
    assert not equal(tmp_path / "first", tmp_path / "run" / "model")
    for folder in (tmp_path / "first", tmp_path / "run" / "model"):
        assert (folder / "pytorch_lora_weights.safetensors").exists()
        assert (folder / "fuser").is_dir()


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A run that has a config and two checkpoints without contents."""
    folder = tmp_path / "run"
    for step in (3, 12):
        (folder / "checkpoints" / f"{step:08d}").mkdir(parents=True)
    write_dataset(tmp_path / "data", [[example("key")]])
    note = {"recipe": "fastcomposer", "data": "sha256:0", "data_path": [str(tmp_path / "data")]}
    (folder / "config.json").write_text(json.dumps(note))
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("data", "out"), "data holds no training run"),
        (("run", "out", "--step", "4"), "run has no checkpoint of step 4; it has 3, 12"),
        (("run", "data"), "data exists already: name a new or an empty folder"),
        (("run", "out"), "data is not the dataset that"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    run: Run, broken: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(broken.parent)
    status, printed = run("weights", "export", *arguments)
    assert status == 1
    assert message in printed
    assert len(printed.splitlines()) == 1


def test_a_run_without_a_checkpoint_or_from_an_older_version_says_what_is_missing(run: Run, broken: Path) -> None:
    (broken / "config.json").write_text(json.dumps({"recipe": "fastcomposer", "data": "sha256:0"}))
    assert (
        "does not say where its dataset is: give --data" in run("weights", "export", broken, broken.parent / "out")[1]
    )
    shutil.rmtree(broken / "checkpoints")
    assert "has no checkpoint yet" in run("weights", "export", broken, broken.parent / "out")[1]
