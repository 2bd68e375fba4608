"""Which conditions training hides from the model, so that it also learns to do without them.

A recipe's policy is a table: per granularity a set of alternatives that exclude each other and of drops that are
independent. For example, half of all captions, and for a tenth of the samples everything or nothing:

    {"sample": Drops(
        exclusive=(drop_all(0.1, ("caption", "sketch")), keep_all(0.1)),
        independent=(Drop(0.5, frozenset({"caption"})),),
    )}
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

Granularity = Literal["object", "sample", "batch"]
"""What is drawn for: each object of a sample, each sample, or a whole batch of one process."""


@dataclass(frozen=True)
class Drop:
    """With probability `p` in [0, 1], `conditions` are dropped, all of them together."""

    p: float
    conditions: frozenset[str]


@dataclass(frozen=True)
class Drops:
    """What may be dropped at one granularity.

    Attributes:
        exclusive: at most one of these happens; a single number decides. Their probabilities add up to 1 at most.
        independent: if none of `exclusive` happens, each of these is drawn on its own.
    """

    exclusive: tuple[Drop, ...] = ()
    independent: tuple[Drop, ...] = ()


DropTable = Mapping[Granularity, Drops]


def drop_all(p: float, conditions: Iterable[str]) -> Drop:
    """Drop all of a recipe's `conditions` with probability `p`."""
    return Drop(p, frozenset(conditions))


def keep_all(p: float) -> Drop:
    """Drop nothing with probability `p`: as an exclusive alternative, it rules out the independent drops."""
    return Drop(p, frozenset())


def draw(table: DropTable, granularity: Granularity, rng: np.random.Generator) -> frozenset[str]:
    """Draw the conditions that one object, sample or batch does without."""
    drops = table.get(granularity, Drops())
    if drops.exclusive:
        number, threshold = rng.random(), 0.0
        for alternative in drops.exclusive:
            threshold += alternative.p
            if number < threshold:
                return alternative.conditions
    return frozenset[str]().union(*(drop.conditions for drop in drops.independent if rng.random() < drop.p))
