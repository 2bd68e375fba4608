"""Stable Diffusion's weights under the names of older libraries, with which others released theirs."""

import re
from collections.abc import Callable, Mapping

import torch

from training.weights.files import Weights

ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Projections of the autoencoder's attention: names up to diffusers 0.16, and later ones."""
POSITIONS = "embeddings.position_ids"
"""Numbers of the positions, which transformers counted among the weights up to version 4.30."""


def new_autoencoder(weights: Weights) -> Weights:
    """Rename an autoencoder's weights as diffusers does since 0.17; new names stay."""
    return {
        re.sub(r"(attentions\.\d+\.)(query|key|value|proj_attn)\.", _renamed(ATTENTION), name): value
        for name, value in weights.items()
    }


def old_autoencoder(weights: Weights) -> Weights:
    """Rename an autoencoder's weights as diffusers did up to 0.16."""
    names = {new: old for old, new in ATTENTION.items()}
    return {
        re.sub(r"(attentions\.\d+\.)(to_q|to_k|to_v|to_out\.0)\.", _renamed(names), name): value
        for name, value in weights.items()
    }


def _renamed(names: Mapping[str, str]) -> Callable[[re.Match[str]], str]:
    return lambda found: f"{found[1]}{names[found[2]]}."


def without_positions(weights: Weights) -> Weights:
    """Leave out the numbers of positions."""
    return {name: value for name, value in weights.items() if not name.endswith(POSITIONS)}


def with_positions(weights: Weights) -> Weights:
    """Add the numbers of positions, [1, L] int64, to each table of position embeddings [L, D]."""
    table = "embeddings.position_embedding.weight"
    numbers = {
        f"{name.removesuffix(table)}{POSITIONS}": torch.arange(len(value))[None]
        for name, value in weights.items()
        if name.endswith(table)
    }
    return {**weights, **numbers}
