"""The training loop, for any model and its batches.

A run's folder holds

    RUN/config.json       the config, and where data and model came from
    RUN/metrics.jsonl     a line per step: losses, gradient norm, learning rate, samples per second
    RUN/tensorboard/      the same curves, and the sample pictures; only if tensorboard is installed
    RUN/samples/          pictures drawn for some samples, beside their own pictures and references
    RUN/skipped.txt       samples that could not be read, and why; absent if there are none
    RUN/checkpoints/      what a run is resumed from
    RUN/model/            the trained model (moving average of its weights), in Stable Diffusion's layout

Everything random in a step is drawn from (seed, step, process), and the batches are a function of (seed, epoch): a
resumed run yields the same numbers as one that was never interrupted. Weights, their average and the
optimizer's moments are the only state.
"""

import contextlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from diffusers.training_utils import EMAModel
from pydantic import Field
from torch import Tensor
from torch.nn import Parameter
from torchvision.utils import make_grid, save_image

from schemas.errors import InputError, ModelError
from schemas.machine import DEVICE
from training.checkpoint import (
    complete_checkpoints,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from training.diffusion import Batch, Draws
from training.resume import describe_change, samples_per_step, samples_read
from training.shards import LoadConfig, to_device

logger = logging.getLogger(__name__)


class RunConfig(LoadConfig):
    """How to train any model. The defaults are FastComposer's (mit-han-lab/fastcomposer), in each process."""

    steps: int = Field(default=150_000, gt=0, description="optimizer steps")
    accumulation: int = Field(default=1, gt=0, description="micro-batches per optimizer step")
    learning_rate: float = Field(default=1e-5, gt=0, description="of AdamW, constant after the warmup")
    warmup: int = Field(default=500, ge=0, description="steps in which the learning rate rises from 0")
    weight_decay: float = Field(default=0.01, ge=0, description="of AdamW")
    decay_all: bool = Field(default=True, description="weight decay applies to norms and biases too")
    clip: float = Field(default=1.0, gt=0, description="gradients of a larger norm are scaled down to this one")
    average: float = Field(default=0.9999, ge=0, lt=1, description="decay of the weights' moving average; 0: none")
    precision: Literal["no", "bf16"] = Field(default="no", description="mixed precision")
    gradient_checkpointing: bool = Field(
        default=False, description="save memory by running the U-Net's forward pass twice"
    )
    checkpoint_every: int = Field(default=500, gt=0, description="steps between checkpoints")
    keep: int = Field(default=2, gt=0, description="number of checkpoints that are kept, the newest ones")
    sample_every: int = Field(default=500, gt=0, description="steps between sample pictures")


class Trainable(Protocol):
    """A `torch.nn.Module` that the loop can train, such as `LatentDiffusion`."""

    unet: Any

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Compute the losses of a batch: scalars by name, of which "loss" is minimized."""

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield its parameters; those that require a gradient are trained."""

    def draw(self, batch: Batch, rng: np.random.Generator) -> Draws:
        """Draw everything random in a step on `batch`."""

    def sample(self, batch: Batch, noise: Tensor) -> Tensor:
        """Draw a picture for each sample, [B, 3, H, W] float32 in [0, 1]."""

    def references(self, batch: Batch) -> Tensor:
        """The pictures that condition each sample, [B, M, 3, h, w] float32 in [0, 1]; M may be 0."""

    def save(self, folder: Path) -> None:
        """Write the model to a new folder."""


Batches = Callable[[int], Iterator[Batch]]
"""Called with the number of samples that all processes have read so far; yields the next batches of this process,
without end."""

Metrics = dict[str, float]
"""A line of `metrics.jsonl`: the losses by name, and `NOT_LOSSES`."""

NOT_LOSSES = ("step", "gradient_norm", "learning_rate", "samples_per_second", "skipped")
"""The metrics that the loop adds to a model's losses."""

NOTE = "config.json"
"""File of the run's config."""

MAY_CHANGE = {"steps", "checkpoint_every", "keep", "sample_every", "workers", "gradient_checkpointing"}
"""Config fields that may differ when a run is resumed: they change no number."""

LAYOUT = {"processes", "batch", "accumulation"}
"""Those that may differ too, but change how many samples a step reads: the samples follow on those before."""


def train(  # noqa: C901 - a list of what happens in turn
    model: Trainable,
    batches: Batches,
    config: RunConfig,
    output: Path,
    *,
    resume: bool = False,
    show: Batch | None = None,
    origin: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = logger.warning,
) -> Generator[Metrics]:
    """Train `model`, and yield the metrics of each step when it is done.

    Several processes may run it together (`torchrun`): each uses batches of its own, all yield the same metrics.

    Args:
        model: trained in place; at the start it is the same in every process.
        batches: where the data comes from.
        config: how to train.
        output: the run's folder.
        resume: continue from the newest checkpoint; from the start if there is none.
        show: the samples that sample pictures are drawn for; None for no pictures.
        origin: further values that must be the same when the run is resumed, such as its data.
        report: called with a line if a resumed run reads another number of samples in a step.

    Raises:
        InputError: `output` holds a run and `resume` is false, or that run has another config or more steps; or it
            holds other files.
        ModelError: a loss is not finite: the message names the step, the samples and the last good checkpoint.
    """
    accelerator = Accelerator(mixed_precision=config.precision, cpu=this_process().device.type == "cpu")
    note = {"processes": accelerator.num_processes, **(origin or {}), **config.model_dump(mode="json")}
    before = read_note(output)
    if accelerator.is_main_process:
        check_run(output, note, resume)
    accelerator.wait_for_everyone()
    if config.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
    trainer = _Trainer.of(model, config, accelerator)
    start = trainer.restore(output)
    if start > config.steps:
        raise InputError(f"{output} has finished {start} steps: it cannot be resumed with --steps {config.steps}")
    per_step = samples_per_step(before, start, accelerator.num_processes * config.batch * config.accumulation)
    if accelerator.is_main_process:
        _write_note(output, {**note, "samples_per_step": per_step})
        if change := describe_change(per_step, start, accelerator.num_processes):
            report(change)
    stream = batches(samples_read(per_step, start))
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(_Log(output, start)) if accelerator.is_main_process else None
        for step in range(start, config.steps):
            metrics = trainer.step(step, stream, output)
            done = step + 1
            if log:
                log.add(metrics)
                if show is not None and (done % config.sample_every == 0 or done == config.steps):
                    log.add_picture(done, trainer.draw_samples(show))
                if done % config.checkpoint_every == 0 or done == config.steps:
                    trainer.save(output, done)
            yield metrics
    if accelerator.is_main_process:
        trainer.save_model(output / "model")
    accelerator.wait_for_everyone()


def this_process() -> PartialState:
    """Join the other processes of a launch, and return this one's rank, device and so on."""
    # On a machine without an accelerator, several processes join only if accelerate is set to use the CPU.
    return PartialState(cpu=os.environ.get(DEVICE) == "cpu" or not torch.accelerator.is_available())


def read_note(output: Path) -> dict[str, Any]:
    """Read the config that a run was started with; empty if there is no run."""
    note = output / NOTE
    return json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}


def _write_note(output: Path, note: Mapping[str, Any]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    (output / NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


def check_run(output: Path, intended: Mapping[str, Any], resume: bool) -> None:
    """Check that a run with the note `intended` may write to `output`.

    Raises:
        InputError: the folder holds another run, or other files.
    """
    before = read_note(output)
    if before:
        if not resume:
            raise InputError(f"{output} holds a run already: give --resume to go on with it, or another folder")
        free = MAY_CHANGE | LAYOUT
        changed = sorted(name for name in intended if before.get(name) != intended[name] and name not in free)
        if "recipe" in changed:
            changed = ["recipe"]
        if changed:
            difference = ", ".join(f"{name} was {before.get(name)}, now {intended[name]}" for name in changed)
            raise InputError(f"{output} cannot be resumed as another run: {difference}")
    elif output.exists() and (found := min(output.iterdir(), default=None)):
        raise InputError(
            f"{output} holds files that do not belong to a training run, such as {found.name}: "
            "name a new or an empty folder"
        )


def decay_groups(parameters: Iterable[Parameter], config: RunConfig) -> list[dict[str, Any]]:
    """Sort parameters into an optimizer's groups by weight decay. Norms and biases are those with a single axis."""
    groups: dict[float, list[Parameter]] = {}
    for parameter in parameters:
        decay = config.weight_decay if config.decay_all or parameter.ndim > 1 else 0.0
        groups.setdefault(decay, []).append(parameter)
    return [{"params": members, "weight_decay": decay} for decay, members in groups.items()]


@dataclass
class _Trainer:
    """The state of a run: weights, their moving average, the optimizer's moments."""

    model: Trainable
    wrapped: Any
    optimizer: Any
    average: EMAModel
    names: dict[Parameter, str]
    config: RunConfig
    accelerator: Accelerator

    @classmethod
    def of(cls, model: Trainable, config: RunConfig, accelerator: Accelerator) -> "_Trainer":
        names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
        optimizer = torch.optim.AdamW(decay_groups(names, config), lr=config.learning_rate)
        wrapped, optimizer = accelerator.prepare(model, optimizer)
        names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
        average = EMAModel(list(names), decay=config.average)
        average.to(accelerator.device)
        return cls(model, wrapped, optimizer, average, names, config, accelerator)

    def step(self, step: int, batches: Iterator[Batch], output: Path) -> Metrics:
        """Take one optimizer step; return its metrics, means over all processes."""
        config, began = self.config, time.perf_counter()
        rate = config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        sums: dict[str, Tensor] = {}
        keys: list[str] = []
        skipped: list[str] = []
        for micro in range(config.accumulation):
            batch = to_device(next(batches), self.accelerator.device)
            rng = np.random.default_rng([config.seed, step, micro, self.accelerator.process_index])
            draws = self.model.draw(batch, rng).to(self.accelerator.device)
            last = micro == config.accumulation - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                losses = self.wrapped(batch, draws)
                self.accelerator.backward(losses["loss"] / config.accumulation)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach().float()
            keys += batch["keys"]
            skipped += batch["skipped"]
        norm = self.accelerator.clip_grad_norm_(list(self.names), config.clip)
        means = self.accelerator.reduce(torch.stack(list(sums.values())) / config.accumulation, "mean").tolist()
        if not all(map(math.isfinite, (*means, float(norm)))):
            raise self._not_finite(step, keys, output)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.step(list(self.names))
        counts = torch.tensor([len(keys), len(skipped)], device=self.accelerator.device)
        read, lost = self.accelerator.reduce(counts, "sum").tolist()
        if lost:
            self._note(gather_object(skipped), output)
        return {
            "step": step,
            **dict(zip(sums, means, strict=True)),
            "gradient_norm": float(norm),
            "learning_rate": rate,
            "samples_per_second": round(read / (time.perf_counter() - began), 2),
            "skipped": lost,
        }

    def _note(self, skipped: list[str], output: Path) -> None:
        if self.accelerator.is_main_process:
            with (output / "skipped.txt").open("a", encoding="utf-8") as lines:
                lines.writelines(f"{line}\n" for line in skipped)

    def _not_finite(self, step: int, keys: list[str], output: Path) -> ModelError:
        keys = sorted(gather_object(keys))
        saved = complete_checkpoints(output)
        good = f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"
        return ModelError(
            f"the loss or its gradient at step {step} is not finite; {good}. The samples of this step: "
            f"{', '.join(keys)}. Look at them, or give a smaller learning_rate or precision: 'no'"
        )

    def save(self, output: Path, done: int) -> None:
        """Write a checkpoint after `done` steps."""
        weights = {name: parameter for parameter, name in self.names.items()}
        averages = dict(zip(self.names.values(), self.average.shadow_params, strict=True))
        tensors = {
            "weights": weights,
            "average": averages,
            "optimizer": optimizer_tensors(self.optimizer.optimizer, self.names),
        }
        save_checkpoint(output, done, tensors, {"average_steps": self.average.optimization_step}, self.config.keep)

    def restore(self, output: Path) -> int:
        """Load the newest checkpoint, if there is one; return the number of steps finished by then."""
        saved = complete_checkpoints(output)
        if not saved:
            return 0
        tensors, state = load_checkpoint(saved[-1])
        with torch.no_grad():
            for (parameter, name), shadow in zip(self.names.items(), self.average.shadow_params, strict=True):
                parameter.copy_(tensors["weights"][name])
                shadow.copy_(tensors["average"][name])
        restore_optimizer(self.optimizer.optimizer, self.names, tensors["optimizer"])
        self.average.optimization_step = state["average_steps"]
        return int(state["step"])

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Swap in the moving average of the weights for the duration of the block."""
        if not self.config.average:
            yield
            return
        self.average.store(list(self.names))
        self.average.copy_to(list(self.names))
        try:
            yield
        finally:
            self.average.restore(list(self.names))

    def draw_samples(self, show: Batch) -> Tensor:
        """Draw a sheet with a row for each sample of `show`: [3, height, width] float32 in [0, 1].

        A row holds the picture drawn, always from the same noise, the sample's own picture, and its references.
        """
        batch = to_device(show, self.accelerator.device)
        noise = self.model.draw(batch, np.random.default_rng([self.config.seed, 0])).noise
        with self._averaged(), self.accelerator.autocast():
            drawn = self.model.sample(batch, noise.to(self.accelerator.device)).cpu()
        own, references = show["pixel_values"] / 2 + 0.5, self.model.references(show)
        scaled = F.interpolate(references.flatten(0, 1), own.shape[-2:]).view(*references.shape[:3], *own.shape[-2:])
        rows = torch.cat([drawn[:, None], own[:, None], scaled], dim=1)
        return make_grid(rows.flatten(0, 1), nrow=rows.shape[1])

    def save_model(self, folder: Path) -> None:
        """Write the model with the moving average of its weights."""
        aside = folder.with_name(f".{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        with self._averaged():
            self.model.save(aside)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)


class _Log:
    """Writes metrics and sample pictures, after deleting what an interrupted run wrote after its last checkpoint."""

    def __init__(self, output: Path, start: int) -> None:
        self.output = output
        self.path = output / "metrics.jsonl"
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.path.write_text("".join(f"{line}\n" for line in lines[:start]), encoding="utf-8")
        self.board = _tensorboard(output / "tensorboard", start)

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *_: object) -> None:
        if self.board:
            self.board.close()

    def add(self, metrics: Metrics) -> None:
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(metrics) + "\n")
        if self.board:
            for name in metrics.keys() - {"step"}:
                self.board.add_scalar(name, metrics[name], int(metrics["step"]))

    def add_picture(self, done: int, sheet: Tensor) -> None:
        folder = self.output / "samples"
        folder.mkdir(exist_ok=True)
        save_image(sheet, folder / f"{done:08d}.png")
        if self.board:
            self.board.add_image("samples", sheet, done)


def _tensorboard(folder: Path, start: int) -> Any:  # noqa: ANN401 - a SummaryWriter
    """Open a TensorBoard log that continues at step `start`; None if tensorboard is not installed."""
    if find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - it needs tensorboard

    return SummaryWriter(str(folder), purge_step=start)
