"""A latent diffusion model, Stable Diffusion 1.5 or XL: its parts, one training step, and sampling.

What sets SDXL apart stands here alone: a second text encoder with a tokenizer of its own, and as further conditions the
pooled embedding of the text and six sizes. `LatentDiffusion` by itself is plain text-to-image training. The recipes
override what is different about them: `conditions`, `weight` and `penalty`, and for sampling `unconditional`.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, PreTrainedModel

from schemas.errors import ModelError
from schemas.folders import describe_folder
from schemas.keys import rng_of
from training import drops
from training.drops import DropTable
from training.guidance import Conditions, Guide, denoise, follow
from training.latent_space import downsampling, draw_latents, latent_shape
from training.layout import load_scheduler, save_encoder, save_vocabulary
from training.losses import min_snr_weights, noise_loss
from training.timesteps import TimeSampling, draw_timesteps
from training.tokenizer import tokenize

Batch = Mapping[str, Any]
"""What `training.shards.batches` yields: name to tensor or list."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of the pixels that CLIP was trained on, in [0, 1]."""
STABLE_DIFFUSION = "stable-diffusion-v1-5/stable-diffusion-v1-5"
"""The published Stable Diffusion 1.5 on the hub."""
STABLE_DIFFUSION_XL = "stabilityai/stable-diffusion-xl-base-1.0"
"""The published Stable Diffusion XL on the hub."""
LAYOUT = "Stable Diffusion 1.5's layout (tokenizer/, text_encoder/, unet/, vae/, scheduler/)"
XL_LAYOUT = f"{LAYOUT} or that of Stable Diffusion XL (tokenizer_2/ and text_encoder_2/ besides)"


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The networks of Stable Diffusion, its scheduler and its tokenizer. A recipe's parts add its own.

    The scheduler may be of any class: it is saved as it is, and training takes the noise schedule of its config.

    Stable Diffusion XL has a second text encoder, with a tokenizer of its own; in Stable Diffusion 1.5 they are None.
    """

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: SchedulerMixin
    tokenizer_2: CLIPTokenizer | None = None
    text_encoder_2: CLIPTextModelWithProjection | None = None

    @property
    def tokenizers(self) -> tuple[CLIPTokenizer, ...]:
        """The tokenizer of each text encoder."""
        return (self.tokenizer,) if self.tokenizer_2 is None else (self.tokenizer, self.tokenizer_2)


@dataclass(frozen=True)
class Draws:
    """Everything random in one training step.

    Attributes:
        noise: added to the latents, [B, C, h, w] float32, standard normal.
        latent_noise: draws latents from the autoencoder's posterior, [B, C, h, w] float32, standard normal.
        timesteps: of the noise schedule, [B] int64.
        dropped: what the model's drop table drops for the whole batch.
        offset: added to the noise of each channel, [B, C, 1, 1] float32; None for nothing.
    """

    noise: Tensor
    latent_noise: Tensor
    timesteps: Tensor
    dropped: frozenset[str] = frozenset()
    offset: Tensor | None = None

    def to(self, device: torch.device) -> "Draws":
        """Move the tensors to `device`."""
        moved = (self.noise.to(device), self.latent_noise.to(device), self.timesteps.to(device))
        return Draws(*moved, self.dropped, None if self.offset is None else self.offset.to(device))

    def with_offset(self) -> "Draws":
        """The same draws with the offset added to the noise."""
        return self if self.offset is None else replace(self, noise=self.noise + self.offset, offset=None)


class LatentDiffusion(nn.Module):
    """A latent diffusion model; calling it computes its losses, `sample` draws pictures.

    Each part becomes an attribute of the same name. The autoencoder is frozen, and no layer drops activations at
    random: everything random in a step comes from `draw`, so that a run can be resumed exactly.

    A batch holds at least

        pixel_values  [B, 3, R, R] float32 in [-1, 1]
        input_ids     [B, E L] int64, the captions' tokens for each of the E text encoders, one after the other
        sizes         [B, 6] int64, for SDXL only, as `training.geometry.sizes_of` computes them

    and, if latents are kept, `posterior`, what `encode_pixels` returns for its pictures.

    Args:
        parts: the networks, trained in place.
        drop_table: drawn from at the granularity of a batch.

    Attributes:
        sampling_steps: default number of DDIM steps.
        guidance: default weight of classifier-free guidance; 1 is none.
        min_snr: gamma of the min-SNR weighting of the noise loss; 0 is none.
        noise_offset: standard deviation of a number added to the noise of each channel; 0 is none.
        time_sampling: how `draw` draws timesteps.
        masks_noise: whether `weight` masks the noise loss in some steps.
    """

    sampling_steps = 50
    guidance = 7.5
    negative_prompt = ""
    sampler: Any = DDIMScheduler
    min_snr: float = 0.0
    noise_offset: float = 0.0
    time_sampling: TimeSampling = "uniform"
    masks_noise = False
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: DDPMScheduler
    tokenizer_2: CLIPTokenizer | None
    text_encoder_2: CLIPTextModelWithProjection | None

    def __init__(self, parts: Parts, drop_table: DropTable | None = None) -> None:
        super().__init__()
        self.parts, self.drop_table = parts, drop_table or {}
        for part in fields(parts):
            setattr(self, part.name, getattr(parts, part.name))
        self.scheduler = DDPMScheduler.from_config(parts.scheduler.config)
        self.eval()
        self.vae.requires_grad_(False)
        self.train_text_encoders(True)

    @property
    def tools(self) -> Any:  # noqa: ANN401 - each recipe's own
        """What the recipe's view needs of the model: by default the tokenizer of each text encoder."""
        return self.parts.tokenizers

    def train_text_encoders(self, trained: bool) -> None:
        """Train the text encoders or freeze them; layers whose outputs SDXL does not use are frozen in either case."""
        self.text_encoder.requires_grad_(trained)
        if self.text_encoder_2 is not None:
            self.text_encoder_2.requires_grad_(trained)
            self.text_encoder.encoder.layers[-1].requires_grad_(False)
            self.text_encoder.final_layer_norm.requires_grad_(False)

    def draw(self, batch: Batch, rng: np.random.Generator) -> Draws:
        """Draw everything random in a step on `batch`."""
        shape = latent_shape(batch["pixel_values"], self.vae)
        noise, latent_noise = (torch.from_numpy(rng.standard_normal(shape, np.float32)) for _ in range(2))
        total = self.scheduler.config.num_train_timesteps
        timesteps = torch.from_numpy(draw_timesteps(self.time_sampling, shape[0], total, rng))
        dropped = drops.draw(self.drop_table, "batch", rng)
        if not self.noise_offset:
            return Draws(noise, latent_noise, timesteps, dropped)
        offset = self.noise_offset * rng.standard_normal((*shape[:2], 1, 1), np.float32)
        return Draws(noise, latent_noise, timesteps, dropped, torch.from_numpy(offset))

    def fixed_draws(self, batch: Batch, seed: int) -> Draws:
        """What is random in a step on `batch`, for comparing losses: each sample's is a function of (seed, key).

        Nothing is dropped, and the noise has no offset.
        """
        shape = latent_shape(batch["pixel_values"], self.vae)
        rngs = [rng_of(seed, "held out", key) for key in batch["keys"]]
        noise, latent_noise = (
            torch.from_numpy(np.stack([rng.standard_normal(shape[1:], np.float32) for rng in rngs])) for _ in range(2)
        )
        timesteps = [rng.integers(0, self.scheduler.config.num_train_timesteps) for rng in rngs]
        return Draws(noise, latent_noise, torch.tensor(timesteps))

    def forward(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Compute the losses of a batch: scalars `loss`, which is minimized, `noise`, and each penalty by its name.

        Where `weight` masks the noise loss in some steps, `whole_noise` is that over whole pictures in every step.
        """
        posterior = batch["posterior"] if "posterior" in batch else self.encode_pixels(batch["pixel_values"])
        latents = draw_latents(posterior, draws.latent_noise) * self.vae.config.scaling_factor
        draws = draws.with_offset()
        noisy = self.scheduler.add_noise(latents, draws.noise, draws.timesteps)
        conditions = self.conditions(batch)
        prediction = self.predict(noisy, draws.timesteps, conditions)
        target = noise_target(self.scheduler, latents, draws)
        of_latents = self.weight(batch, draws, (noisy.shape[-2], noisy.shape[-1]))
        of_samples = min_snr_weights(self.scheduler, draws.timesteps, self.min_snr) if self.min_snr else None
        noise = noise_loss(prediction, target, of_latents, of_samples)
        losses = {"loss": noise, "noise": noise}
        if self.masks_noise:
            whole = noise_loss(prediction.detach(), target, None, of_samples)
            losses["whole_noise"] = noise.detach() if of_latents is None else whole
        for name, (weight, penalty) in self.penalty(batch, conditions).items():
            losses["loss"] = losses["loss"] + weight * penalty
            losses[name] = penalty
        return losses

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Encode pictures [B, 3, H, W] in [-1, 1] as the parameters of their posteriors, [B, 2C, h, w]."""
        with self.autoencoder_precision():
            parameters: Tensor = self.vae.encode(pixels).latent_dist.parameters
        return parameters

    def conditions(self, batch: Batch) -> Conditions:
        """Keyword arguments for the U-Net: by default the encoded captions, for SDXL also pooled text and sizes."""
        text, pooled = self.encode_and_pool(batch["input_ids"])
        if pooled is None:
            return {"encoder_hidden_states": text}
        added = {"text_embeds": pooled, "time_ids": batch["sizes"]}
        return {"encoder_hidden_states": text, "added_cond_kwargs": added}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """Predict the noise, or the velocity, in latents [B, C, h, w] at `timesteps` [B] or a single one."""
        prediction: Tensor = self.unet(noisy, timesteps, **conditions).sample
        return prediction

    def weight(self, batch: Batch, draws: Draws, size: tuple[int, int]) -> Tensor | None:  # noqa: ARG002
        """Weight of the noise loss at each of `size` (h, w) latents, [B, 1, h, w] in [0, 1]; None for 1 everywhere."""
        return None

    def penalty(self, batch: Batch, conditions: Conditions) -> Mapping[str, tuple[float, Tensor]]:  # noqa: ARG002
        """Further losses by name, after the U-Net ran with `conditions`: each its weight in the sum, and its value."""
        return {}

    def unconditional(self, batch: Batch) -> Batch:
        """The same batch without its conditions, from which guidance leads away: by default `negative_prompt` alone."""
        negative = self.tokenize([self.negative_prompt]).to(batch["input_ids"].device)
        return {**batch, "input_ids": negative.expand_as(batch["input_ids"])}

    def sampling_conditions(self, batch: Batch, steps: int) -> Sequence[Conditions]:
        """Conditions at each sampling step, for the unconditional batch followed by `batch`: [2B, ...]."""
        return [self.conditions(concatenate(self.unconditional(batch), batch))] * steps

    def references(self, batch: Batch) -> Tensor:
        """The pictures that condition each sample, [B, M, 3, h, w] float32 in [0, 1]: by default none, M = 0."""
        return batch["pixel_values"][:, None][:, :0]

    @torch.no_grad()
    def sample(
        self,
        batch: Batch,
        noise: Tensor,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        guide: Guide = follow,
    ) -> Tensor:
        """Draw a picture for each sample by `sampler` without fresh noise: [B, 3, H, W] float32 in [0, 1].

        SDXL is told that the picture was cropped from nothing larger.

        Args:
            batch: the conditions; `pixel_values` and `sizes` are not used.
            noise: the start, [B, C, h, w] float32, standard normal.
            steps: number of steps, by default `sampling_steps`.
            guidance: weight of classifier-free guidance, by default `guidance`; 1 is none.
            guide: may change each step; called without gradients.
        """
        steps = self.sampling_steps if steps is None else steps
        guidance = self.guidance if guidance is None else guidance
        schedule = self.sampler.from_config(self.scheduler.config)
        schedule.set_timesteps(steps, device=noise.device)
        latents = noise * schedule.init_noise_sigma
        height, width = (side * downsampling(self.vae) for side in noise.shape[-2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], device=noise.device)
        batch = {**batch, "sizes": sizes.expand(len(noise), -1)}
        conditions = self.sampling_conditions(batch, steps)
        latents = denoise(latents, schedule, conditions, self.predict, guidance, guide)
        with self.autoencoder_precision():
            pictures = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return (pictures.float() / 2 + 0.5).clamp(0, 1)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Encode token ids [B, E L] int64: [B, L, D]. Gradients flow only if the text encoders are trained."""
        return self.encode_and_pool(ids)[0]

    def encode_and_pool(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encode token ids [B, E L] int64: [B, L, D], and for SDXL the pooled embedding [B, F], else None."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and is_trained(self.text_encoder)):
            if self.text_encoder_2 is None:
                return self.text_encoder(ids).last_hidden_state, None
            first, second = ids.chunk(2, dim=1)
            encoded = self.text_encoder(first, output_hidden_states=True)
            encoded_2 = self.text_encoder_2(second, output_hidden_states=True)
        # SDXL was trained on the outputs of the last layers but one (Podell et al. 2023, section 2.1).
        return torch.cat([encoded.hidden_states[-2], encoded_2.hidden_states[-2]], dim=-1), encoded_2.text_embeds

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Turn texts into token ids, padded and cut to the encoders' length L: [B, E L] int64."""
        return tokenize(texts, self.parts.tokenizers, self.text_encoder.config.max_position_embeddings)

    def autoencoder_precision(self) -> AbstractContextManager[Any]:
        """Switch mixed precision off within this block for SDXL, whose autoencoder overflows in half precision."""
        if self.text_encoder_2 is None:
            return contextlib.nullcontext()
        return torch.autocast(self.vae.device.type, enabled=False)

    def save(self, folder: Path) -> None:
        """Write the model to a new folder in Stable Diffusion's layout, each further part in a folder of its name.

        diffusers' own `StableDiffusionPipeline` or `StableDiffusionXLPipeline` loads the folder too, for pictures from
        text alone; also that of diffusers 0.30 with transformers 4.44.
        """
        found = {part.name: getattr(self, part.name) for part in fields(Parts)} | {"scheduler": self.parts.scheduler}
        base = {name: part for name, part in found.items() if part is not None}
        if self.text_encoder_2 is None:
            pipeline = StableDiffusionPipeline(
                **base, safety_checker=None, feature_extractor=None, requires_safety_checker=False
            )
        else:  # an empty caption is encoded here, in training and in sampling; the published one has zeros instead
            pipeline = StableDiffusionXLPipeline(**base, force_zeros_for_empty_prompt=False, add_watermarker=False)
        pipeline.save_pretrained(folder)
        for part in fields(self.parts):
            saved, place = getattr(self, part.name), folder / part.name
            if isinstance(saved, PreTrainedModel):
                save_encoder(saved, place)
            elif part.name not in found and hasattr(saved, "save_pretrained"):
                saved.save_pretrained(place)
            if isinstance(saved, CLIPTokenizer):
                save_vocabulary(saved, place)


def load_stable_diffusion(folder: str | Path, *, allow_xl: bool = False) -> dict[str, Any]:
    """Load the fields of `Parts` from a folder in the layout of Stable Diffusion 1.5 or XL, or the hub's name of one.

    Networks are in single precision, in whichever they are stored; transformers by itself would keep that of the file.

    Args:
        folder: holds the model; its U-Net says which of the two it is.
        allow_xl: whether the recipe can train Stable Diffusion XL.

    Raises:
        ModelError: something is missing or of another kind.
    """
    with loading(folder, XL_LAYOUT if allow_xl else LAYOUT):
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
        if is_xl(unet) and not allow_xl:
            raise ModelError(f"no model in {folder}: it is a Stable Diffusion XL, which this recipe cannot train")
        base = {
            "tokenizer": CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
            "text_encoder": CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float32),
            "unet": unet,
            "vae": AutoencoderKL.from_pretrained(folder, subfolder="vae"),
            "scheduler": load_scheduler(folder),
        }
        if is_xl(unet):
            base["tokenizer_2"] = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer_2")
            base["text_encoder_2"] = CLIPTextModelWithProjection.from_pretrained(
                folder, subfolder="text_encoder_2", dtype=torch.float32
            )
        return base


def is_xl(unet: UNet2DConditionModel) -> bool:
    """Whether a U-Net is that of Stable Diffusion XL: it takes pooled text and sizes as further conditions."""
    return unet.config.addition_embed_type == "text_time"


@contextlib.contextmanager
def loading(folder: str | Path, layout: str) -> Iterator[None]:
    """Turn anything that is wrong with a model's folder into a ModelError that states the `layout` it should have."""
    advice = f"It must be a folder in {layout}, or a name of one that can be downloaded"
    if str(folder).startswith(("/", ".", "~")) and not Path(folder).is_dir():
        raise ModelError(f"no model in {folder}: there is no such folder. {advice}")
    try:
        yield
    except (OSError, ValueError, TypeError) as error:
        reason = shorten(str(error), 200)
        if Path(folder).is_dir():
            is_model = any((Path(folder) / part).is_dir() for part in ("unet", "qformer"))
            reason = describe_folder(folder) + (f" ({shorten(str(error), 120)})" if is_model else "")
        raise ModelError(f"no model in {folder}: {reason}. {advice}") from error


def noise_target(scheduler: DDPMScheduler, latents: Tensor, draws: Draws) -> Tensor:
    """What the U-Net should predict, [B, C, h, w]: the noise, or the velocity if the schedule says so."""
    if scheduler.config.prediction_type == "v_prediction":
        return scheduler.get_velocity(latents, draws.noise, draws.timesteps)
    return draws.noise


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


def first_sample(batch: Batch) -> Batch:
    """The first sample of a batch, as a batch."""
    return {name: value[:1] for name, value in batch.items()}


def is_trained(part: nn.Module) -> bool:
    """Whether any parameter of `part` is trained."""
    return any(parameter.requires_grad for parameter in part.parameters())
