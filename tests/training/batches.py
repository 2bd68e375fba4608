"""Batches in tests, of whichever recipe."""

import torch

from training.shards import Batch


def same(one: Batch, other: Batch) -> bool:
    """Whether two batches hold the same names, and under each the same."""
    tensors = [name for name, value in one.items() if isinstance(value, torch.Tensor)]
    rest = one.keys() - set(tensors)
    equal = one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in tensors)
    return equal and all(one[name] == other[name] for name in rest)
