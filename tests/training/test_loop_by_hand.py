"""The training loop with a model of a single weight, for which every number can be worked out by hand."""

import contextlib
import itertools
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import training.loop
import training.trainer
from schemas.errors import ConfigError, InputError, ModelError
from tests.training import processes
from tests.training.line import CONFIG, Line, Root, batch_of, checkpoint_of, moments, run, saved_weight, slopes
from training.checkpoint import CheckpointWriter
from training.config import RunConfig
from training.diffusion import Batch
from training.log import NOT_LOSSES
from training.loop import train
from training.resume import complete_checkpoints
from training.trainer import Trainer


def test_the_gradient_of_accumulated_micro_batches_is_their_mean(tmp_path: Path) -> None:
    """The mean is (0.2 + 0.5 + 0.8) / 3. AdamW's step would be the same for the sum; its moments differ."""
    config = CONFIG.model_copy(update={"steps": 1, "accumulation": 3, "clip": 100.0})
    (metrics,) = run(tmp_path / "run", config, slopes(0.2, 0.5, 0.8))
    assert metrics["gradient_norm"] == pytest.approx(0.5)
    assert moments(tmp_path / "run") == pytest.approx((0.1 * 0.5, 0.001 * 0.25))


@pytest.mark.parametrize(("slope", "clipped"), [(4.0, 0.5), (-4.0, -0.5), (0.4, 0.4)])
def test_a_large_gradient_is_scaled_down_to_the_norm_limit(tmp_path: Path, slope: float, clipped: float) -> None:
    config = CONFIG.model_copy(update={"steps": 1, "clip": 0.5})
    (metrics,) = run(tmp_path / "run", config, slopes(slope))
    assert metrics["gradient_norm"] == pytest.approx(abs(slope))  # before clipping
    assert moments(tmp_path / "run") == pytest.approx((0.1 * clipped, 0.001 * clipped**2), rel=1e-4)


def test_gradients_do_not_carry_over_to_the_next_step(tmp_path: Path) -> None:
    metrics = run(tmp_path / "run", CONFIG.model_copy(update={"clip": 100.0}), slopes(2.0, 3.0))
    assert [line["gradient_norm"] for line in metrics] == pytest.approx([2.0, 3.0])


@pytest.mark.parametrize(("warmup", "rates"), [(0, [0.1, 0.1, 0.1]), (2, [0.05, 0.1, 0.1]), (4, [0.025, 0.05, 0.075])])
def test_the_learning_rate_rises_to_its_constant_value(tmp_path: Path, warmup: int, rates: list[float]) -> None:
    metrics = run(tmp_path / "run", CONFIG.model_copy(update={"steps": 3, "warmup": warmup}))
    assert [line["learning_rate"] for line in metrics] == pytest.approx(rates)
    assert checkpoint_of(tmp_path / "run", "weights") == {"weight": pytest.approx(-sum(rates))}


def test_weights_decay_by_learning_rate_times_weight_decay(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"steps": 1, "weight_decay": 0.5})
    list(train(Line(2.0), slopes(1.0), config, tmp_path / "run"))
    assert saved_weight(tmp_path / "run") == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1)


@pytest.mark.parametrize(("average", "expected"), [(0.5, -(2 / 11 * 0.1 + 9 / 11 * 0.2)), (0.1, -0.19), (0.0, -0.2)])
def test_the_saved_model_holds_the_moving_average(tmp_path: Path, average: float, expected: float) -> None:
    """The weight is -0.1 after the first step and -0.2 after the second.

    The average starts with the first, then its decay is the smaller of `average` and (1 + 1) / (10 + 1).
    """
    model = Line()
    list(train(model, slopes(1.0), CONFIG.model_copy(update={"average": average}), tmp_path / "run"))
    assert saved_weight(tmp_path / "run") == pytest.approx(expected)
    folder = complete_checkpoints(tmp_path / "run")[-1]
    assert (folder / "average.safetensors").exists() == (average > 0)
    kind = "average" if average else "weights"
    assert checkpoint_of(tmp_path / "run", kind) == {"weight": pytest.approx(expected)}
    assert model.weight.item() == pytest.approx(-0.2)


def test_metrics_are_means_over_micro_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses -0.2 and -0.4 of the weight -0.1; three samples in 4 seconds."""
    monkeypatch.setattr(training.trainer, "time", SimpleNamespace(perf_counter=iter([0.0, 1.0, 10.0, 14.0]).__next__))
    batches = [
        batch_of(1.0),
        batch_of(1.0),
        batch_of(2.0, "ab", ["c: no JPEG"]),
        batch_of(4.0, "d", ["e: cut", "f: x"]),
    ]
    config = CONFIG.model_copy(update={"accumulation": 2, "clip": 100.0})
    metrics = run(tmp_path / "run", config, lambda _: iter(batches))
    assert metrics[1] == {
        "step": 1,
        "loss": pytest.approx(-0.3),
        "doubled": pytest.approx(-0.6),
        "gradient_norm": pytest.approx(3.0),
        "learning_rate": 0.1,
        "samples_per_second": 0.75,
        "skipped": 3,
    }
    assert metrics[0]["skipped"] == 0
    assert metrics[0].keys() == {"loss", "doubled", *NOT_LOSSES}
    assert (tmp_path / "run" / "skipped.txt").read_text() == "c: no JPEG\ne: cut\nf: x\n"


def test_without_skipped_samples_there_is_no_list_of_them(tmp_path: Path) -> None:
    run(tmp_path / "run")
    assert not (tmp_path / "run" / "skipped.txt").exists()


def test_processes_exchange_gradients_only_after_the_last_micro_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the first two of three micro-batches is computed within `no_sync`."""
    model = Line()
    computed: list[int] = []

    @contextlib.contextmanager
    def no_sync(_accelerator: Accelerator, _model: object) -> Iterator[None]:
        computed.append(len(model.autocast))
        yield
        computed.append(len(model.autocast))

    monkeypatch.setattr(Accelerator, "no_sync", no_sync)
    list(train(model, slopes(1.0), CONFIG.model_copy(update={"steps": 1, "accumulation": 3}), tmp_path / "run"))
    assert computed == [0, 1, 1, 2]


def train_in_one_of_two_processes(output: Path) -> None:
    """Train with a slope of 1 in the first process and of 3 in the second; then with a slope of NaN in the second."""
    rank = int(os.environ["RANK"])
    sound = batch_of(1.0 + 2 * rank, [f"key{rank}"], [f"damaged{rank}"])
    model = Line()
    config = CONFIG.model_copy(update={"clip": 100.0, "held_out_every": 1})
    held_out = [batch_of(2.0, "ab"), batch_of(5.0, "c"), batch_of(8.0, "d")]  # the second is the second process's
    list(train(model, lambda _: itertools.repeat(sound), config, output / "run", held_out=held_out))
    assert model.numbers == [np.random.default_rng([5, step, 0, rank]).random() for step in range(2)]
    damaged = {**sound, "slope": [1.0, math.nan][rank]}
    with pytest.raises(ModelError, match=r"step 0 is not finite; .* The samples of this step: key0, key1"):
        list(train(Line(), lambda _: itertools.repeat(damaged), CONFIG, output / "damaged"))


def test_two_processes_average_their_losses_and_gradients(tmp_path: Path) -> None:
    """After the first step the weight is -0.1 in both, so the losses are -0.1 and -0.3."""
    processes.run_together(2, tmp_path / "rendezvous", train_in_one_of_two_processes, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == pytest.approx([0.0, -0.2])
    assert [line["gradient_norm"] for line in lines] == pytest.approx([2.0, 2.0])
    mean = (2 * 2.0 + 5.0 + 8.0) / 4
    assert [line["held_out"] for line in lines] == pytest.approx([mean * -0.1, mean * -0.2])
    assert [line["skipped"] for line in lines] == [2, 2]
    assert (tmp_path / "run" / "skipped.txt").read_text() == "damaged0\ndamaged1\n" * 2


def test_each_micro_batch_draws_from_seed_step_and_its_number(tmp_path: Path) -> None:
    model = Line()
    config = CONFIG.model_copy(update={"accumulation": 2})
    list(train(model, slopes(1.0), config, tmp_path / "run"))
    places = itertools.product(range(2), range(2))
    assert model.numbers == [np.random.default_rng([5, step, micro, 0]).random() for step, micro in places]


def test_a_resumed_run_continues_batches_metrics_and_average(tmp_path: Path) -> None:
    """The third step is lost: the run was interrupted after it, and the newest checkpoint is that of the second."""
    asked: list[int] = []

    def batches(start: int) -> Iterator[Batch]:
        asked.append(start)
        return slopes(1.0, 0.5, -2.0)(start)

    config = CONFIG.model_copy(update={"steps": 4, "accumulation": 2, "average": 0.5, "checkpoint_every": 2})
    whole = run(tmp_path / "whole", config, batches)
    running = train(Line(), batches, config, tmp_path / "broken")
    for _ in range(3):
        next(running)
    running.close()
    rest = run(tmp_path / "broken", config, batches, resume=True)
    assert asked == [0, 0, 4 * CONFIG.batch]
    lines = [json.loads(line) for line in (tmp_path / "broken" / "metrics.jsonl").read_text().splitlines()]
    for line in (*whole, *rest, *lines):
        del line["samples_per_second"]
    assert lines == whole
    assert rest == whole[2:]
    for kind in ("weights", "average", "optimizer"):
        assert checkpoint_of(tmp_path / "broken", kind) == checkpoint_of(tmp_path / "whole", kind)
    assert saved_weight(tmp_path / "broken") == saved_weight(tmp_path / "whole")


def test_checkpoints_and_pictures_are_written_at_their_steps_and_at_the_end(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"steps": 7, "checkpoint_every": 3, "sample_every": 2, "keep": 9})
    run(tmp_path / "run", config, show=sheet_batch())
    assert [path.name for path in complete_checkpoints(tmp_path / "run")] == ["00000003", "00000006", "00000007"]
    pictures = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert pictures == ["00000002.png", "00000004.png", "00000006.png", "00000007.png"]


def test_a_picture_that_cannot_be_drawn_is_reported_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the drawing fails, the checkpoint of that step is there already."""
    saved: list[int] = []

    def save(_self: Trainer, _writer: CheckpointWriter, done: int, *, moments: bool) -> None:
        del moments
        saved.append(done)

    monkeypatch.setattr(Trainer, "save", save)

    def sample(_self: Line, batch: Batch, noise: Tensor) -> Tensor:
        del batch, noise
        saved.append(-1)
        raise RuntimeError("out of\n memory")

    monkeypatch.setattr(Line, "sample", sample)
    reported: list[str] = []
    config = CONFIG.model_copy(update={"steps": 3, "checkpoint_every": 2, "sample_every": 2})
    metrics = run(tmp_path / "run", config, show=sheet_batch(), report=reported.append)
    assert len(metrics) == 3
    assert saved == [2, -1, 3, -1]
    assert reported == [f"no sample pictures at step {step}: RuntimeError('out of\\n memory')" for step in (2, 3)]
    assert saved_weight(tmp_path / "run") == pytest.approx(-0.3)


def test_a_run_is_resumed_from_the_newest_checkpoint_with_moments(tmp_path: Path) -> None:
    """The second and the fourth checkpoint hold the moments, and the last one, which ends the run."""
    config = CONFIG.model_copy(update={"steps": 7, "checkpoint_every": 1, "moments_every": 2, "keep": 9})
    batches = slopes(1.0, 0.5, -2.0)
    running = train(Line(), batches, config, tmp_path / "broken")
    for _ in range(5):
        next(running)
    running.close()
    folders = complete_checkpoints(tmp_path / "broken")
    assert [int(path.name) for path in folders] == [1, 2, 3, 4, 5]
    assert [(path / "optimizer.safetensors").exists() for path in folders] == [False, True, False, True, False]
    rest = run(tmp_path / "broken", config, batches, resume=True)
    whole = run(tmp_path / "whole", config, batches)
    for line in (*whole, *rest):
        del line["samples_per_second"]
    assert rest == whole[4:]
    for kind in ("weights", "optimizer"):
        assert checkpoint_of(tmp_path / "broken", kind) == checkpoint_of(tmp_path / "whole", kind)
    assert (complete_checkpoints(tmp_path / "broken")[-1] / "optimizer.safetensors").exists()


def test_the_held_out_loss_is_the_mean_over_samples_under_the_average(tmp_path: Path) -> None:
    """Slopes of 2, 2 and 5 for the weight's average; a step does not use them."""
    held_out = [batch_of(2.0, "ab"), batch_of(5.0, "c")]
    config = CONFIG.model_copy(update={"steps": 5, "held_out_every": 2, "average": 0.5})
    model = Line()
    metrics = list(train(model, slopes(1.0), config, tmp_path / "run", held_out=held_out))
    assert ["held_out" in line for line in metrics] == [False, True, False, True, True]
    average = 2 / 11 * -0.1 + 9 / 11 * -0.2
    assert metrics[1]["held_out"] == pytest.approx(3 * average)
    assert model.weight.item() == pytest.approx(-0.5)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines == metrics


def accelerator_with_scaler(config: RunConfig) -> Accelerator:
    """What fp16 has on a GPU: a scaler of the losses."""
    assert config.precision == "fp16"
    accelerator = Accelerator(mixed_precision="fp16", cpu=True)
    accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler("cpu")
    return accelerator


def test_a_step_whose_scaled_gradient_overflows_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scale is 65536 at first: 1e35 times that is infinite in single precision."""
    monkeypatch.setattr(training.loop, "new_accelerator", accelerator_with_scaler)
    fields = {"steps": 4, "precision": "fp16", "average": 0.5, "checkpoint_every": 1, "keep": 9}
    config = CONFIG.model_copy(update=fields)
    batches = slopes(1e35, 1.0, 1e35, 1.0)
    metrics = run(tmp_path / "run", config, batches)
    assert ["gradient_norm" in line for line in metrics] == [False, True, False, True]
    assert saved_weight(tmp_path / "run") == pytest.approx(2 / 11 * -0.1 + 9 / 11 * -0.2)
    states = [json.loads((path / "state.json").read_text()) for path in complete_checkpoints(tmp_path / "run")]
    assert [state["scaler"]["scale"] for state in states] == [2.0**15, 2.0**15, 2.0**14, 2.0**14]
    assert [state["average_steps"] for state in states] == [0, 1, 1, 2]
    shutil.rmtree(complete_checkpoints(tmp_path / "run")[-1])
    rest = run(tmp_path / "run", config, batches, resume=True)
    assert rest[0]["loss"] == metrics[3]["loss"]
    state = json.loads((complete_checkpoints(tmp_path / "run")[-1] / "state.json").read_text())
    assert state == states[3]


def test_gradients_that_overflow_at_any_scale_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The root's gradient is infinite at 0, however small the scale is: after 17 halvings it is below 1."""
    monkeypatch.setattr(training.loop, "new_accelerator", accelerator_with_scaler)
    config = CONFIG.model_copy(update={"steps": 30, "precision": "fp16"})
    with pytest.raises(ModelError, match="at step 17 is not finite"):
        list(train(Root(), slopes(1.0), config, tmp_path / "run"))


def test_fp16_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="precision fp16 needs a GPU: set precision to bf16"):
        run(tmp_path / "run", CONFIG.model_copy(update={"precision": "fp16"}))
    assert not (tmp_path / "run").exists()


def test_with_a_schedule_over_all_steps_their_number_cannot_change(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"schedule": "linear"})
    metrics = run(tmp_path / "run", config)
    assert [line["learning_rate"] for line in metrics] == pytest.approx([0.1, 0.05])
    with pytest.raises(InputError, match="cannot be resumed as another run: steps was 2, now 3"):
        run(tmp_path / "run", config.model_copy(update={"steps": 3}), resume=True)


def test_without_samples_to_show_no_pictures_are_drawn(tmp_path: Path) -> None:
    run(tmp_path / "run")
    assert not (tmp_path / "run" / "samples").exists()


def sheet_batch() -> Batch:
    """Two samples, each with a picture of its own and two references."""
    own = torch.stack([torch.full((3, 2, 2), value) for value in (-1.0, 1.0)])
    references = torch.tensor([[0.2, 0.4], [0.6, 0.8]]).view(2, 2, 1, 1, 1).expand(-1, -1, 3, 1, 1)
    return {**batch_of(0.0, "ab"), "pixel_values": own, "reference_pixel_values": references}


@pytest.mark.parametrize("average", [0.5, 0.0])
def test_a_row_of_the_sheet_shows_drawn_picture_own_picture_and_references(tmp_path: Path, average: float) -> None:
    """Slopes of -1 raise the weight from 0.3 to 0.4 and 0.5; their average is 2/11 of 0.4 plus 9/11 of 0.5."""
    config = CONFIG.model_copy(update={"average": average, "sample_every": 1})
    list(train(Line(0.3), slopes(-1.0), config, tmp_path / "run", show=sheet_batch()))
    red = 2 / 11 * 0.4 + 9 / 11 * 0.5 if average else 0.5
    green = np.random.default_rng([5, 0]).random()
    with Image.open(tmp_path / "run" / "samples" / "00000002.png") as sheet:
        pixels = np.asarray(sheet)
    cells = pixels[3::4, 3::4]  # a pixel of each picture: 2 x 2 pixels with borders of 2
    assert pixels.shape == (2 * 4 + 2, 4 * 4 + 2, 3)
    expected = [[[red, green, 0], *([[v] * 3 for v in row])] for row in ([0, 0.2, 0.4], [1, 0.6, 0.8])]
    np.testing.assert_allclose(cells / 255, expected, atol=0.003)
    with Image.open(tmp_path / "run" / "samples" / "00000001.png") as sheet:
        assert abs(sheet.getpixel((3, 3))[1] / 255 - green) < 0.003  # type: ignore[index] # the same noise


def test_tensorboard_gets_every_metric_once_also_when_a_run_is_resumed(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"steps": 4, "checkpoint_every": 2, "sample_every": 4})
    running = train(Line(), slopes(1.0), config, tmp_path / "run")
    first = [next(running) for _ in range(3)]
    running.close()
    run(tmp_path / "run", config, resume=True, show=sheet_batch())
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    assert set(board.Tags()["scalars"]) == first[0].keys() - {"step"}
    assert [event.step for event in board.Scalars("loss")] == [0, 1, 2, 3]
    assert [event.value for event in board.Scalars("loss")] == pytest.approx([0.0, -0.1, -0.2, -0.3])
    assert [event.step for event in board.Images("samples")] == [4]


def test_without_tensorboard_metrics_and_pictures_are_written_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    metrics = run(tmp_path / "run", show=sheet_batch())
    assert [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()] == metrics
    assert (tmp_path / "run" / "samples" / "00000002.png").is_file()
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_a_new_model_replaces_that_of_an_earlier_run(tmp_path: Path) -> None:
    run(tmp_path / "run")
    for leftover in ("model", ".model"):  # the second is left behind by a run that was killed while saving
        (tmp_path / "run" / leftover).mkdir(exist_ok=True)
        (tmp_path / "run" / leftover / "leftover").touch()
    run(tmp_path / "run", resume=True)
    assert [path.name for path in (tmp_path / "run" / "model").iterdir()] == ["weight.json"]
    assert not (tmp_path / "run" / ".model").exists()


def test_the_config_of_a_run_is_written_with_its_origin(tmp_path: Path) -> None:
    """With nothing to resume, the run starts from the beginning; folders above its own are created."""
    output = tmp_path / "runs" / "first"
    run(output, resume=True, origin={"data": "here"})
    note = json.loads((output / "config.json").read_text())
    samples = {"samples_per_step": [[0, CONFIG.batch]]}
    assert note == {"processes": 1, "data": "here", **CONFIG.model_dump(mode="json"), **samples}


def test_gradient_checkpointing_is_switched_on_only_if_asked_for(tmp_path: Path) -> None:
    for wanted in (False, True):
        model = Line()
        config = CONFIG.model_copy(update={"gradient_checkpointing": wanted})
        list(train(model, slopes(1.0), config, tmp_path / str(wanted)))
        assert model.calls == ["checkpointing"] * wanted


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_steps_and_sample_pictures_are_computed_in_the_precision_asked_for(tmp_path: Path, precision: str) -> None:
    model = Line()
    config = CONFIG.model_copy(update={"precision": precision})
    list(train(model, slopes(1.0), config, tmp_path / "run", show=sheet_batch()))
    assert model.autocast == [precision == "bf16"] * 3  # two steps and a picture
