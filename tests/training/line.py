"""A model of a single weight, for which every number of the training loop can be worked out by hand."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from training.config import RunConfig
from training.diffusion import Batch, Draws
from training.loop import train
from training.resume import complete_checkpoints
from training.timesteps import TimeSampling

CONFIG = RunConfig(steps=2, learning_rate=0.1, warmup=0, weight_decay=0.0, average=0.0, seed=5)


class Line(torch.nn.Module):
    """A model whose loss is `slope` times its weight, so that its gradient is always `slope`.

    AdamW therefore moves the weight by the learning rate in every step, against the sign of `slope`.
    """

    def __init__(self, weight: float = 0.0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))
        self.frozen = torch.nn.Parameter(torch.tensor(7.0), requires_grad=False)
        self.unet: Any = SimpleNamespace(enable_gradient_checkpointing=lambda: self.calls.append("checkpointing"))
        self.min_snr = self.noise_offset = 0.0
        self.time_sampling: TimeSampling = "uniform"
        self.calls: list[str] = []
        self.numbers: list[float] = []
        self.autocast: list[bool] = []

    def forward(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        del draws
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        loss = batch["slope"] * self.weight
        return {"loss": loss, "doubled": 2 * loss}

    def draw(self, batch: Batch, rng: np.random.Generator) -> Draws:
        del batch
        self.numbers.append(rng.random())
        return Draws(torch.tensor(self.numbers[-1]), torch.ones(()), torch.ones(()))

    def fixed_draws(self, batch: Batch, seed: int) -> Draws:
        del batch
        return Draws(torch.tensor(float(seed)), torch.ones(()), torch.ones(()))

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        return pixels

    def sample(self, batch: Batch, noise: Tensor) -> Tensor:
        """Pictures of 2 x 2 pixels: red is the weight, green the noise."""
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        pictures = torch.zeros(len(batch["keys"]), 3, 2, 2)
        pictures[:, 0], pictures[:, 1] = self.weight.detach(), noise
        return pictures

    def references(self, batch: Batch) -> Tensor:
        pictures: Tensor = batch["reference_pixel_values"]
        return pictures

    def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "weight.json").write_text(json.dumps(self.weight.item()))


class Root(Line):
    """The loss is the root of the weight: 0 at the weight 0, where its gradient is infinite."""

    def forward(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        del batch, draws
        return {"loss": self.weight.sqrt()}


def batch_of(slope: float, keys: Sequence[str] = ("key",), skipped: Sequence[str] = ()) -> Batch:
    return {"slope": slope, "keys": list(keys), "skipped": list(skipped)}


def slopes(*values: float) -> Any:  # noqa: ANN401
    """Batches with these slopes, again and again."""
    return lambda start: itertools.islice(
        itertools.cycle([batch_of(value) for value in values]), start // CONFIG.batch, None
    )


def run(output: Path, config: RunConfig = CONFIG, batches: Any = None, **options: Any) -> list[dict[str, float]]:  # noqa: ANN401
    return list(train(Line(), batches or slopes(1.0), config, output, **options))


def checkpoint_of(output: Path, kind: str) -> dict[str, float]:
    """The numbers of one kind in the newest checkpoint."""
    tensors = load_file(complete_checkpoints(output)[-1] / f"{kind}.safetensors")
    return {name: value.item() for name, value in tensors.items()}


def moments(output: Path) -> tuple[float, float]:
    """AdamW's moments after one step: 0.1 times the gradient, and 0.001 times its square."""
    state = checkpoint_of(output, "optimizer")
    return state["weight/exp_avg"], state["weight/exp_avg_sq"]


def saved_weight(output: Path) -> float:
    return float(json.loads((output / "model" / "weight.json").read_text()))
