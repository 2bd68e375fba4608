"""Comparison of batches, for the tests of all recipes."""

import torch

from training.shards import Batch


def equal_batches(first: Batch, second: Batch) -> bool:
    """Return whether two batches hold the same names and values."""
    tensors = [name for name, value in first.items() if isinstance(value, torch.Tensor)]
    rest = first.keys() - set(tensors)
    equal = first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in tensors)
    return equal and all(first[name] == second[name] for name in rest)
