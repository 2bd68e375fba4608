"""The state of a training run, and one step of it."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn import Parameter
from torchvision.utils import make_grid

from schemas.errors import ModelError
from training.checkpoint import (
    CheckpointWriter,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    resumable_checkpoints,
)
from training.config import RunConfig
from training.diffusion import Batch, Draws
from training.latents import LatentCache, complete
from training.log import Metrics, note_skipped
from training.optimize import averaged, learning_rates, new_optimizer
from training.resume import complete_checkpoints
from training.sharding import divided_like, gathered, joined_like, own_part, shard, whole
from training.shards import to_device
from training.timesteps import TimeSampling


class Trainable(Protocol):
    """A `torch.nn.Module` that the loop can train, such as `LatentDiffusion`."""

    unet: Any
    min_snr: float
    noise_offset: float
    time_sampling: TimeSampling

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Compute the losses of a batch: scalars by name, of which "loss" is minimized."""

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield its parameters; those that require a gradient are trained."""

    def draw(self, batch: Batch, rng: np.random.Generator) -> Draws:
        """Draw everything random in a step on `batch`."""

    def fixed_draws(self, batch: Batch, seed: int) -> Draws:
        """What is random in a step on `batch`, each sample's a function of (seed, key), for comparing losses."""

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Encode pictures [B, 3, H, W] as the parameters of their posteriors, [B, 2C, h, w]."""

    def sample(self, batch: Batch, noise: Tensor) -> Tensor:
        """Draw a picture for each sample, [B, 3, H, W] float32 in [0, 1]."""

    def references(self, batch: Batch) -> Tensor:
        """The pictures that condition each sample, [B, M, 3, h, w] float32 in [0, 1]; M may be 0."""

    def save(self, folder: Path) -> None:
        """Write the model to a new folder."""


@dataclass
class Trainer:
    """The state of a run: weights, their moving average if there is one, the optimizer's moments."""

    model: Trainable
    wrapped: Any
    optimizer: Any
    rate: Callable[[int], float]
    average: EMAModel | None
    names: dict[Parameter, str]
    config: RunConfig
    accelerator: Accelerator
    latents: LatentCache | None = None

    @classmethod
    def of(
        cls, model: Trainable, config: RunConfig, accelerator: Accelerator, latents: LatentCache | None = None
    ) -> "Trainer":
        """Start a run with a model that is set up."""
        if config.fsdp and accelerator.num_processes > 1:
            wrapped = accelerator.prepare_model(model, evaluation_mode=True)  # autocast, but no copy in each process
            shard(model, accelerator.device, accelerator.num_processes)
            optimizer = accelerator.prepare(new_optimizer(trained_parameters(model), config))
        else:
            wrapped, optimizer = accelerator.prepare(model, new_optimizer(trained_parameters(model), config))
        names = trained_parameters(model)
        average = EMAModel(list(map(own_part, names)), decay=config.average, foreach=True) if config.average else None
        if average:
            average.to(accelerator.device)
        return cls(model, wrapped, optimizer, learning_rates(config), average, names, config, accelerator, latents)

    def step(self, step: int, batches: Iterator[Batch], output: Path, writer: CheckpointWriter | None) -> Metrics:
        """Take one optimizer step; return its metrics, means over all processes."""
        config, began, rate = self.config, time.perf_counter(), self.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        sums: dict[str, Tensor] = {}
        keys: list[str] = []
        skipped: list[str] = []
        for micro in range(config.accumulation):
            batch = to_device(next(batches), self.accelerator.device)
            if self.latents:
                with self.accelerator.autocast():
                    batch = complete(self.latents, batch, self.model.encode_pixels)
            rng = np.random.default_rng([config.seed, step, micro, self.accelerator.process_index])
            draws = self.model.draw(batch, rng).to(self.accelerator.device)
            last = micro == config.accumulation - 1
            with self._exchanging(last):
                losses = self.wrapped(batch, draws)
                self.accelerator.backward(losses["loss"] / config.accumulation)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach().float()
            keys += batch["keys"]
            skipped += batch["skipped"]
        norm = float(whole(self.accelerator.clip_grad_norm_(list(self.names), config.clip)))
        means = self.accelerator.reduce(torch.stack(list(sums.values())) / config.accumulation, "mean").tolist()
        if not all(map(math.isfinite, means)) or not (math.isfinite(norm) or self._may_overflow()):
            raise self._not_finite(step, keys, output, writer)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average and not self.optimizer.step_was_skipped:
            self.average.step(list(map(own_part, self.names)))
        counts = torch.tensor([len(keys), len(skipped)], device=self.accelerator.device)
        read, lost = self.accelerator.reduce(counts, "sum").tolist()
        if lost:
            lines = gather_object(skipped)
            if self.accelerator.is_main_process:
                note_skipped(output, lines)
        return {
            "step": step,
            **dict(zip(sums, means, strict=True)),
            **({"gradient_norm": norm} if math.isfinite(norm) else {}),
            "learning_rate": rate,
            "samples_per_second": round(read / (time.perf_counter() - began), 2),
            "skipped": lost,
        }

    def _exchanging(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Exchange gradients with the other processes after the last micro-batch only."""
        if isinstance(self.wrapped, FSDPModule):
            self.wrapped.set_requires_gradient_sync(last)
            return contextlib.nullcontext()
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within this block the weights are their moving average, and whole: entered in all processes, used in any."""
        with averaged(self.names, self.average), gathered(self.model), self.accelerator.autocast():
            yield

    def _may_overflow(self) -> bool:
        """Whether gradients that are not finite mean no more than that fp16's losses are scaled up too much.

        The step is skipped then and the scale halved, as long as it is 1 at least.
        """
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() >= 1

    def _not_finite(self, step: int, keys: list[str], output: Path, writer: CheckpointWriter | None) -> ModelError:
        keys = sorted(gather_object(keys))
        if writer:
            writer.wait()
        self.accelerator.wait_for_everyone()
        saved = complete_checkpoints(output)
        good = f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"
        return ModelError(
            f"the loss or its gradient at step {step} is not finite; {good}. The samples of this step: "
            f"{', '.join(keys)}. Look at them, or give a smaller learning_rate or precision: 'no'"
        )

    @torch.no_grad()
    def held_out_loss(self, batches: Sequence[Batch]) -> float:
        """Mean loss over the samples of `batches`, with the moving average of the weights."""
        number, processes = self.accelerator.process_index, self.accelerator.num_processes
        total = torch.zeros(2, dtype=torch.float64)
        with self.evaluating():
            for batch in batches[number::processes]:
                moved = to_device(batch, self.accelerator.device)
                draws = self.model.fixed_draws(moved, self.config.seed).to(self.accelerator.device)
                count = len(batch["keys"])
                total += torch.tensor([float(self.model(moved, draws)["loss"]) * count, count])
        loss, count = self.accelerator.reduce(total.float().to(self.accelerator.device), "sum").tolist()
        return float(loss / count)

    def save(self, writer: CheckpointWriter | None, done: int, *, moments: bool) -> None:
        """Start to write the checkpoint after `done` steps, in the process that has the writer."""
        if writer is None and not isinstance(self.wrapped, FSDPModule):
            return
        tensors: dict[str, dict[str, Tensor]] = {
            "weights": {name: whole(parameter.detach()) for parameter, name in self.names.items()}
        }
        state: dict[str, Any] = {}
        if self.average:
            shadows = map(joined_like, self.average.shadow_params, self.names)
            tensors["average"] = dict(zip(self.names.values(), shadows, strict=True))
            state["average_steps"] = self.average.optimization_step
        if moments:
            state_tensors = optimizer_tensors(self.optimizer.optimizer, self.names)
            tensors["optimizer"] = {name: whole(value) for name, value in state_tensors.items()}
        if self.accelerator.scaler:
            state["scaler"] = self.accelerator.scaler.state_dict()
        if writer:
            writer.save(done, tensors, state)

    def restore(self, output: Path) -> int:
        """Load the newest checkpoint with moments, if there is one; return the number of steps finished by then."""
        saved = resumable_checkpoints(output)
        if not saved:
            return 0
        tensors, state = load_checkpoint(saved[-1])
        copy_weights(self.names, tensors["weights"])
        if self.average:
            for (parameter, name), shadow in zip(self.names.items(), self.average.shadow_params, strict=True):
                shadow.copy_(own_part(divided_like(tensors["average"][name], parameter)))
            self.average.optimization_step = state["average_steps"]
        parameters = {name: parameter for parameter, name in self.names.items()}
        moments = {
            path: divided_like(value, parameters[path.rpartition("/")[0]])
            for path, value in tensors["optimizer"].items()
        }
        restore_optimizer(self.optimizer.optimizer, self.names, moments)
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        return int(state["step"])

    def draw_samples(self, show: Batch) -> Tensor | None:
        """Draw a sheet with a row for each sample of `show`: [3, height, width] float32 in [0, 1].

        The main process draws it, the others return None.
        A row holds the picture drawn, always from the same noise, the sample's own picture, and its references.
        """
        with self.evaluating():
            if not self.accelerator.is_main_process:
                return None
            batch = to_device(show, self.accelerator.device)
            noise = self.model.draw(batch, np.random.default_rng([self.config.seed, 0])).noise
            drawn = self.model.sample(batch, noise.to(self.accelerator.device)).cpu()
        own, references = show["pixel_values"] / 2 + 0.5, self.model.references(show)
        scaled = F.interpolate(references.flatten(0, 1), own.shape[-2:]).view(*references.shape[:3], *own.shape[-2:])
        rows = torch.cat([drawn[:, None], own[:, None], scaled], dim=1)
        return make_grid(rows.flatten(0, 1), nrow=rows.shape[1])


def trained_parameters(model: Trainable) -> dict[Parameter, str]:
    """Names of the parameters that are trained."""
    return {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def copy_weights(names: Mapping[Parameter, str], weights: Mapping[str, Tensor]) -> None:
    """Set parameters to `weights`, in place.

    Raises:
        ModelError: a parameter is missing, or of another size.
    """
    for parameter, name in names.items():
        if name not in weights or weights[name].shape != parameter.shape:
            raise ModelError(f"the checkpoint is another model's: it has no {name} of size {list(parameter.shape)}")
        parameter.copy_(divided_like(weights[name], parameter))
