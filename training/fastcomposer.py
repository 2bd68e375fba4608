"""FastComposer's model and objective: subjects in the text, attention held to their places.

Xiao et al., "FastComposer: Tuning-Free Multi-Subject Image Generation with Localized Attention" (2023). A CLIP image
encoder reads each subject's reference; a small network fuses what it sees with the text token that carries the
subject; the U-Net learns to draw the picture from the fused text:

    L = L_noise + 0.001 L_loc

The classes are those of Stable Diffusion 1.5's folders, at any size: `FastComposer.from_pretrained` reads such a
folder, and `training.small` makes one that a CPU can train.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from training.diffusion import (
    Batch,
    Draws,
    as_clip_sees,
    draw_pictures,
    encode_pictures,
    latent_shape,
    loading,
    noise_loss,
    noise_target,
    save_stable_diffusion,
    tokenize,
    trains,
)
from training.localization import Subjects, localize


class Fuser(ModelMixin, ConfigMixin):
    """Writes what a reference shows into the token that names it (FastComposer, section 4.1).

    `x = text + MLP([text, image])`, `LayerNorm(x + MLP(x))`; each MLP starts with its own LayerNorm.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(self, text_width: int, image_width: int) -> None:
        super().__init__()
        self.join = _mlp(text_width + image_width, text_width)
        self.refine = _mlp(text_width, text_width)
        self.norm = nn.LayerNorm(text_width)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """Fuse tokens [N, D] float with references [N, E] float: [N, D]."""
        fused = text + self.join(torch.cat([text, image], dim=-1))
        return self.norm(fused + self.refine(fused))


def _mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, outputs), nn.GELU(), nn.Linear(outputs, outputs))


def subject_weight(segmentation: Tensor, valid: Tensor, size: tuple[int, int]) -> Tensor:
    """Where the masked noise loss looks: [B, 1, h, w] float32 in [0, 1], the union of the subjects' masks.

    Args:
        segmentation: masks [B, M, H, W] float in [0, 1].
        valid: which of the M are subjects, [B, M] bool.
        size: of the latents, (h, w).

    A sample without subjects is looked at everywhere: under a weight of 0 it would teach nothing, which is what the
    published trainer does to its unconditional samples.
    """
    kept = segmentation.float() * valid[:, :, None, None]
    union = F.interpolate(kept.amax(dim=1, keepdim=True), size, mode="bilinear", antialias=True)
    return torch.where(valid.any(dim=1)[:, None, None, None], union, torch.ones_like(union))


@dataclass(frozen=True)
class Parts:
    """The networks of a model, its noise schedule and its tokenizer: what a folder in diffusers' layout holds."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    image_encoder: CLIPVisionModelWithProjection
    fuser: Fuser
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: DDPMScheduler


def load_parts(folder: str | Path, image_encoder: str | Path = "openai/clip-vit-large-patch14") -> Parts:
    """Load a model from a folder (or the hub's name of one) in Stable Diffusion 1.5's layout.

    A folder that `save_parts` wrote holds the image encoder and the fuser too. Of a plain Stable Diffusion the image
    encoder is loaded from `image_encoder`, and the fuser starts with fresh weights.

    Raises:
        ModelError: something is missing or is of another kind.
    """
    own = (Path(folder) / "fuser").is_dir()
    sight = {"subfolder": "image_encoder"} if own else {}
    layout = "Stable Diffusion 1.5's layout (tokenizer/, text_encoder/, unet/, vae/, scheduler/)"
    with loading(folder, layout):
        text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
        vision = CLIPVisionModelWithProjection.from_pretrained(folder if own else image_encoder, **sight)
        widths = (text_encoder.config.hidden_size, vision.config.projection_dim)
        return Parts(
            tokenizer=CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
            text_encoder=text_encoder,
            image_encoder=vision,
            fuser=Fuser.from_pretrained(folder, subfolder="fuser") if own else Fuser(*widths),
            unet=UNet2DConditionModel.from_pretrained(folder, subfolder="unet"),
            vae=AutoencoderKL.from_pretrained(folder, subfolder="vae"),
            scheduler=DDPMScheduler.from_pretrained(folder, subfolder="scheduler"),
        )


def save_parts(parts: Parts, folder: Path) -> None:
    """Write a model in Stable Diffusion 1.5's layout, with `image_encoder/` and `fuser/` beside.

    diffusers' own `StableDiffusionPipeline` reads the folder too, for pictures from text alone.
    """
    save_stable_diffusion(folder, parts.tokenizer, parts.text_encoder, parts.unet, parts.vae, parts.scheduler)
    parts.image_encoder.save_pretrained(folder / "image_encoder")
    parts.fuser.save_pretrained(folder / "fuser")


class FastComposer(nn.Module):
    """A FastComposer model; `forward` is its objective, `sample` its use.

    Args:
        parts: the networks. The autoencoder is frozen, and so are the encoders but for `trained_blocks`.
        localization_weight: of the localization loss. The paper's 0.001; 0 leaves it out.
        mask_probability: share of the steps whose noise loss sees the subjects only.
        trained_blocks: how many of the image encoder's blocks, the last ones, are trained.
        train_encoders: train both encoders whole: for a model that starts from nothing.
    """

    losses = ("loss", "noise", "localization")

    def __init__(
        self,
        parts: Parts,
        *,
        localization_weight: float = 1e-3,
        mask_probability: float = 0.5,
        trained_blocks: int = 2,
        train_encoders: bool = False,
    ) -> None:
        super().__init__()
        self.tokenizer, self.scheduler = parts.tokenizer, parts.scheduler
        self.text_encoder, self.image_encoder = parts.text_encoder, parts.image_encoder
        self.fuser, self.unet, self.vae = parts.fuser, parts.unet, parts.vae
        self.localization_weight = localization_weight
        self.mask_probability = mask_probability
        localize(self.unet)
        self.vae.requires_grad_(False)
        self.text_encoder.requires_grad_(train_encoders)
        self.image_encoder.requires_grad_(train_encoders)
        blocks = self.image_encoder.vision_model.encoder.layers
        for block in blocks[max(0, len(blocks) - trained_blocks) :]:
            block.requires_grad_(True)

    @property
    def parts(self) -> Parts:
        """The networks, as `save_parts` takes them."""
        return Parts(
            self.tokenizer, self.text_encoder, self.image_encoder, self.fuser, self.unet, self.vae, self.scheduler
        )

    def draw(self, batch: Batch, rng: np.random.Generator) -> Draws:
        """Draw all that is random in a step on `batch`."""
        shape = latent_shape(batch["pixel_values"], self.vae)
        return Draws.of(shape, self.scheduler.config.num_train_timesteps, self.mask_probability, rng)

    def forward(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Compute the losses of a batch: scalars `loss`, `noise` and `localization`."""
        latents = self.encode(batch["pixel_values"], draws.latent_noise)
        noisy = self.scheduler.add_noise(latents, draws.noise, draws.timesteps)
        text = self.condition(batch)
        valid, segmentation = batch["subject_mask"], batch["subject_segmentation"]
        subjects = Subjects(batch["subject_token_index"], valid)
        prediction = self.unet(
            noisy, draws.timesteps, encoder_hidden_states=text, cross_attention_kwargs={"subjects": subjects}
        ).sample
        weight = subject_weight(segmentation, valid, noisy.shape[-2:]) if draws.masked else None
        noise = noise_loss(prediction, noise_target(self.scheduler, latents, draws), weight)
        localization = subjects.loss(segmentation)
        return {"loss": noise + self.localization_weight * localization, "noise": noise, "localization": localization}

    def encode(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """Encode pictures [B, 3, H, W] in [-1, 1] as latents [B, C, h, w], drawn from the posterior with `noise`."""
        return encode_pictures(self.vae, pixels, noise)

    def condition(self, batch: Batch) -> Tensor:
        """Encode captions and fuse the subjects' references into their tokens: [B, L, D]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains(self.text_encoder)):
            text = self.text_encoder(batch["input_ids"]).last_hidden_state
        rows, columns = torch.nonzero(batch["subject_mask"], as_tuple=True)
        none = len(rows) == 0
        if none:  # one reference runs all the same: each parameter has a gradient at every step, in every process
            rows = columns = torch.zeros(1, dtype=torch.long, device=text.device)
        places = batch["subject_token_index"][rows, columns]
        tokens = text[rows, places]
        fused = self.fuser(tokens, self.see(batch["subject_pixel_values"][rows, columns]))
        return text.index_put((rows, places), (tokens + 0 * fused if none else fused).to(text.dtype))

    def see(self, references: Tensor) -> Tensor:
        """Embed references [N, 3, h, w] float32 in [0, 1]: [N, E]."""
        return self.image_encoder(as_clip_sees(references, self.image_encoder.config.image_size)).image_embeds

    def references(self, batch: Batch) -> Tensor:
        """The pictures that a batch shows the model: [B, M, 3, h, w] float32 in [0, 1]."""
        return batch["subject_pixel_values"]

    @torch.no_grad()
    def sample(
        self,
        batch: Batch,
        noise: Tensor,
        *,
        steps: int = 50,
        guidance: float = 5.0,
        subject_share: float = 0.7,
    ) -> Tensor:
        """Draw a picture for each caption and its references: [B, 3, H, W] float32 in [0, 1].

        Args:
            batch: `input_ids`, `subject_token_index`, `subject_mask`, `subject_pixel_values`.
            noise: where it starts, [B, C, h, w] float32, standard normal.
            steps: of DDIM, without fresh noise.
            guidance: weight of classifier-free guidance; 1 is none.
            subject_share: share of the steps, the last ones, that see the subjects. The first ones see the text
                alone and settle the layout: delayed subject conditioning, section 4.3 of the paper.
        """
        plain = self.text_encoder(batch["input_ids"]).last_hidden_state
        nothing = self.text_encoder(self.tokenize([""]).to(noise.device)).last_hidden_state.expand_as(plain)
        fused = self.condition(batch)
        texts = [fused if number >= round((1 - subject_share) * steps) else plain for number in range(steps)]
        return draw_pictures(self.unet, self.vae, self.scheduler, noise, nothing, texts, guidance)

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Turn captions into token ids, padded and cut to the encoder's length L: [B, L] int64."""
        return tokenize(self.tokenizer, captions, self.text_encoder.config.max_position_embeddings)

    def save(self, folder: Path) -> None:
        """Write the model as `save_parts` does."""
        save_parts(self.parts, folder)
