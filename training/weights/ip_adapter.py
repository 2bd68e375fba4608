"""IP-Adapter's and MIP-Adapter's released weights (tencent-ailab/IP-Adapter, hqhQAQ/MIP-Adapter).

Both have the same names: "image_proj." and "ip_adapter.NUMBER."; MIP-Adapter adds a predictor to each layer. Our names
differ in the plus models alone, where diffusers' class takes the place of the authors' resampler.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from training.weights.files import Weights, other_than, under

GROUPS = ("image_proj", "ip_adapter")
"""Dicts of the files in PyTorch's format."""
PREDICTOR = ".text_to_weight."
"""Part of the names of MIP-Adapter's predictor."""
RESAMPLER = {
    "0.norm1": "ln0",
    "0.norm2": "ln1",
    "0.to_q": "attn.to_q",
    "0.to_out": "attn.to_out.0",
    "1.0": "ff.0",
    "1.1": "ff.1.net.0.proj",
    "1.3": "ff.1.net.2",
}
"""Parts of a layer of the resampler: released names, and diffusers'."""
LAYERS = "image_proj.layers."


def from_released(weights: Mapping[str, Tensor]) -> Weights:
    """Name the weights as ours."""
    renamed = other_than((LAYERS,), weights)
    for name, value in under(LAYERS, weights).items():
        number, part, kind = _parts(name)
        if part == "0.to_kv":
            for key, piece in zip("kv", value.chunk(2), strict=True):
                renamed[f"{LAYERS}{number}.attn.to_{key}.{kind}"] = piece
        else:
            renamed[f"{LAYERS}{number}.{RESAMPLER.get(part, part)}.{kind}"] = value
    return renamed


def to_released(weights: Mapping[str, Tensor]) -> Weights:
    """Name our weights as the released files do."""
    names = {ours: theirs for theirs, ours in RESAMPLER.items()}
    renamed = other_than((LAYERS,), weights)
    for name, value in under(LAYERS, weights).items():
        number, part, kind = _parts(name)
        if part == "attn.to_k":
            values = weights[f"{LAYERS}{number}.attn.to_v.{kind}"]
            renamed[f"{LAYERS}{number}.0.to_kv.{kind}"] = torch.cat([value, values])
        elif part != "attn.to_v":
            renamed[f"{LAYERS}{number}.{names.get(part, part)}.{kind}"] = value
    return renamed


def _parts(name: str) -> tuple[str, str, str]:
    found = re.fullmatch(r"(\d+)\.(.+)\.(\w+)", name)
    return (found[1], found[2], found[3]) if found else ("", name, "")


def without_predictor(weights: Mapping[str, Tensor]) -> Weights:
    """A MIP-Adapter's weights as those of an IP-Adapter."""
    return {name: value for name, value in weights.items() if PREDICTOR not in name}
