import json
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from schemas.errors import ConfigError
from tests.paths import ROOT
from tests.training import processes
from tests.training.models import tiny_batch, tiny_parts
from tests.training.runs import CONFIG, batches_of, losses, losses_of_run, new_model, run, run_on
from training.configs.fastcomposer import Config
from training.loop import train
from training.recipes import TRAININGS, training_of
from training.recipes.fastcomposer import Model
from training.resume import complete_checkpoints


@pytest.fixture(scope="module")
def whole(vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `CONFIG`, with sample pictures."""
    output = tmp_path_factory.mktemp("whole") / "run"
    run(vae, output, show=tiny_batch(tiny_parts(vae), [[True, True]]))
    return output


def test_a_run_writes_curves_pictures_checkpoints_and_a_model(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(CONFIG.steps))
    assert [line["learning_rate"] for line in lines] == [5e-4, 1e-3, 1e-3, 1e-3, 1e-3]
    assert lines[0]["loss"] == pytest.approx(lines[0]["noise"] + 1e-3 * lines[0]["localization"])
    assert [path.name for path in complete_checkpoints(whole)] == ["00000004", "00000005"]
    assert sorted(path.name for path in (whole / "samples").iterdir()) == ["00000003.png", "00000005.png"]
    assert list((whole / "tensorboard").iterdir())
    StableDiffusionPipeline.from_pretrained(whole / "model")


@pytest.mark.parametrize("stop", [1, 3])
def test_an_interrupted_run_is_resumed_with_the_same_numbers(vae: Path, whole: Path, tmp_path: Path, stop: int) -> None:
    model = new_model(vae)
    running = train(model, batches_of(model), CONFIG, tmp_path / "broken")
    for _ in range(stop):
        next(running)
    running.close()  # like a killed run: the steps after the last checkpoint are lost
    rest = run(vae, tmp_path / "broken", resume=True)
    assert losses(rest) == losses_of_run(whole)[stop // 2 * 2 :]
    assert losses_of_run(tmp_path / "broken") == losses_of_run(whole)


def test_the_loss_falls(vae: Path, tmp_path: Path) -> None:
    model = new_model(vae)

    def repeated(_: int) -> Iterator[dict[str, Any]]:
        while True:
            yield tiny_batch(model.parts, [[True, True], [True, False]])

    config = CONFIG.model_copy(update={"steps": 10, "checkpoint_every": 10})
    metrics = list(train(model, repeated, config, tmp_path / "run"))
    assert np.mean([m["noise"] for m in metrics[-4:]]) < 0.8 * np.mean([m["noise"] for m in metrics[:4]])


@pytest.mark.parametrize("change", [{"precision": "bf16"}, {"gradient_checkpointing": True}])
def test_half_precision_and_gradient_checkpointing_change_the_loss_little(
    vae: Path, whole: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    plain = losses_of_run(whole)[:2]
    cheap = losses(run(vae, tmp_path / "cheap", CONFIG.model_copy(update={"steps": 2, **change})))
    for a, b in zip(plain, cheap, strict=True):
        assert b[1] == pytest.approx(a[1], rel=0.03 if change.get("precision") else 1e-4)
        assert ("precision" in change) == (a[1] != b[1])


def test_a_run_with_lora_schedule_and_offset_is_resumed_with_the_same_numbers(vae: Path, tmp_path: Path) -> None:
    fields = {
        "lora": 2, "schedule": "cosine", "min_snr": 5.0, "noise_offset": 0.1, "optimizer": "adamw_fused",
        "precision": "bf16", "frozen_half": True, "channels_last": True, "steps": 3, "checkpoint_every": 1,
    }  # fmt: skip
    config = CONFIG.model_copy(update=fields)

    def start(output: Path, resume: bool = False) -> Generator[dict[str, float]]:
        AcceleratorState._reset_state()
        model = Model(tiny_parts(vae), Config())  # with text encoder and image encoder partly frozen
        return train(model, batches_of(model), config, output, resume=resume)

    whole = list(start(tmp_path / "whole"))
    running = start(tmp_path / "broken")
    next(running)
    running.close()
    rest = list(start(tmp_path / "broken", resume=True))
    assert losses(rest) == losses(whole)[1:]
    assert [line["learning_rate"] for line in rest] == [line["learning_rate"] for line in whole[1:]]
    for name in ("unet/diffusion_pytorch_model.safetensors", "pytorch_lora_weights.safetensors"):
        files = [load_file(tmp_path / run / "model" / name) for run in ("whole", "broken")]
        assert all(torch.equal(files[0][key], files[1][key]) for key in files[0])
    saved = load_file(complete_checkpoints(tmp_path / "whole")[-1] / "weights.safetensors")
    assert {name.split(".")[0] for name in saved} == {"unet", "image_encoder", "fuser"}
    assert all("lora" in name for name in saved if name.startswith("unet"))


def test_a_killed_run_is_resumed_with_the_same_numbers(vae: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "killed"
    lines = output / "metrics.jsonl"
    for wanted in (1, 3):  # killed during these steps or their checkpoints
        process = processes.start(run_on, vae, output, CONFIG.steps)
        while process.is_alive() and not (lines.exists() and len(lines.read_text().splitlines()) >= wanted):
            time.sleep(0.005)
        time.sleep(0.02)
        process.kill()
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0)
    run(vae, output, resume=True)
    assert losses_of_run(output) == losses_of_run(whole)


def test_two_processes_train_one_model_and_resume_together(vae: Path, whole: Path, tmp_path: Path) -> None:
    def train_both(name: str, steps: int) -> list[tuple[float, ...]]:
        processes.run_together(2, tmp_path / f"{name}-{steps}", run_on, vae, tmp_path / name, steps)
        return losses_of_run(tmp_path / name)

    both = train_both("both", 4)
    assert json.loads((tmp_path / "both" / "config.json").read_text())["processes"] == 2
    assert [line[0] for line in both] == [0, 1, 2, 3]
    assert both[0][1] != losses_of_run(whole)[0][1]  # the mean over two processes, each with its own noise
    assert train_both("broken", 2) == both[:2]
    assert train_both("broken", 4) == both

    lines: list[str] = []
    rest = run(vae, tmp_path / "broken", resume=True, report=lines.append)
    assert [line["step"] for line in rest] == [4]
    assert lines == [
        "a step now reads 2 samples instead of 4 (processes: 1); 16 were read so far, and those after them follow"
    ]
    assert json.loads((tmp_path / "broken" / "config.json").read_text())["samples_per_step"] == [[0, 4], [4, 2]]


@pytest.mark.slow
def test_torchrun_starts_both_processes(vae: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path; from tests.training.runs import run_on\n"
        "run_on(Path(sys.argv[1]), Path(sys.argv[2]), 1)\n"
    )
    torchrun = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*torchrun, script, vae, tmp_path / "run"], check=True, capture_output=True)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["processes"] == 2
    assert len(losses_of_run(tmp_path / "run")) == 1


def check_beam_is_not_imported() -> None:
    for name in TRAININGS:
        training_of(name)
    assert not [name for name in sys.modules if name.startswith("apache_beam")]


def test_training_does_not_import_beam() -> None:
    """A new process imports all recipes, but not the other modules that the tests load."""
    processes.run(check_beam_is_not_imported)


def test_importing_the_recipe_names_does_not_import_torch() -> None:
    script = "import sys; import training.recipes; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


@pytest.mark.parametrize("name", TRAININGS)
def test_each_recipe_states_its_training(name: str) -> None:
    training = training_of(name)
    for preset in ("sample", "hub"):
        config = training.config(**training.presets[preset])
        assert config.plain().plain() == config.plain()
    assert training.presets["sample"]["resolution"] == 64


def test_an_unknown_recipe_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="there is no recipe 'mip-adaptor', did you mean 'mip-adapter'"):
        training_of("mip-adaptor")
