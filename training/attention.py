"""What the attention processors of this package share. They replace diffusers' in the U-Nets of Stable Diffusion."""

from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor


def cross_attention_layers(unet: UNet2DConditionModel) -> list[str]:
    """Names of the layers that attend to the text, in diffusers' order: down, up, middle."""
    return [name.removesuffix(".processor") for name in unet.attn_processors if name.endswith("attn2.processor")]


def attention_modules(unet: UNet2DConditionModel) -> list[tuple[str, Attention]]:
    """Every attention layer with its name, attention of the picture to itself included."""
    return [(name, module) for name, module in unet.named_modules() if isinstance(module, Attention)]


def unusual_parts(layer: Attention) -> list[str]:
    """Parts that attention may have in diffusers, but does not have in text-to-image U-Nets."""
    return [kind for kind in ("spatial_norm", "group_norm", "norm_q", "norm_k") if getattr(layer, kind, None)]


def normalize_text(layer: Attention, text: Tensor) -> Tensor:
    """Normalize text embeddings [..., D] if the layer does so."""
    return layer.norm_encoder_hidden_states(text) if layer.norm_cross else text


def split_heads(projected: Tensor, heads: int) -> Tensor:
    """Split [..., P, C] over the heads: [..., heads, P, C / heads]."""
    return projected.unflatten(-1, (heads, -1)).transpose(-3, -2)


def join_heads(split: Tensor) -> Tensor:
    """Join [..., heads, P, C / heads] to [..., P, C]."""
    return split.transpose(-3, -2).flatten(-2)


def add_residual(layer: Attention, output: Tensor, hidden_states: Tensor) -> Tensor:
    """Finish a layer: add its input [B, P, C] if it is residual, and rescale."""
    if layer.residual_connection:
        output = output + hidden_states
    return output / layer.rescale_output_factor


def weight_of(layer: Any) -> Tensor:  # noqa: ANN401 - a torch.nn.Linear, or peft's in its place
    """Weight of a linear layer, with the changes that peft's adapters add to it."""
    weight: Tensor = layer.weight
    for name in getattr(layer, "active_adapters", ()):
        weight = weight + layer.get_delta_weight(name)
    return weight
