"""What the latent diffusion models of this package share: draws, the noise loss, pictures to latents and back."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from schemas.errors import ModelError

Batch = Mapping[str, Any]
"""What a loader yields: name to tensor (and "keys", the samples' keys)."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels that CLIP was trained on, in [0, 1]."""


@dataclass(frozen=True)
class Draws:
    """All that is random in one step of training.

    `noise` and `latent_noise` are [B, C, h, w] float32, standard normal: what the latents are hidden in, and what the
    autoencoder's posterior is drawn with. `timesteps` is [B] int64. `masked`: FastComposer's noise loss sees subjects
    only.
    """

    noise: Tensor
    latent_noise: Tensor
    timesteps: Tensor
    masked: bool

    @classmethod
    def of(cls, shape: tuple[int, ...], steps: int, mask_probability: float, rng: np.random.Generator) -> Self:
        """Draw for latents of `shape` [B, C, h, w] and a schedule of `steps`."""
        noise, latent_noise = (torch.from_numpy(rng.standard_normal(shape, np.float32)) for _ in range(2))
        timesteps = torch.from_numpy(rng.integers(0, steps, shape[0]))
        return cls(noise, latent_noise, timesteps, bool(rng.random() < mask_probability))

    def to(self, device: torch.device) -> "Draws":
        """Move the tensors to `device`."""
        return Draws(self.noise.to(device), self.latent_noise.to(device), self.timesteps.to(device), self.masked)


def latent_shape(pixels: Tensor, vae: AutoencoderKL) -> tuple[int, int, int, int]:
    """Tell the shape [B, C, h, w] of the latents of pictures [B, 3, H, W]."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    count, _, height, width = pixels.shape
    return count, vae.config.latent_channels, height // factor, width // factor


def noise_loss(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error of [B, C, h, w]; `weight` [B, 1, h, w] in [0, 1] multiplies both sides first.

    The mean runs over all pixels, those of weight 0 included, as in the published trainer.
    """
    if weight is not None:
        prediction, target = prediction * weight, target * weight
    return F.mse_loss(prediction.float(), target.float())


def noise_target(scheduler: DDPMScheduler, latents: Tensor, draws: Draws) -> Tensor:
    """What a U-Net is to predict, [B, C, h, w]: the noise, or the velocity where the schedule says so."""
    if scheduler.config.prediction_type == "v_prediction":
        return scheduler.get_velocity(latents, draws.noise, draws.timesteps)
    return draws.noise


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, pixels: Tensor, noise: Tensor) -> Tensor:
    """Encode pictures [B, 3, H, W] in [-1, 1] as latents [B, C, h, w], drawn from the posterior with `noise`."""
    posterior = vae.encode(pixels).latent_dist
    return (posterior.mean + posterior.std * noise) * vae.config.scaling_factor


def as_clip_sees(pictures: Tensor, side: int) -> Tensor:
    """Scale pictures [N, 3, h, w] float32 in [0, 1] to `side`, and normalise them as CLIP's training did."""
    if pictures.shape[-2:] != (side, side):
        pictures = F.interpolate(pictures, (side, side), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values, device=pictures.device).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (pictures - mean) / std


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str], length: int) -> Tensor:
    """Turn texts into token ids, padded and cut to `length`: [B, L] int64."""
    return tokenizer(
        list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids


@torch.no_grad()
def draw_pictures(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    scheduler: DDPMScheduler,
    noise: Tensor,
    nothing: Tensor,
    texts: Sequence[Tensor],
    guidance: float,
) -> Tensor:
    """Draw pictures from noise by DDIM without fresh noise: [B, 3, H, W] float32 in [0, 1].

    Args:
        unet: predicts the noise.
        vae: decodes.
        scheduler: the schedule of the training.
        noise: where it starts, [B, C, h, w] float32, standard normal.
        nothing: the empty text's embeddings, [B, L, D].
        texts: the texts' embeddings, [B, L, D], at each step.
        guidance: weight of classifier-free guidance; 1 is none.
    """
    schedule = DDIMScheduler.from_config(scheduler.config)
    schedule.set_timesteps(len(texts), device=noise.device)
    latents = noise * schedule.init_noise_sigma
    for time, text in zip(schedule.timesteps, texts, strict=True):
        both = unet(torch.cat([latents] * 2), time, encoder_hidden_states=torch.cat([nothing, text])).sample
        without, with_text = both.chunk(2)
        latents = schedule.step(without + guidance * (with_text - without), time, latents).prev_sample
    pictures = vae.decode(latents / vae.config.scaling_factor).sample
    return (pictures.float() / 2 + 0.5).clamp(0, 1)


def trains(part: torch.nn.Module) -> bool:
    """Whether any parameter of `part` is trained."""
    return any(parameter.requires_grad for parameter in part.parameters())


@contextlib.contextmanager
def loading(folder: str | Path, layout: str) -> Iterator[None]:
    """Turn whatever is wrong with a model's folder into a ModelError that says what `layout` it must have."""
    try:
        yield
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(
            f"no model in {folder}: {shorten(str(error), 200)}. It must be a folder in {layout}, or a name of one that "
            "can be downloaded"
        ) from error


def save_stable_diffusion(
    folder: Path,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    scheduler: DDPMScheduler,
) -> None:
    """Write the parts that Stable Diffusion has, in its layout: diffusers' own pipeline reads the folder."""
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
