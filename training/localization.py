"""The localization loss: the attention of a subject's token should stay within that subject's mask.

Xiao et al., "FastComposer" (2023), section 4.2: for the tokens of m subjects, whose attention maps are A_j and whose
masks are M_j, `L_loc = 1/m sum_j (mean(A_j[outside M_j]) - mean(A_j[inside M_j]))`, over the heads and the
cross-attention layers of the U-Net's middle five blocks.

    localize(unet)                                    # once
    subjects = Subjects(token_index, valid)           # each step
    unet(latents, time, text, cross_attention_kwargs={"subjects": subjects})
    loss = subjects.loss(masks)

The attention itself returns the probabilities of the subjects' tokens: each subject's indicator vector over the
tokens is appended to the values as one more column, so that one call of the fused kernel returns both the layer's
output and these probabilities. The full map of 77 tokens is never computed.
"""

import math

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from schemas.errors import ModelError
from training.attention import (
    add_residual,
    attention_modules,
    cross_attention_layers,
    normalize_text,
    split_heads,
    unusual_parts,
    weight_of,
)

EPSILON = 1e-5
"""Added to each denominator, as published."""


def localization_loss(attention: Tensor, masks: Tensor, valid: Tensor) -> Tensor:
    """Compute the balanced L1 loss of one layer: a scalar in [-1, 1]; below 0 if subjects get more than the rest.

    A subject whose mask is empty contributes the mean of its attention outside, which drives its attention down; one
    that fills the picture contributes the negated mean inside. A sample without subjects contributes 0 to the batch's
    mean.

    Args:
        attention: probabilities of the subjects' tokens, [B, heads, h*w, M] float.
        masks: of the subjects, [B, M, H, W] float in [0, 1]; h:w must be H:W.
        valid: which of the M are subjects, [B, M] bool. The rest may hold any value, NaN included.

    Returns:
        float32, or float64 if `attention` is float64.

    Raises:
        ValueError: h*w pixels cannot have the shape of the masks.
    """
    exact = attention.dtype if attention.dtype == torch.float64 else torch.float32
    attention = attention.to(exact).masked_fill(~valid[:, None, None, :], 0)
    height, width = _layer_size(attention.shape[2], masks.shape[2], masks.shape[3])
    soft = F.interpolate(masks.to(exact), (height, width), mode="bilinear", antialias=True)
    inside = soft.flatten(2).transpose(1, 2)[:, None].masked_fill(~valid[:, None, None, :], 0)
    outside = 1 - inside
    terms = (attention * outside).sum(2) / (outside.sum(2) + EPSILON)
    terms = terms - (attention * inside).sum(2) / (inside.sum(2) + EPSILON)
    count = valid.sum(1, dtype=exact)[:, None]
    return ((terms * valid[:, None, :]).sum(2) / (count + EPSILON)).mean()


def _layer_size(pixels: int, height: int, width: int) -> tuple[int, int]:
    """Return the (h, w) of a layer of h*w `pixels` whose masks have `height` x `width`."""
    h = max(1, round(math.sqrt(pixels * height / width)))
    w = pixels // h
    if h * w != pixels:
        raise ValueError(f"a layer of {pixels} pixels cannot have the shape of masks of {height} x {width} pixels")
    return h, w


class Subjects:
    """Tokens whose attention is recorded during a pass through the U-Net, and the recorded maps.

    It is no dataclass: FSDP copies those among the inputs of a block, and maps recorded in a copy would be lost.

    Attributes:
        token_index: position of each subject's token, [B, M] int64.
        valid: which of the M are subjects, [B, M] bool.
        maps: after the pass, probabilities [B, heads, h*w, M] by the layer's name.
    """

    def __init__(self, token_index: Tensor, valid: Tensor) -> None:
        self.token_index, self.valid = token_index, valid
        self.maps: dict[str, Tensor] = {}

    def loss(self, masks: Tensor) -> Tensor:
        """Mean of `localization_loss` over the layers, for `masks` [B, M, H, W]."""
        losses = [localization_loss(attention, masks, self.valid) for attention in self.maps.values()]
        return torch.stack(losses).mean()

    def columns(self, tokens: int, like: Tensor) -> Tensor:
        """Indicators of the subjects' tokens: [B, `tokens`, M], 1 at a subject's token, else 0."""
        return F.one_hot(self.token_index, tokens).transpose(1, 2).to(like.dtype)


def localized_layers(unet: UNet2DConditionModel, blocks: int = 5) -> list[str]:
    """Names of the cross-attention layers in the middle `blocks` of the U-Net's blocks that have any, in their order.

    For Stable Diffusion 1.5: down 1 and 2, the middle, up 1 and 2.
    """
    layers = cross_attention_layers(unet)
    stage = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}

    def place(layer: str) -> tuple[int, int]:
        parts = layer.split(".")
        return stage[parts[0]], int(parts[1]) if parts[0] != "mid_block" else 0

    places = sorted({place(layer) for layer in layers})
    first = max(0, (len(places) - blocks) // 2)
    middle = places[first : first + blocks]
    return sorted((layer for layer in layers if place(layer) in middle), key=place)


def localize(unet: UNet2DConditionModel, blocks: int = 5) -> None:
    """Make the U-Net record subjects' attention in its middle blocks whenever it is called with `subjects`.

    Raises:
        ModelError: a layer is of a kind that the text-to-image U-Nets do not have.
    """
    chosen = set(localized_layers(unet, blocks))
    for name, layer in attention_modules(unet):
        unusual = unusual_parts(layer)
        if name in chosen and type(layer.to_out[0]) is not nn.Linear:
            unusual.append(f"{type(layer.to_out[0]).__name__} for its output")
        if name in chosen and unusual:
            raise ModelError(f"layer {name} of the U-Net has a {unusual[0]}: its attention cannot be localized")
        layer.set_processor(SubjectAttention(name if name in chosen else None))


class SubjectAttention(AttnProcessor2_0):
    """Attention as diffusers computes it, which also records the probabilities of the subjects' tokens.

    It keeps no state between steps: the maps go into the `subjects` it is called with. So it also works if a layer runs
    twice, as under gradient checkpointing.
    """

    def __init__(self, layer: str | None) -> None:
        super().__init__()
        self.layer = layer

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        subjects: Subjects | None = None,
    ) -> Tensor:
        """Attend; `hidden_states` [B, h*w, C], `encoder_hidden_states` [B, L, D], `attention_mask` None."""
        if subjects is None or self.layer is None or encoder_hidden_states is None:
            plain: Tensor = super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
            return plain
        assert attention_mask is None, "Stable Diffusion's text needs no mask"
        text = normalize_text(attn, encoder_hidden_states)
        query, key, value = (
            split_heads(projected, attn.heads)
            for projected in (attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text))
        )
        columns = subjects.columns(text.shape[1], value)
        both = attend(query, key, value, columns, attn.scale)
        width = value.shape[-1]
        subjects.maps[self.layer] = both[..., width : width + columns.shape[-1]]
        # Zeros in the projection remove the probabilities from the output: slicing them off would keep a second copy.
        project, dropout = attn.to_out
        weight = F.pad(weight_of(project).unflatten(1, (attn.heads, width)), (0, both.shape[-1] - width)).flatten(1)
        output: Tensor = dropout(F.linear(both.transpose(1, 2).flatten(2), weight, project.bias))
        return add_residual(attn, output, hidden_states)


def attend(query: Tensor, key: Tensor, value: Tensor, columns: Tensor, scale: float) -> Tensor:
    """Attend, and return the probabilities of chosen tokens beside the output.

    Args:
        query: [B, heads, P, d].
        key: [B, heads, L, d].
        value: [B, heads, L, d].
        columns: indicators of the M chosen tokens, [B, L, M].
        scale: of the products of query and key.

    Returns:
        [B, heads, P, d + M + zeros]: the output, the probabilities, and zeros up to a multiple of eight.
    """
    chosen = columns.shape[-1]
    # The fused kernels want queries, keys and values of one width, a multiple of eight; zeros change no product.
    pad = -(value.shape[-1] + chosen) % 8
    extended = torch.cat([value, columns[:, None].expand(-1, value.shape[1], -1, -1)], dim=-1)
    query, key = (_widen(projected, chosen + pad) for projected in (query, key))
    return F.scaled_dot_product_attention(query, key, _widen(extended, pad), scale=scale)


def _widen(projected: Tensor, zeros: int) -> Tensor:
    """Append zeros to [B, heads, P, d]; heads stay innermost in memory, so that the output's can be joined in place."""
    return F.pad(projected.transpose(1, 2), (0, zeros)).transpose(1, 2)
