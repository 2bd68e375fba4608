"""Train the sample autoencoder: a small `AutoencoderKL` on sample scenes, on a CPU.

    python -m jobs.sample_models.autoencoder --output transforms/models/sample/autoencoder

It maps pictures of 64 x 64 pixels to latents of 16 x 16, on which the small diffusion models are trained. Takes twenty
minutes on one core.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
import typer
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from jobs.sample_models.fit import Batch, Checkpoint, Output, Peak, Scenes, Seed, Settings, Steps, fit
from jobs.sample_models.pools import render_pool

SIDE = 64
"""Side of a picture in pixels."""
KL_WEIGHT = 1e-4
"""Weight of the KL divergence between latents and the normal distribution, high enough to keep latents smooth."""


def new_autoencoder() -> AutoencoderKL:
    """Build the untrained model: 0.4 million parameters, four latent channels, a quarter as many pixels per side."""
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
    """Draw `count` pictures: [B, 3, SIDE, SIDE] float32 in [-1, 1].

    A third of them are crops of 2 x SIDE pixels, the rest whole scenes.

    Args:
        images: scenes, [N, S, S, 3] uint8.
        rng: draws scenes and crops.
        count: B.
    """
    chosen = torch.from_numpy(images[rng.choice(len(images), count, replace=False)]).permute(0, 3, 1, 2).float()
    small = F.interpolate(chosen, (SIDE, SIDE), mode="bilinear", antialias=True)
    for i in np.flatnonzero(rng.random(count) < 1 / 3):
        top, left = rng.integers(0, chosen.shape[-1] - 2 * SIDE, 2)
        crop = chosen[i : i + 1, :, top : top + 2 * SIDE, left : left + 2 * SIDE]
        small[i] = F.interpolate(crop, (SIDE, SIDE), mode="bilinear", antialias=True)[0]
    return small / 127.5 - 1


def measure(model: AutoencoderKL, pictures: torch.Tensor) -> tuple[float, float]:
    """Peak signal-to-noise ratio of reconstructed pictures, in dB, and the standard deviation of their latents."""
    with torch.no_grad():
        latents = model.eval().encode(pictures).latent_dist.mode()
        error = F.mse_loss(model.decode(latents).sample.clamp(-1, 1), pictures)
    model.train()
    return 10 * math.log10(4 / error.item()), latents.std().item()


def train(
    output: Output,
    steps: Steps = 4000,
    scenes: Scenes = 4000,
    batch: Batch = 8,
    peak: Peak = 1e-3,
    seed: Seed = 0,
    checkpoint: Checkpoint = None,
) -> None:
    """Train a small AutoencoderKL on sample scenes and save it in the format of the published checkpoints."""
    torch.manual_seed(seed)
    images = render_pool(scenes).images
    held_out, images = draw_pictures(images[:64], np.random.default_rng(0), 64), images[64:]
    model = new_autoencoder().train()

    def loss(_: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        pictures = draw_pictures(images, rng, batch)
        posterior = model.encode(pictures).latent_dist
        noise = torch.from_numpy(rng.standard_normal(posterior.mean.shape, np.float32))
        decoded = model.decode(posterior.mean + posterior.std * noise).sample
        divergence = KL_WEIGHT * posterior.kl().mean() / 256
        return F.l1_loss(decoded, pictures) + F.mse_loss(decoded, pictures) + divergence, {}

    def evaluate(_: int) -> dict[str, float]:
        quality, spread = measure(model, held_out)
        return {"PSNR in dB": quality, "spread of latents": spread}

    settings = Settings(steps, peak, warmup=100, weight_decay=1e-4, max_norm=1.0, seed=seed)
    fit(model, loss, settings, evaluate=evaluate, every=200, checkpoint=checkpoint)
    _, spread = measure(model, held_out)
    model.register_to_config(scaling_factor=round(1 / spread, 4))  # diffusion models expect latents of unit variance
    model.half().save_pretrained(output)  # half the size; it is loaded in single precision


if __name__ == "__main__":
    typer.run(train)
