"""A latent diffusion model: its parts, one training step, and sampling.

`LatentDiffusion` by itself is plain text-to-image training. The recipes override what is different about them:
`conditions`, `weight` and `penalty`, and for sampling `unconditional`.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from schemas.errors import ModelError
from training import drops
from training.drops import DropTable

Batch = Mapping[str, Any]
"""What `training.shards.batches` yields: name to tensor or list."""
Conditions = dict[str, Any]
"""Keyword arguments of the U-Net: `encoder_hidden_states` [B, L, D], and others."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of the pixels that CLIP was trained on, in [0, 1]."""
STABLE_DIFFUSION = "stable-diffusion-v1-5/stable-diffusion-v1-5"
"""The published Stable Diffusion 1.5 on the hub."""
LAYOUT = "Stable Diffusion 1.5's layout (tokenizer/, text_encoder/, unet/, vae/, scheduler/)"


@dataclass(frozen=True)
class Parts:
    """The networks of Stable Diffusion, its noise schedule and its tokenizer. A recipe's parts add its own."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: DDPMScheduler


@dataclass(frozen=True)
class Draws:
    """Everything random in one training step.

    Attributes:
        noise: added to the latents, [B, C, h, w] float32, standard normal.
        latent_noise: draws latents from the autoencoder's posterior, [B, C, h, w] float32, standard normal.
        timesteps: of the noise schedule, [B] int64.
        dropped: what the model's drop table drops for the whole batch.
    """

    noise: Tensor
    latent_noise: Tensor
    timesteps: Tensor
    dropped: frozenset[str] = frozenset()

    def to(self, device: torch.device) -> "Draws":
        """Move the tensors to `device`."""
        return Draws(self.noise.to(device), self.latent_noise.to(device), self.timesteps.to(device), self.dropped)


class LatentDiffusion(nn.Module):
    """A latent diffusion model; calling it computes its losses, `sample` draws pictures.

    Each part becomes an attribute of the same name. The autoencoder is frozen, and no layer drops activations at
    random: everything random in a step comes from `draw`, so that a run can be resumed exactly.

    A batch holds at least

        pixel_values  [B, 3, R, R] float32 in [-1, 1]
        input_ids     [B, L] int64, the captions' tokens

    Args:
        parts: the networks, trained in place.
        drop_table: drawn from at the granularity of a batch.

    Attributes:
        sampling_steps: default number of DDIM steps.
        guidance: default weight of classifier-free guidance; 1 is none.
    """

    sampling_steps = 50
    guidance = 7.5
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: DDPMScheduler

    def __init__(self, parts: Parts, drop_table: DropTable | None = None) -> None:
        super().__init__()
        self.parts, self.drop_table = parts, drop_table or {}
        for part in fields(parts):
            setattr(self, part.name, getattr(parts, part.name))
        self.eval()
        self.vae.requires_grad_(False)

    @property
    def tools(self) -> Any:  # noqa: ANN401 - each recipe's own
        """What the recipe's view needs of the model: by default the tokenizer."""
        return self.tokenizer

    def draw(self, batch: Batch, rng: np.random.Generator) -> Draws:
        """Draw everything random in a step on `batch`."""
        shape = latent_shape(batch["pixel_values"], self.vae)
        noise, latent_noise = (torch.from_numpy(rng.standard_normal(shape, np.float32)) for _ in range(2))
        timesteps = torch.from_numpy(rng.integers(0, self.scheduler.config.num_train_timesteps, shape[0]))
        return Draws(noise, latent_noise, timesteps, drops.draw(self.drop_table, "batch", rng))

    def forward(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Compute the losses of a batch: scalars `loss`, which is minimized, `noise`, and each penalty by its name."""
        latents = encode_pictures(self.vae, batch["pixel_values"], draws.latent_noise)
        noisy = self.scheduler.add_noise(latents, draws.noise, draws.timesteps)
        conditions = self.conditions(batch)
        prediction = self.unet(noisy, draws.timesteps, **conditions).sample
        target = noise_target(self.scheduler, latents, draws)
        noise = noise_loss(prediction, target, self.weight(batch, draws, (noisy.shape[-2], noisy.shape[-1])))
        losses = {"loss": noise, "noise": noise}
        for name, (weight, penalty) in self.penalty(batch, conditions).items():
            losses["loss"] = losses["loss"] + weight * penalty
            losses[name] = penalty
        return losses

    def conditions(self, batch: Batch) -> Conditions:
        """Keyword arguments for the U-Net: by default the encoded captions."""
        return {"encoder_hidden_states": self.encode_text(batch["input_ids"])}

    def weight(self, batch: Batch, draws: Draws, size: tuple[int, int]) -> Tensor | None:  # noqa: ARG002
        """Weight of the noise loss at each of `size` (h, w) latents, [B, 1, h, w] in [0, 1]; None for 1 everywhere."""
        return None

    def penalty(self, batch: Batch, conditions: Conditions) -> Mapping[str, tuple[float, Tensor]]:  # noqa: ARG002
        """Further losses by name, after the U-Net ran with `conditions`: each its weight in the sum, and its value."""
        return {}

    def unconditional(self, batch: Batch) -> Batch:
        """The same batch without its conditions, from which guidance leads away: by default an empty caption."""
        empty = self.tokenize([""]).to(batch["input_ids"].device)
        return {**batch, "input_ids": empty.expand_as(batch["input_ids"])}

    def sampling_conditions(self, batch: Batch, steps: int) -> Sequence[Conditions]:
        """Conditions at each sampling step, for the unconditional batch followed by `batch`: [2B, ...]."""
        return [self.conditions(concatenate(self.unconditional(batch), batch))] * steps

    def references(self, batch: Batch) -> Tensor:
        """The pictures that condition each sample, [B, M, 3, h, w] float32 in [0, 1]: by default none, M = 0."""
        return batch["pixel_values"][:, None][:, :0]

    @torch.no_grad()
    def sample(self, batch: Batch, noise: Tensor, *, steps: int | None = None, guidance: float | None = None) -> Tensor:
        """Draw a picture for each sample by DDIM without fresh noise: [B, 3, H, W] float32 in [0, 1].

        Args:
            batch: the conditions; `pixel_values` is not used.
            noise: the start, [B, C, h, w] float32, standard normal.
            steps: number of DDIM steps, by default `sampling_steps`.
            guidance: weight of classifier-free guidance, by default `guidance`; 1 is none.
        """
        steps = self.sampling_steps if steps is None else steps
        guidance = self.guidance if guidance is None else guidance
        schedule = DDIMScheduler.from_config(self.scheduler.config)
        schedule.set_timesteps(steps, device=noise.device)
        latents = noise * schedule.init_noise_sigma
        for time, conditions in zip(schedule.timesteps, self.sampling_conditions(batch, steps), strict=True):
            without, conditional = self.unet(torch.cat([latents] * 2), time, **conditions).sample.chunk(2)
            latents = schedule.step(without + guidance * (conditional - without), time, latents).prev_sample
        pictures = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return (pictures.float() / 2 + 0.5).clamp(0, 1)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Encode token ids [B, L] int64: [B, L, D]. Gradients flow only if the text encoder is trained."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and is_trained(self.text_encoder)):
            return self.text_encoder(ids).last_hidden_state

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Turn texts into token ids, padded and cut to the encoder's length L: [B, L] int64."""
        length = self.text_encoder.config.max_position_embeddings
        return self.tokenizer(
            list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids

    def save(self, folder: Path) -> None:
        """Write the model to a new folder in Stable Diffusion 1.5's layout, each further part in a folder of its name.

        diffusers' own `StableDiffusionPipeline` loads the folder too, for pictures from text alone.
        """
        base = {part.name: getattr(self, part.name) for part in fields(Parts)}
        pipeline = StableDiffusionPipeline(
            **base, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
        pipeline.save_pretrained(folder)
        for part in fields(self.parts):
            if part.name not in base and hasattr(getattr(self, part.name), "save_pretrained"):
                getattr(self, part.name).save_pretrained(folder / part.name)


def load_stable_diffusion(folder: str | Path) -> dict[str, Any]:
    """Load the fields of `Parts` from a folder in Stable Diffusion 1.5's layout, or the hub's name of one.

    Raises:
        ModelError: something is missing or of another kind.
    """
    with loading(folder, LAYOUT):
        return {
            "tokenizer": CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
            "text_encoder": CLIPTextModel.from_pretrained(folder, subfolder="text_encoder"),
            "unet": UNet2DConditionModel.from_pretrained(folder, subfolder="unet"),
            "vae": AutoencoderKL.from_pretrained(folder, subfolder="vae"),
            "scheduler": DDPMScheduler.from_pretrained(folder, subfolder="scheduler"),
        }


@contextlib.contextmanager
def loading(folder: str | Path, layout: str) -> Iterator[None]:
    """Turn anything that is wrong with a model's folder into a ModelError that states the `layout` it should have."""
    advice = f"It must be a folder in {layout}, or a name of one that can be downloaded"
    if str(folder).startswith(("/", ".", "~")) and not Path(folder).is_dir():
        raise ModelError(f"no model in {folder}: there is no such folder. {advice}")
    try:
        yield
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"no model in {folder}: {shorten(str(error), 200)}. {advice}") from error


def latent_shape(pixels: Tensor, vae: AutoencoderKL) -> tuple[int, int, int, int]:
    """The shape [B, C, h, w] of the latents of pictures [B, 3, H, W]."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    count, _, height, width = pixels.shape
    return count, vae.config.latent_channels, height // factor, width // factor


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, pixels: Tensor, noise: Tensor) -> Tensor:
    """Encode pictures [B, 3, H, W] in [-1, 1] as latents [B, C, h, w], drawn from the posterior with `noise`."""
    posterior = vae.encode(pixels).latent_dist
    return (posterior.mean + posterior.std * noise) * vae.config.scaling_factor


def noise_target(scheduler: DDPMScheduler, latents: Tensor, draws: Draws) -> Tensor:
    """What the U-Net should predict, [B, C, h, w]: the noise, or the velocity if the schedule says so."""
    if scheduler.config.prediction_type == "v_prediction":
        return scheduler.get_velocity(latents, draws.noise, draws.timesteps)
    return draws.noise


def noise_loss(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error of [B, C, h, w]; `weight` [B, 1, h, w] in [0, 1] multiplies both sides first.

    The mean runs over all latents, those of weight 0 included, as in FastComposer's published trainer.
    """
    if weight is not None:
        prediction, target = prediction * weight, target * weight
    return F.mse_loss(prediction.float(), target.float())


def normalize_for_clip(pictures: Tensor, side: int) -> Tensor:
    """Scale pictures [N, 3, h, w] float32 in [0, 1] to `side`, and normalize them as CLIP was trained."""
    if pictures.shape[-2:] != (side, side):
        pictures = F.interpolate(pictures, (side, side), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values, device=pictures.device).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (pictures - mean) / std


def concatenate(first: Batch, second: Batch) -> Batch:
    """Join two batches of the same recipe, without `pixel_values`."""
    return {
        name: torch.cat([value, second[name]]) if isinstance(value, Tensor) else [*value, *second[name]]
        for name, value in first.items()
        if name != "pixel_values"
    }


def is_trained(part: nn.Module) -> bool:
    """Whether any parameter of `part` is trained."""
    return any(parameter.requires_grad for parameter in part.parameters())
