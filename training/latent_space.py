"""Pictures and latents of an autoencoder: their sizes, and drawing the ones for the others."""

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor


def latent_shape(pixels: Tensor, vae: AutoencoderKL) -> tuple[int, int, int, int]:
    """The shape [B, C, h, w] of the latents of pictures [B, 3, H, W]."""
    factor = downsampling(vae)
    count, _, height, width = pixels.shape
    return count, vae.config.latent_channels, height // factor, width // factor


def downsampling(vae: AutoencoderKL) -> int:
    """Pixels of a picture per latent, along each side."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, pixels: Tensor, noise: Tensor) -> Tensor:
    """Encode pictures [B, 3, H, W] in [-1, 1] as latents [B, C, h, w], drawn from the posterior with `noise`."""
    return draw_latents(vae.encode(pixels).latent_dist.parameters, noise) * vae.config.scaling_factor


def draw_latents(parameters: Tensor, noise: Tensor) -> Tensor:
    """Draw latents [B, C, h, w] with `noise` from posteriors of these parameters, [B, 2C, h, w]."""
    posterior = DiagonalGaussianDistribution(parameters)
    return posterior.mean + posterior.std * noise
