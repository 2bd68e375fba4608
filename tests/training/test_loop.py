import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from schemas.errors import ConfigError, InputError, ModelError
from tests.paths import ROOT
from tests.training import processes
from tests.training.models import tiny_batch, tiny_parts
from tests.training.runs import CONFIG, batches_of, losses, losses_of_run, new_model, run, run_on
from training.checkpoint import complete_checkpoints
from training.diffusion import Draws
from training.loop import RunConfig, train
from training.recipes import TRAININGS, training_of


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


def test_the_yielded_metrics_are_written_and_tensorboard_is_optional(
    vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    show = tiny_batch(tiny_parts(vae), [[True, True]])
    metrics = run(vae, tmp_path / "run", CONFIG.model_copy(update={"steps": 1}), show=show)
    assert [json.loads((tmp_path / "run" / "metrics.jsonl").read_text())] == metrics
    assert (tmp_path / "run" / "samples" / "00000001.png").is_file()
    assert not (tmp_path / "run" / "tensorboard").exists()


@pytest.mark.parametrize("stop", [1, 2, 3])
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

    config = CONFIG.model_copy(update={"steps": 20, "checkpoint_every": 20})
    metrics = list(train(model, repeated, config, tmp_path / "run"))
    assert np.mean([m["noise"] for m in metrics[-5:]]) < 0.8 * np.mean([m["noise"] for m in metrics[:5]])


class Line(torch.nn.Module):
    """A stand-in for a model: its loss is `slope` times its weight, so its gradient is always `slope`."""

    unet: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, batch: dict[str, Any], draws: Draws) -> dict[str, torch.Tensor]:
        return {"loss": batch["slope"] * self.weight * draws.noise}

    def draw(self, batch: object, rng: np.random.Generator) -> Draws:
        del batch, rng
        return Draws(torch.ones(()), torch.ones(()), torch.ones(()))

    def sample(self, batch: object, noise: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def references(self, batch: object) -> torch.Tensor:
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        folder.mkdir()


def slopes(*values: float) -> Any:  # noqa: ANN401
    return lambda _: iter([{"slope": value, "keys": ["key"], "skipped": []} for value in values])


def moments(output: Path) -> tuple[float, float]:
    """AdamW's moments after one step: 0.1 times the gradient, and 0.001 times its square."""
    state = load_file(complete_checkpoints(output)[-1] / "optimizer.safetensors")
    return state["weight/exp_avg"].item(), state["weight/exp_avg_sq"].item()


def test_the_gradient_of_accumulated_micro_batches_is_their_mean(tmp_path: Path) -> None:
    """The mean is (0.2 + 0.5 + 0.8) / 3. AdamW's step would be the same for the sum; its moments differ."""
    config = RunConfig(steps=1, accumulation=3, clip=100.0)
    (metrics,) = train(Line(), slopes(0.2, 0.5, 0.8), config, tmp_path / "run")
    assert metrics["gradient_norm"] == pytest.approx(0.5)
    assert moments(tmp_path / "run") == pytest.approx((0.1 * 0.5, 0.001 * 0.25))


@pytest.mark.parametrize(("slope", "clipped"), [(4.0, 0.5), (-4.0, -0.5), (0.4, 0.4)])
def test_a_large_gradient_is_scaled_down_to_the_norm_limit(tmp_path: Path, slope: float, clipped: float) -> None:
    (metrics,) = train(Line(), slopes(slope), RunConfig(steps=1, clip=0.5), tmp_path / "run")
    assert metrics["gradient_norm"] == pytest.approx(abs(slope))  # before clipping
    assert moments(tmp_path / "run") == pytest.approx((0.1 * clipped, 0.001 * clipped**2), rel=1e-4)


def test_the_losses_of_micro_batches_are_averaged(vae: Path, tmp_path: Path) -> None:
    """The loss of a step of two micro-batches is the mean of their losses."""
    config = CONFIG.model_copy(update={"accumulation": 2, "steps": 1})
    (metrics,) = run(vae, tmp_path / "run", config)
    model = new_model(vae)
    stream = batches_of(model)(0)
    expected = []
    for micro in range(2):
        batch = next(stream)
        draws = model.draw(batch, np.random.default_rng([config.seed, 0, micro, 0]))
        with torch.no_grad():
            expected.append(model(batch, draws)["loss"].item())
    assert metrics["loss"] == pytest.approx(np.mean(expected), rel=1e-5)


def test_the_saved_model_holds_the_moving_average(vae: Path, tmp_path: Path) -> None:
    """With a decay of 0.5, the average after two steps lies between the weights after each of them."""
    config = CONFIG.model_copy(update={"steps": 2, "checkpoint_every": 1, "average": 0.5})
    run(vae, tmp_path / "run", config)
    first, second = (load_file(p / "weights.safetensors") for p in complete_checkpoints(tmp_path / "run"))
    averages = [load_file(p / "average.safetensors") for p in complete_checkpoints(tmp_path / "run")]
    name = "unet.conv_in.weight"
    drift = (averages[1][name] - averages[0][name]).abs().max()
    assert 0 < drift < (second[name] - first[name]).abs().max() * 1.01
    saved = load_file(tmp_path / "run" / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(saved["conv_in.weight"], averages[1][name])


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_keys_and_checkpoint(vae: Path, tmp_path: Path) -> None:
    model = new_model(vae)

    def with_a_nan(done: int) -> Iterator[dict[str, Any]]:
        for number, batch in enumerate(batches_of(model)(done), start=done):
            yield {**batch, "pixel_values": batch["pixel_values"] * math.nan} if number == 3 else batch

    with pytest.raises(ModelError, match=r"at step 3 is not finite; .*checkpoints/00000002. .*: key0, key1\."):
        list(train(model, with_a_nan, CONFIG, tmp_path / "run"))
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


def test_an_existing_run_is_not_overwritten(vae: Path, tmp_path: Path) -> None:
    run(vae, tmp_path / "run", CONFIG.model_copy(update={"steps": 1}))
    with pytest.raises(InputError, match="holds a run already: give --resume"):
        run(vae, tmp_path / "run")
    with pytest.raises(InputError, match=r"learning_rate was 0\.001, now 0\.1"):
        run(vae, tmp_path / "run", CONFIG.model_copy(update={"learning_rate": 0.1}), resume=True)
    assert len(run(vae, tmp_path / "run", CONFIG.model_copy(update={"steps": 3}), resume=True)) == 2


@pytest.mark.parametrize("change", [{"precision": "bf16"}, {"gradient_checkpointing": True}])
def test_half_precision_and_gradient_checkpointing_change_the_loss_little(
    vae: Path, whole: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    plain = losses_of_run(whole)[:2]
    cheap = losses(run(vae, tmp_path / "cheap", CONFIG.model_copy(update={"steps": 2, **change})))
    for a, b in zip(plain, cheap, strict=True):
        assert b[1] == pytest.approx(a[1], rel=0.03 if change.get("precision") else 1e-4)
        assert ("precision" in change) == (a[1] != b[1])


def test_a_killed_run_is_resumed_with_the_same_numbers(vae: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "killed"
    lines = output / "metrics.jsonl"
    for wanted in (1, 3, 4):  # killed during these steps or their checkpoints
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
    with pytest.raises(InputError, match="processes was 2, now 1"):
        run(vae, tmp_path / "broken", CONFIG.model_copy(update={"steps": 4}), resume=True)


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
