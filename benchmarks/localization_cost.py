"""Cost of the localization loss: time and memory of a training step, beside a straightforward implementation.

    python -m benchmarks.localization_cost

Three ways in turn, on one U-Net: without the loss; with it; and straightforward, with explicit attention in the same
layers, whose full maps of 77 tokens are kept until the loss is computed. Memory is what autograd keeps for the backward
pass, each storage counted once: exact, and the same on any machine.
"""

import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

from benchmarks.tables import Row, Write, report
from training.localization import Subjects, localization_loss, localize, localized_layers

TOKENS, SUBJECTS = 77, 4


class ExplicitAttention:
    """Explicit attention, as published: the softmax of all scores is kept in `maps`."""

    def __init__(self, layer: str, maps: dict[str, Tensor]) -> None:
        self.layer, self.maps = layer, maps

    def __call__(
        self,
        attn: Any,  # noqa: ANN401 - diffusers' own
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,
        **_: None,
    ) -> Tensor:
        """Attend, keeping the map [B * heads, h*w, 77]."""
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
        value = attn.head_to_batch_dim(attn.to_v(encoder_hidden_states))
        probabilities = attn.get_attention_scores(query, key, attention_mask)
        self.maps[self.layer] = probabilities
        output: Tensor = attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(probabilities @ value)))
        return output


def new_unet() -> UNet2DConditionModel:
    """Build a U-Net with heads as wide as Stable Diffusion's (40 and 80), at a quarter of its width."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(160, 320, 320),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=128,
    )


def steps_of(unet: UNet2DConditionModel, batch: int, side: int) -> dict[str, Callable[[], Tensor]]:
    """Return each way to compute the loss of a step."""
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(batch, 4, side, side, generator=generator) for _ in range(2))
    text = torch.randn(batch, TOKENS, 128, generator=generator)
    index = torch.arange(3, 3 + 5 * SUBJECTS, 5).expand(batch, -1)
    valid = torch.ones(batch, SUBJECTS, dtype=torch.bool)
    masks = (torch.rand(batch, SUBJECTS, 8 * side, 8 * side, generator=generator) > 0.5).float()

    def without() -> Tensor:
        unet.set_attn_processor(AttnProcessor2_0())
        return F.mse_loss(unet(latents, 500, text).sample, noise)

    def ours() -> Tensor:
        localize(unet)
        subjects = Subjects(index, valid)
        prediction = unet(latents, 500, text, cross_attention_kwargs={"subjects": subjects}).sample
        return F.mse_loss(prediction, noise) + subjects.loss(masks)

    def straightforward() -> Tensor:
        maps: dict[str, Tensor] = {}
        unet.set_attn_processor(AttnProcessor2_0())
        modules = dict(unet.named_modules())
        for layer in localized_layers(unet):
            modules[layer].set_processor(ExplicitAttention(layer, maps))
        prediction = unet(latents, 500, text).sample
        losses = [
            localization_loss(full.unflatten(0, (batch, -1))[..., index[0]], masks, valid) for full in maps.values()
        ]
        return F.mse_loss(prediction, noise) + torch.stack(losses).mean()

    return {"without the loss": without, "with it": ours, "straightforward": straightforward}


def kept_for_backward(step: Callable[[], Tensor]) -> int:
    """Count the bytes that autograd keeps between forward and backward, each storage once."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = step()
    assert loss.isfinite()
    return sum(storages.values())


def main(
    batch: Annotated[int, typer.Option(help="Samples in a step.")] = 2,
    side: Annotated[int, typer.Option(help="Side of the latents.")] = 32,
    rounds: Annotated[int, typer.Option(help="Measured steps of each way.")] = 9,
    write: Write = False,
) -> None:
    """Measure time and memory of the three ways in turn."""
    torch.set_num_threads(1)
    unet = new_unet()
    steps = steps_of(unet, batch, side)
    reference = steps["straightforward"]().item()
    assert abs(steps["with it"]().item() - reference) < 1e-4, "the two ways must agree"
    memory = {name: kept_for_backward(step) for name, step in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            step().backward()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
            unet.zero_grad()
    base = next(iter(steps))
    rows = []
    for name in steps:
        # The ratio of each round: neighbours in time run at the same speed of the machine.
        ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))
        kept, extra = memory[name] / 1e6, (memory[name] - memory[base]) / 1e6
        rows.append(Row(f"time of a step, {name}", f"{statistics.median(seconds[name]):.3f} s", f"{ratio:.2f} times"))
        rows.append(Row(f"memory kept for backward, {name}", f"{kept:.1f} MB", f"{extra:.1f} MB extra"))
    share = (memory["with it"] - memory[base]) / (memory["straightforward"] - memory[base])
    rows.append(Row("extra memory, as a share of that of the straightforward way", f"{share:.2f}"))
    report("localization_cost", __doc__ or "", rows, write=write)


if __name__ == "__main__":
    typer.run(main)
