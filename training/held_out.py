"""Samples that are held out of training, to measure the loss on."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ConfigError
from schemas.keys import rng_of
from training.config import LoadConfig
from training.order import Group
from training.shards import Batch, Shards, Tools, View, make_batch, read_samples


def split_held_out(shards: Shards, count: int, seed: int) -> tuple[Shards, Shards]:
    """Divide datasets into the samples to train on, and `count` to hold out, chosen at random by the seed.

    Raises:
        ConfigError: of one of the datasets, nothing is left to train on.
    """
    total = shards.ends[-1]
    if count >= total:
        raise ConfigError(f"held_out {count}: there are {total} samples, and one at least must be trained on")
    held_out = np.zeros(total, bool)
    held_out[rng_of(seed, "held out", "").choice(total, count, replace=False)] = True
    rest = _select(shards, ~held_out)
    if any(group.count == 0 for group in rest.groups):
        raise ConfigError(f"held_out {count}: nothing is left of one of the datasets; hold out fewer")
    return rest, _select(shards, held_out)


def _select(shards: Shards, chosen: NDArray[np.bool_]) -> Shards:
    parts = np.split(chosen, shards.ends[:-1])
    tars = [replace(tar, places=tar.places[part]) for tar, part in zip(shards.tars, parts, strict=True)]
    sizes = iter([len(tar.places) for tar in tars])
    groups = [Group(tuple(next(sizes) for _ in group.sizes), group.slots) for group in shards.groups]
    return Shards(tuple(tars), tuple(groups))


def held_out_batches(
    shards: Shards,
    view: View,
    tools: Tools,
    config: LoadConfig,
    report: Callable[[str], None],
) -> list[Batch]:
    """Make all batches of held-out samples; what is random in a view is switched off.

    They stay in memory as bytes until the loss is measured.

    Args:
        shards: the held-out samples.
        view: makes the values of one sample.
        tools: passed on to `view`.
        config: its `plain()` is passed on to `view`.
        report: called with a line for each sample that cannot be read.
    """
    found = []
    samples = ((0, raw) for raw in read_samples(shards))
    while group := list(islice(samples, config.batch)):
        batch = make_batch(group, view, tools, config.plain())
        for line in batch["skipped"]:
            report(f"held out, but cannot be read: {line}")
        if batch["keys"]:
            found.append(batch)
    return found
