"""The training loop of the sample models, and the options that their scripts have in common."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor, nn


def create(folder: Path) -> Path:
    """Create the folder of an option, at once: one that cannot be written must not be found out after the training."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


Output = Annotated[Path, typer.Option(help="Folder for config and weights.", callback=create)]
Steps = Annotated[int, typer.Option(help="Optimizer steps.")]
Scenes = Annotated[int, typer.Option(help="Training scenes to render.")]
Batch = Annotated[int, typer.Option(help="Training examples per step.")]
Peak = Annotated[float, typer.Option(help="Highest learning rate.")]
Seed = Annotated[int, typer.Option(help="Seed of weights and batches.")]
Checkpoint = Annotated[Path | None, typer.Option(help="File to resume from, rewritten at every evaluation.")]

Loss = Callable[[int, np.random.Generator], tuple[Tensor, Mapping[str, float]]]
"""From step and random generator to the loss, a scalar, and figures to print."""

PRINT_EVERY = 50
"""Steps from one printed line to the next."""


@dataclass(frozen=True)
class Settings:
    """How long and how fast a model learns.

    Attributes:
        steps: optimizer steps.
        peak: highest learning rate.
        warmup: steps in which the learning rate rises from zero to `peak`.
        weight_decay: of AdamW.
        max_norm: gradients are scaled down to this norm; infinite for no clipping.
        seed: of the batches; the weights are drawn before `fit` is called.
    """

    steps: int
    peak: float
    warmup: int
    weight_decay: float
    max_norm: float = math.inf
    seed: int = 0


def learning_rate(step: int, settings: Settings, start: int = 0) -> float:
    """Learning rate of a step: linear warmup from step `start` on, times a cosine that falls to zero at the last step.

    Before `start` it is zero.
    """
    warm = min(1.0, max(0, step + 1 - start) / settings.warmup)
    return settings.peak * warm * 0.5 * (1 + math.cos(math.pi * step / settings.steps))


def fit(
    model: nn.Module,
    loss: Loss,
    settings: Settings,
    *,
    evaluate: Callable[[int], Mapping[str, float]] | None = None,
    every: int = 500,
    checkpoint: Path | None = None,
    groups: Iterable[tuple[int, Iterable[Tensor]]] | None = None,
) -> None:
    """Train a model with AdamW.

    Step i computes `loss(i, np.random.default_rng([settings.seed, i]))`. A run that is resumed from a checkpoint gives
    the same numbers as one that was never interrupted.

    Args:
        model: all that is trained, in training mode.
        loss: the loss of a step, and figures to print beside it.
        settings: length, learning rate, weight decay, clipping.
        evaluate: called with the number of finished steps, every `every` steps; returns figures to print.
        every: steps from one evaluation and checkpoint to the next.
        checkpoint: file to resume from if it exists, and to write to.
        groups: pairs of the step at which the warmup of some parameters begins, and these parameters; by default all
            parameters begin at step 0.
    """
    starts, parameters = zip(*(groups or [(0, model.parameters())]), strict=True)
    optimizer = torch.optim.AdamW(
        [{"params": group} for group in parameters], lr=settings.peak, weight_decay=settings.weight_decay, fused=True
    )
    first = load_checkpoint(checkpoint, model, optimizer) if checkpoint and checkpoint.exists() else 0
    for step in range(first, settings.steps):
        for group, start in zip(optimizer.param_groups, starts, strict=True):
            group["lr"] = learning_rate(step, settings, start)
        value, figures = loss(step, np.random.default_rng([settings.seed, step]))
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.max_norm)
        optimizer.step()
        if step % PRINT_EVERY == 0:
            _print(step, {"loss": value.item(), **figures})
        if (step + 1) % every == 0:
            if checkpoint:
                save_checkpoint(checkpoint, model, optimizer, step + 1)
            if evaluate and (measured := evaluate(step + 1)):
                _print(step + 1, measured)


def save_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write all that a run needs to go on from `step`; the file is complete or not there."""
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "random": torch.get_rng_state(),
    }
    partial = path.with_suffix(".tmp")
    torch.save(state, partial)
    partial.replace(path)


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load what `save_checkpoint` wrote, torch's random state included; return the number of finished steps."""
    state = torch.load(path, weights_only=True, map_location="cpu")  # it may come from a GPU
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    return int(state["step"])


def _print(step: int, figures: Mapping[str, float]) -> None:
    print(f"step {step}", *(f"{name} {value:.4g}" for name, value in figures.items()), sep="  ", flush=True)
