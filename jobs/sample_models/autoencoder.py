"""Train the sample autoencoder: a small `AutoencoderKL` on sample scenes, on a CPU.

    python -m jobs.sample_models.autoencoder --output transforms/models/sample/autoencoder

Pictures of 64 pixels become latents of 16; a small diffusion model learns on these. Twenty minutes on one core.
"""

import math
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from jobs.sample_models.segmenter import render_pool

SIDE = 64
"""Side of the pictures in pixels."""
KL_WEIGHT = 1e-4
"""Of the divergence of the latents from the normal distribution; high enough to keep them smooth."""


def new_autoencoder() -> AutoencoderKL:
    """Build the untrained model: 0.4 million parameters, four latent channels at a quarter of the side."""
    widths = (24, 32, 48)
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=SIDE,
        mid_block_add_attention=False,
    )


def draw_pictures(images: NDArray[np.uint8], rng: np.random.Generator, count: int) -> torch.Tensor:
    """Draw `count` pictures, a third of them as crops at full detail: [B, 3, SIDE, SIDE] float32 in [-1, 1]."""
    chosen = torch.from_numpy(images[rng.choice(len(images), count, replace=False)]).permute(0, 3, 1, 2).float()
    small = F.interpolate(chosen, (SIDE, SIDE), mode="bilinear", antialias=True)
    for i in np.flatnonzero(rng.random(count) < 1 / 3):
        top, left = rng.integers(0, chosen.shape[-1] - 2 * SIDE, 2)
        crop = chosen[i : i + 1, :, top : top + 2 * SIDE, left : left + 2 * SIDE]
        small[i] = F.interpolate(crop, (SIDE, SIDE), mode="bilinear", antialias=True)[0]
    return small / 127.5 - 1


def measure(model: AutoencoderKL, pictures: torch.Tensor) -> tuple[float, float]:
    """Peak signal-to-noise ratio of what comes back, in dB, and the standard deviation of the latents."""
    with torch.no_grad():
        latents = model.eval().encode(pictures).latent_dist.mode()
        error = F.mse_loss(model.decode(latents).sample.clamp(-1, 1), pictures)
    model.train()
    return 10 * math.log10(4 / error.item()), latents.std().item()


def train(
    output: Annotated[Path, typer.Option(help="Folder that receives config and weights.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 4000,
    scenes: Annotated[int, typer.Option(help="Scenes to render.")] = 4000,
    batch: Annotated[int, typer.Option(help="Pictures in a step.")] = 8,
    peak: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Seed of weights and batches.")] = 0,
) -> None:
    """Train a small AutoencoderKL on sample scenes and save it in the format of the published checkpoints."""
    torch.manual_seed(seed)
    images = render_pool(scenes).images
    held_out, images = images[:64], images[64:]
    model = new_autoencoder().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=1e-4)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = peak * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        rng = np.random.default_rng([seed, step])
        pictures = draw_pictures(images, rng, batch)
        posterior = model.encode(pictures).latent_dist
        noise = torch.from_numpy(rng.standard_normal(posterior.mean.shape, np.float32))
        again = model.decode(posterior.mean + posterior.std * noise).sample
        loss = F.l1_loss(again, pictures) + F.mse_loss(again, pictures) + KL_WEIGHT * posterior.kl().mean() / 256
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 200 == 199:
            quality, spread = measure(model, draw_pictures(held_out, np.random.default_rng(0), 64))
            print(f"step {step + 1}  loss {loss.item():.4f}  {quality:.2f} dB  latents {spread:.2f}", flush=True)
    _, spread = measure(model, draw_pictures(held_out, np.random.default_rng(0), 64))
    model.register_to_config(scaling_factor=round(1 / spread, 4))  # a diffusion model wants unit variance
    model.half().save_pretrained(output)  # half the size; it is loaded in single precision


if __name__ == "__main__":
    typer.run(train)
