"""The order in which samples are read: a function of (seed, position), whoever reads them.

A position is the number of samples that all processes have read before. Samples are numbered as they are stored, and
an epoch is a permutation of these numbers, made in two steps (here for three tars, blocks of 4, a buffer of 12):

    stored     aaaaaaaa bbbbbbbb cccccccc      the samples of each tar
    blocks     cccc aaaa bbbb aaaa cccc bbbb   consecutive samples of a tar, in random order over all tars
    buffers    acbacbcabbca   bcabaccabcba     consecutive samples of that, mixed `buffer` at a time

What is read within a short time therefore comes from all tars, but from few places in each.

Datasets are mixed by weight in cycles: of every 10 positions, say, 7 belong to one dataset and 3 to another, in random
order. Each dataset has its own epochs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.keys import rng_of

BLOCK = 32
"""Consecutive samples of a tar that stay together until they are mixed in the buffer."""
LONGEST_CYCLE = 1000
"""Positions of a cycle at most: weights are rounded to this share of their sum."""


class Place(NamedTuple):
    """What is read at a position: a sample by its number, and which epoch of its dataset this is."""

    epoch: int
    sample: int


@dataclass(frozen=True)
class Group:
    """Samples that have epochs of their own: those of one dataset.

    Attributes:
        sizes: number of samples of each tar, in order; together at least one.
        slots: positions of each cycle that belong to this group.
    """

    sizes: tuple[int, ...]
    slots: int = 1

    @cached_property
    def count(self) -> int:
        """Number of samples."""
        return sum(self.sizes)


@dataclass(frozen=True, eq=False)
class Order:
    """The order of the samples of all groups, which are numbered one group after the other.

    Attributes:
        groups: at least one.
        seed: another seed gives another order.
        buffer: samples that are mixed at a time, as a shuffle buffer would; 1 for none.
    """

    groups: tuple[Group, ...]
    seed: int
    buffer: int
    _epochs: dict[int, tuple[int, NDArray[np.int64]]] = field(default_factory=dict, init=False)  # newest of each group

    def places(self, first: int, count: int) -> list[Place]:
        """Return what is read at positions `first` to `first + count - 1`."""
        return [self._place(position) for position in range(first, first + count)]

    def _place(self, position: int) -> Place:
        slots = [group.slots for group in self.groups]
        cycle, slot = divmod(position, sum(slots))
        turns = rng_of(self.seed, "mixture", str(cycle)).permutation(np.repeat(np.arange(len(slots)), slots))
        number = int(turns[slot])
        group = self.groups[number]
        before = cycle * group.slots + int(np.count_nonzero(turns[:slot] == number))
        epoch, index = divmod(before, group.count)
        first = sum(other.count for other in self.groups[:number])
        return Place(epoch, first + int(self._epoch(number, epoch)[index]))

    def _epoch(self, number: int, epoch: int) -> NDArray[np.int64]:
        if self._epochs.get(number, (-1,))[0] != epoch:
            rng = rng_of(self.seed, f"epoch {epoch}", str(number))
            self._epochs[number] = epoch, epoch_order(self.groups[number].sizes, self.buffer, rng)
        return self._epochs[number][1]


def epoch_order(sizes: Sequence[int], buffer: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw the order of an epoch: a permutation of the numbers of all samples, [sum(sizes)] int64.

    Args:
        sizes: number of samples of each tar.
        buffer: samples that are mixed at a time, at least 1.
        rng: source of the permutation.
    """
    ends = np.cumsum(sizes)
    starts = np.concatenate([np.arange(end - size, end, BLOCK) for size, end in zip(sizes, ends, strict=True)])
    lengths = np.diff(starts, append=ends[-1])
    chosen = rng.permutation(len(starts))
    starts, lengths = starts[chosen], lengths[chosen]
    order = np.arange(ends[-1]) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    for start in range(0, len(order), buffer) if buffer > 1 else ():
        rng.shuffle(order[start : start + buffer])
    return order


def slots_of(weights: Sequence[float]) -> tuple[int, ...]:
    """Return the positions of a cycle for each of `weights`, in the lowest terms: 7 and 3 for 0.7 and 0.3.

    They sum up to `LONGEST_CYCLE` or a divisor of it; a weight too small for a position of its own gets 0.
    """
    exact = np.asarray(weights) / sum(weights) * LONGEST_CYCLE
    slots = np.floor(exact).astype(int)
    largest = np.argsort(slots - exact, kind="stable")
    slots[largest[: LONGEST_CYCLE - slots.sum()]] += 1
    return tuple((slots // math.gcd(*slots.tolist())).tolist())
