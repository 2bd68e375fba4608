import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from schemas.errors import InputError, ModelError
from tests.paths import ROOT
from tests.training.models import tiny_batch, tiny_parts
from training.checkpoint import complete_checkpoints
from training.fastcomposer import FastComposer
from training.train import TrainConfig, train

CONFIG = TrainConfig(
    steps=6, batch=2, learning_rate=1e-3, warmup=2, average=0.5, checkpoint_every=2, sample_every=3, train_encoders=True
)


def new_model(folder: Path) -> FastComposer:
    return FastComposer(tiny_parts(folder / "vae"), train_encoders=True)


def batches_of(model: FastComposer) -> Callable[[int], Iterator[dict[str, Any]]]:
    """Batches that are a function of their number."""

    def batches(done: int) -> Iterator[dict[str, Any]]:
        while True:
            yield tiny_batch(model.parts, [[True, True], [True, False]], seed=done)
            done += 1

    return batches


def run(folder: Path, output: Path, config: TrainConfig = CONFIG, **options: Any) -> list[dict[str, float]]:  # noqa: ANN401
    AcceleratorState._reset_state(reset_partial_state=True)  # it keeps the first run's precision otherwise
    model = new_model(folder)
    return list(train(model, batches_of(model), config, output, **options))


def losses(metrics: list[dict[str, float]]) -> list[tuple[float, ...]]:
    return [(m["step"], m["loss"], m["noise"], m["localization"], m["gradient_norm"]) for m in metrics]


def test_a_run_leaves_curves_pictures_checkpoints_and_a_model(tmp_path: Path) -> None:
    show = tiny_batch(tiny_parts(tmp_path / "vae"), [[True, True]])
    metrics = run(tmp_path, tmp_path / "run", show=show)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines == metrics
    assert [line["step"] for line in lines] == list(range(6))
    assert [line["learning_rate"] for line in lines] == [5e-4, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3]
    assert lines[0]["loss"] == pytest.approx(lines[0]["noise"] + 1e-3 * lines[0]["localization"])
    assert [path.name for path in complete_checkpoints(tmp_path / "run")] == ["00000004", "00000006"]
    assert sorted(path.name for path in (tmp_path / "run" / "samples").iterdir()) == ["00000003.png", "00000006.png"]
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    StableDiffusionPipeline.from_pretrained(tmp_path / "run" / "model")


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_a_broken_run_goes_on_to_the_same_numbers(tmp_path: Path, stop: int) -> None:
    whole = run(tmp_path, tmp_path / "whole")
    model = new_model(tmp_path)
    running = train(model, batches_of(model), CONFIG, tmp_path / "broken")
    for _ in range(stop):
        next(running)
    running.close()  # as a killed run: what it did after its last checkpoint is lost
    rest = run(tmp_path, tmp_path / "broken", resume=True)
    start = stop // 2 * 2
    assert losses(rest) == losses(whole[start:])
    lines = (tmp_path / "broken" / "metrics.jsonl").read_text().splitlines()
    assert losses([json.loads(line) for line in lines]) == losses(whole)


def test_the_loss_falls(tmp_path: Path) -> None:
    model = new_model(tmp_path)

    def same(_: int) -> Iterator[dict[str, Any]]:
        while True:
            yield tiny_batch(model.parts, [[True, True], [True, False]])

    metrics = list(train(model, same, CONFIG.model_copy(update={"steps": 25}), tmp_path / "run"))
    assert np.mean([m["noise"] for m in metrics[-5:]]) < 0.8 * np.mean([m["noise"] for m in metrics[:5]])


def test_accumulated_micro_batches_weigh_as_one_batch(tmp_path: Path) -> None:
    """Two micro-batches of the same samples and draws have the gradient of one."""
    model = new_model(tmp_path)
    whole = tiny_batch(model.parts, [[True, True], [True, False]])
    draws = model.draw(whole, np.random.default_rng(0))
    once = model(whole, draws)["loss"]
    once.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for _ in range(2):
        (model(whole, draws)["loss"] / 2).backward()
    for name, parameter in model.named_parameters():
        if name in expected:
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, expected[name], atol=1e-6)
    metrics = run(tmp_path, tmp_path / "run", CONFIG.model_copy(update={"accumulation": 3, "steps": 2}))
    assert len(metrics) == 2


def test_a_moving_average_is_what_is_saved(tmp_path: Path) -> None:
    """With a decay of 0.5 after two steps: the saved weights lie between those of the steps."""
    config = CONFIG.model_copy(update={"steps": 2, "checkpoint_every": 1, "average": 0.5})
    run(tmp_path, tmp_path / "run", config)
    first, second = (load_file(p / "weights.safetensors") for p in complete_checkpoints(tmp_path / "run"))
    averages = [load_file(p / "average.safetensors") for p in complete_checkpoints(tmp_path / "run")]
    name = "unet.conv_in.weight"
    drift = (averages[1][name] - averages[0][name]).abs().max()
    assert 0 < drift < (second[name] - first[name]).abs().max() * 1.01
    saved = load_file(tmp_path / "run" / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(saved["conv_in.weight"], averages[1][name])


def test_a_loss_that_is_no_number_stops_the_run_with_step_keys_and_checkpoint(tmp_path: Path) -> None:
    model = new_model(tmp_path)

    def poisoned(done: int) -> Iterator[dict[str, Any]]:
        for number, batch in enumerate(batches_of(model)(done), start=done):
            yield {**batch, "pixel_values": batch["pixel_values"] * float("nan")} if number == 3 else batch

    with pytest.raises(ModelError, match=r"at step 3 is no number; .*checkpoints/00000002. .*: key0, key1\."):
        list(train(model, poisoned, CONFIG, tmp_path / "run"))
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_run_in_the_way_is_not_overwritten(tmp_path: Path) -> None:
    run(tmp_path, tmp_path / "run", CONFIG.model_copy(update={"steps": 1}))
    with pytest.raises(InputError, match="holds a run already: give --resume"):
        run(tmp_path, tmp_path / "run")
    with pytest.raises(InputError, match=r"learning_rate was 0\.001, now 0\.1"):
        run(tmp_path, tmp_path / "run", CONFIG.model_copy(update={"learning_rate": 0.1}), resume=True)
    assert len(run(tmp_path, tmp_path / "run", CONFIG.model_copy(update={"steps": 3}), resume=True)) == 2


@pytest.mark.parametrize("change", [{"precision": "bf16"}, {"gradient_checkpointing": True}])
def test_cheaper_arithmetic_stays_near(tmp_path: Path, change: dict[str, Any]) -> None:
    plain = run(tmp_path, tmp_path / "plain", CONFIG.model_copy(update={"steps": 2}))
    cheap = run(tmp_path, tmp_path / "cheap", CONFIG.model_copy(update={"steps": 2, **change}))
    for a, b in zip(plain, cheap, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=0.03 if change.get("precision") else 1e-4)


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    whole = run(tmp_path, tmp_path / "whole")
    script = (
        "import sys, torch; from pathlib import Path; from tests.training.test_train import run\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"  # sums over other threads have other last digits
        f"folder = Path({str(tmp_path)!r}); run(folder, folder / 'killed', resume=True)"
    )
    lines = tmp_path / "killed" / "metrics.jsonl"
    for wanted in (1, 3, 4):  # killed while these steps, their pictures or their checkpoints are under way
        process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", script], cwd=ROOT)
        while process.poll() is None and not (lines.exists() and len(lines.read_text().splitlines()) >= wanted):
            time.sleep(0.005)
        time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    run(tmp_path, tmp_path / "killed", resume=True)
    assert losses([json.loads(line) for line in lines.read_text().splitlines()]) == losses(whole)


@pytest.mark.slow
def test_two_processes_train_one_model_and_resume_together(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; from pathlib import Path; from tests.training.test_train import CONFIG, run\n"
        "config = CONFIG.model_copy(update={'steps': int(sys.argv[2])})\n"
        "run(Path(sys.argv[1]), Path(sys.argv[1]) / sys.argv[3], config, resume=True)\n"
    )

    def launch(name: str, steps: int) -> list[tuple[float, ...]]:
        command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc_per_node", "2"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        arguments = [str(script), str(tmp_path), str(steps), name]
        subprocess.run([*command, *arguments], check=True, cwd=ROOT, env=environment, capture_output=True)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return losses([json.loads(line) for line in lines])

    whole = launch("whole", 4)
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["processes"] == 2
    assert [line[0] for line in whole] == [0, 1, 2, 3]
    alone = run(tmp_path, tmp_path / "alone", CONFIG.model_copy(update={"steps": 4}))
    assert whole[0][1] != losses(alone)[0][1]  # the mean over two processes, each with noise of its own
    assert launch("broken", 2) == whole[:2]
    assert launch("broken", 4) == whole
    with pytest.raises(InputError, match="processes was 2, now 1"):
        run(tmp_path, tmp_path / "broken", resume=True)
