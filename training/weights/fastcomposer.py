"""FastComposer's released weights: one file with all networks (mit-han-lab/fastcomposer).

Its names map one to one to those of the recipe's parts.
"""

from training.weights.files import Weights, add_prefix, other_than, under
from training.weights.stable_diffusion import new_autoencoder, old_autoencoder, with_positions, without_positions

FUSER = {
    "mlp1.layernorm": "join.0",
    "mlp1.fc1": "join.1",
    "mlp1.fc2": "join.3",
    "mlp2.layernorm": "refine.0",
    "mlp2.fc1": "refine.1",
    "mlp2.fc2": "refine.3",
    "layer_norm": "norm",
}
"""Layers of the module that fuses: released names, and ours."""


def from_released(weights: Weights) -> Weights:
    """Name the weights as our parts do."""
    return {
        **without_positions(other_than(("vae.", "postfuse_module."), weights)),
        **add_prefix("vae.", new_autoencoder(under("vae.", weights))),
        **add_prefix("fuser.", rename_layers(under("postfuse_module.", weights), FUSER)),
    }


def to_released(weights: Weights) -> Weights:
    """Name our weights as the released file does, which diffusers 0.16 and transformers 4.27 load."""
    names = {ours: theirs for theirs, ours in FUSER.items()}
    return {
        **with_positions(other_than(("vae.", "fuser."), weights)),
        **add_prefix("vae.", old_autoencoder(under("vae.", weights))),
        **add_prefix("postfuse_module.", rename_layers(under("fuser.", weights), names)),
    }


def rename_layers(weights: Weights, names: dict[str, str]) -> Weights:
    """Rename "LAYER.weight" and "LAYER.bias" by a table of layers; others keep their names."""
    renamed: Weights = {}
    for name, value in weights.items():
        layer, _, kind = name.rpartition(".")
        renamed[f"{names.get(layer, layer)}.{kind}"] = value
    return renamed
