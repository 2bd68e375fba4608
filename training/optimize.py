"""What moves the weights: the optimizer, the learning rate of each step, and the moving average."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.nn import Parameter

from schemas.errors import ConfigError
from training.config import RunConfig
from training.sharding import own_part


def decay_groups(parameters: Iterable[Parameter], config: RunConfig) -> list[dict[str, Any]]:
    """Sort parameters into an optimizer's groups by weight decay. Norms and biases are those with a single axis."""
    groups: dict[float, list[Parameter]] = {}
    for parameter in parameters:
        decay = config.weight_decay if config.decay_all or parameter.ndim > 1 else 0.0
        groups.setdefault(decay, []).append(parameter)
    return [{"params": members, "weight_decay": decay} for decay, members in groups.items()]


def new_optimizer(parameters: Iterable[Parameter], config: RunConfig) -> torch.optim.Optimizer:
    """Make the optimizer that the config names.

    Raises:
        ConfigError: it is a library's that is not installed.
    """
    groups = decay_groups(parameters, config)
    if config.optimizer == "adamw_8bit":
        if find_spec("bitsandbytes") is None:
            raise ConfigError("optimizer adamw_8bit: bitsandbytes is not installed; pip install bitsandbytes")
        from bitsandbytes.optim import AdamW8bit  # noqa: PLC0415 - it may be missing

        optimizer: torch.optim.Optimizer = AdamW8bit(groups, lr=config.learning_rate)
        return optimizer
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True if config.optimizer == "adamw_fused" else None)


def learning_rates(config: RunConfig) -> Callable[[int], float]:
    """Return the learning rate as a function of the step, which counts from 0.

    During the warmup step i has the share (i + 1) / warmup of the highest rate. After it, the rates are those of
    diffusers' schedule of that name. diffusers' own warmup starts one step earlier, at the rate 0.

    Raises:
        ConfigError: the schedule has no such rates.
    """
    name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
    try:
        schedule = get_scheduler(
            name,
            torch.optim.SGD([torch.zeros(1)], lr=config.learning_rate),
            num_warmup_steps=config.warmup,
            num_training_steps=config.steps,
            num_cycles=config.restarts,
            power=config.power,
        )
    except ValueError as error:
        raise ConfigError(f"schedule {config.schedule}: {error}") from error
    (factor,) = schedule.lr_lambdas

    def rate(step: int) -> float:
        return config.learning_rate * ((step + 1) / config.warmup if step < config.warmup else factor(step))

    return rate


@contextlib.contextmanager
def averaged(parameters: Iterable[Parameter], average: EMAModel | None) -> Iterator[None]:
    """Swap in the moving average of the weights, if there is one, for the duration of the block."""
    if average is None:
        yield
        return
    parts = list(map(own_part, parameters))
    average.store(parts)
    average.copy_to(parts)
    try:
        yield
    finally:
        average.restore(parts)
