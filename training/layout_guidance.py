"""Layout guidance: phrases are drawn in their boxes by a model that was never trained to do so.

Chen, Laina and Vedaldi, "Training-Free Layout Control with Cross-Attention Guidance" (2023), in two ways:

- Forward: in the chosen layers, the attention of a phrase's token i is mixed with a window over its boxes,
  `A_ui <- (1 - lambda) A_ui + lambda g_u sum_v A_vi`, where g sums to 1.
- Backward: the latents are moved down the gradient of an energy, the mean over layers, phrases, tokens and heads of
  `E = (1 - sum_{u in boxes} A_ui / sum_u A_ui)^2`, before the U-Net predicts the noise.

The first steps of sampling are guided, where the layout is decided.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor
from transformers import CLIPTokenizer

from schemas.errors import ModelError
from schemas.layouts import Frame, Layout
from training.attention import (
    add_residual,
    attention_modules,
    cross_attention_layers,
    join_heads,
    normalize_text,
    split_heads,
    unusual_parts,
)
from training.drawing import Placing
from training.guidance import Guide, SamplingStep
from training.latent_space import downsampling
from training.tokenizer import token_range

Change = Callable[[Tensor], Tensor]
"""Called with the attention of a layer, [N, heads, h w, L]; returns what takes its place."""

SPREAD = 4
"""A box is this many standard deviations of the forward guidance's window wide, and high."""


@dataclass(frozen=True)
class Target:
    """A phrase: the positions of its tokens among those of the caption, and its boxes."""

    tokens: range
    boxes: tuple[Frame, ...]


def find_targets(layout: Layout, tokenizer: CLIPTokenizer) -> list[Target]:
    """Find the tokens of a layout's phrases.

    Raises:
        ConfigError: the tokenizer's length cuts a phrase off.
    """
    return [
        Target(range(*token_range(layout.prompt, phrase.start, phrase.end, tokenizer)), phrase.boxes)
        for phrase in layout.phrases
    ]


def guided_layers(unet: UNet2DConditionModel) -> list[str]:
    """Names of the layers whose attention is guided.

    These are the cross-attention layers of the middle block and of the first upsampling block that is finer than it:
    for Stable Diffusion 1.5 those of 8 x 8 and of 16 x 16 latents, as published.
    """
    layers = cross_attention_layers(unet)
    finer = [name for name in layers if name.startswith("up_blocks.") and not name.startswith("up_blocks.0.")]
    first = min(int(name.split(".")[1]) for name in finer)
    return [name for name in layers if name.startswith(("mid_block.", f"up_blocks.{first}."))]


def guide_layout(model: Any, layout: Layout, placing: Placing) -> Guide:  # noqa: ANN401 - a LatentDiffusion
    """Set a model's U-Net up for guidance, and return the guide of one layout.

    Raises:
        ModelError: the attention of its layers cannot be changed.
        ConfigError: a phrase lies beyond the tokens that the text encoder reads.
    """
    watch(model.unet, guided_layers(model.unet))
    targets = find_targets(layout, model.tokenizer)
    return {"forward": forward_guide, "backward": backward_guide}[placing.way](targets, placing)


def forward_guide(targets: Sequence[Target], placing: Placing) -> Guide:
    """Return a guide that mixes the attention of targets with windows over their boxes."""

    def change(attention: Tensor) -> Tensor:
        windows = window_maps(targets, math.isqrt(attention.shape[2])).to(attention)
        unconditional, conditional = attention.chunk(2)
        return torch.cat([unconditional, mix(conditional, targets, windows, placing.strength)])

    def guide(step: SamplingStep, latents: Tensor) -> tuple[Tensor, Tensor]:
        guided = step.number < guided_steps(step.total, placing)
        return latents, step.predict(latents, layout=change) if guided else step.predict(latents)

    return guide


def backward_guide(targets: Sequence[Target], placing: Placing) -> Guide:
    """Return a guide that moves latents down the gradient of the targets' energy."""

    def guide(step: SamplingStep, latents: Tensor) -> tuple[Tensor, Tensor]:
        if step.number < guided_steps(step.total, placing):
            for _ in range(placing.repeats):
                energies, gradient = energy_gradient(step, latents, targets)
                moved = energies > placing.enough
                if not moved.any():
                    break
                latents = latents - step_size(step, placing) * gradient * moved[:, None, None, None]
        return latents, step.predict(latents)

    return guide


def guided_steps(total: int, placing: Placing) -> int:
    """Number of steps that are guided, the first ones."""
    return math.ceil(placing.share * total)


def step_size(step: SamplingStep, placing: Placing) -> float:
    """Factor of the energy's gradient: eta sigma^2 for the step "code", eta sigma for "paper".

    Both were written for latents that grow with the noise, whose variance is 1 + sigma^2. For latents of unit variance
    the same move is smaller by that factor: once as the gradient is larger, once as the latents are.
    """
    alpha_bar = step.alpha_bar
    sigma = math.sqrt((1 - alpha_bar) / alpha_bar)
    size = placing.eta * (sigma**2 if placing.step == "code" else sigma)
    return size / (1 + sigma**2) if step.is_scaled else size


def energy_gradient(step: SamplingStep, latents: Tensor, targets: Sequence[Target]) -> tuple[Tensor, Tensor]:
    """Energy of each sample of the conditional batch, [B], and its gradient by the latents, [B, C, h, w]."""
    maps: list[Tensor] = []

    def record(attention: Tensor) -> Tensor:
        maps.append(attention)
        return attention

    with torch.enable_grad():
        moved = latents.detach().requires_grad_()
        step.predict_conditional(moved, layout=record)
        energies = torch.stack([energy(attention, targets) for attention in maps]).mean(0)
        (gradient,) = torch.autograd.grad(energies.sum(), moved)
    return energies.detach(), gradient


def energy(attention: Tensor, targets: Sequence[Target]) -> Tensor:
    """Energy of one layer: the mean over targets, their tokens and heads, [B] in [0, 1].

    Args:
        attention: [B, heads, h w, L], where h = w.
        targets: at least one.
    """
    side = math.isqrt(attention.shape[2])
    terms = []
    for target in targets:
        inside = cell_mask(target.boxes, side).flatten().to(attention.device)
        chosen = attention[..., target.tokens.start : target.tokens.stop]
        chosen = chosen.to(torch.promote_types(chosen.dtype, torch.float32))
        share = (chosen * inside[:, None]).sum(2) / chosen.sum(2)
        terms.append(((1 - share) ** 2).mean((1, 2)))
    return torch.stack(terms).mean(0)


def cell_mask(boxes: Sequence[Frame], side: int) -> Tensor:
    """Cells of a grid of `side` x `side` that boxes cover, [side, side] float32, 0 or 1.

    Both ends are rounded down, as published. A box that this leaves empty would have no gradient; it is widened to one
    cell.
    """
    mask = torch.zeros(side, side)
    for left, top, right, bottom in boxes:
        columns, rows = (span_of(low, high, side) for low, high in ((left, right), (top, bottom)))
        mask[rows[0] : rows[1], columns[0] : columns[1]] = 1
    return mask


def span_of(low: float, high: float, side: int) -> tuple[int, int]:
    """Cells [first, last) of a row of `side` cells that [low, high] in [0, 1] covers: at least one."""
    first = min(int(low * side), side - 1)
    return first, max(int(high * side), first + 1)


def widened(layout: Layout, side: int) -> list[str]:
    """Phrases of a layout with a box that is widened to a cell of a grid of `side` x `side`."""

    def is_widened(box: Frame) -> bool:
        return int(box[0] * side) == int(box[2] * side) or int(box[1] * side) == int(box[3] * side)

    return [phrase.text for phrase in layout.phrases if any(map(is_widened, phrase.boxes))]


def coarsest_side(model: Any, size: int) -> int:  # noqa: ANN401 - a LatentDiffusion
    """Cells along a side of the coarsest attention that is guided, in pictures of `size` pixels a side."""
    return size // (downsampling(model.vae) * 2 ** (len(model.unet.config.block_out_channels) - 1))


def window_maps(targets: Sequence[Target], side: int) -> Tensor:
    """A smooth window over the boxes of each target, [T, side, side] float32, which sums to 1.

    It is the sum of a Gaussian for each box, around its centre, `SPREAD` of whose standard deviations are as wide and
    high as the box. The paper says no more than that the window is smooth.
    """
    middles = (torch.arange(side) + 0.5) / side
    windows = []
    for target in targets:
        window = torch.zeros(side, side)
        for left, top, right, bottom in target.boxes:
            across = _gaussian(middles, left, right, side)
            down = _gaussian(middles, top, bottom, side)
            window += down[:, None] * across
        windows.append(window / window.sum())
    return torch.stack(windows)


def _gaussian(middles: Tensor, low: float, high: float, side: int) -> Tensor:
    deviation = max((high - low) / SPREAD, 0.5 / side)
    return torch.exp(-0.5 * ((middles - (low + high) / 2) / deviation) ** 2)


def mix(attention: Tensor, targets: Sequence[Target], windows: Tensor, strength: float) -> Tensor:
    """Mix the attention of targets with their windows.

    Args:
        attention: [B, heads, h w, L].
        targets: T of them.
        windows: [T, h, w], each of sum 1.
        strength: lambda, in [0, 1].
    """
    mixed = attention.clone()
    for target, window in zip(targets, windows, strict=True):
        tokens = slice(target.tokens.start, target.tokens.stop)
        own = attention[..., tokens]
        mixed[..., tokens] = (1 - strength) * own + strength * window.flatten()[:, None] * own.sum(2, keepdim=True)
    return mixed


def watch(unet: UNet2DConditionModel, layers: Sequence[str]) -> None:
    """Make a U-Net call `layout` with the attention of these layers whenever it is called with one.

    Raises:
        ModelError: a layer is of a kind that the text-to-image U-Nets do not have.
    """
    for name, layer in attention_modules(unet):
        unusual = unusual_parts(layer)
        if name in layers and unusual:
            raise ModelError(f"layer {name} of the U-Net has a {unusual[0]}: its attention cannot be guided")
        layer.set_processor(LayoutAttention(guided=name in layers))


class LayoutAttention(AttnProcessor2_0):
    """Attention as diffusers computes it, which calls `layout` with the probabilities if it is given."""

    def __init__(self, *, guided: bool) -> None:
        super().__init__()
        self.guided = guided

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        layout: Change | None = None,
    ) -> Tensor:
        """Attend; `hidden_states` [B, h w, C], `encoder_hidden_states` [B, L, D], `attention_mask` None."""
        if layout is None or not self.guided or encoder_hidden_states is None:
            plain: Tensor = super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
            return plain
        assert attention_mask is None, "Stable Diffusion's text needs no mask"
        text = normalize_text(attn, encoder_hidden_states)
        query, key, value = (
            split_heads(projected, attn.heads)
            for projected in (attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text))
        )
        probabilities = layout((query @ key.transpose(-1, -2) * attn.scale).softmax(-1))
        project, dropout = attn.to_out
        output: Tensor = dropout(project(join_heads(probabilities @ value)))
        return add_residual(attn, output, hidden_states)
