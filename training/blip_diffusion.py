"""BLIP-Diffusion's model and objective: a subject, seen on any background, becomes words that the text encoder reads.

Li, Li and Hoi, "BLIP-Diffusion: Pre-trained Subject Representation for Controllable Text-to-Image Generation and
Editing" (2023), section 3.2. A frozen CLIP image encoder looks at the input. A Q-Former reads what it saw together with
the subject's text; a two-layer feed-forward network turns the answers to its 16 queries into the subject prompt, which
stands among the words of the template in front of the text encoder (`training.blip_data`). The U-Net learns to draw
the picture that the subject was taken from; the background differs, so the prompt comes to hold the subject alone.

Pre-training teaches Q-Former, queries, feed-forward network, text encoder and U-Net. Fine-tuning on a few pictures of
one subject averages its prompt over them once, keeps it, and teaches the U-Net only.

Nothing is dropped at random within the networks: all that is random is drawn from (seed, step), so that a run can
resume.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModel,
    InstructBlipQFormerModel,
    PreTrainedTokenizerBase,
)

from training.blip_data import QUERIES
from training.blip_published import Sight, is_published, load_sight
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


class Prompter(ModelMixin, ConfigMixin):
    """Holds the queries, and turns the Q-Former's answers into subject prompts: `x + MLP(x)`.

    The two layers are four times as wide in between, with a LayerNorm before and the quick GELU of CLIP.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(self, width: int, count: int = QUERIES) -> None:
        super().__init__()
        self.queries = nn.Parameter(0.02 * torch.randn(count, width))
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, answers: Tensor) -> Tensor:
        """Turn answers [B, Q, D] float into subject prompts [B, Q, D]."""
        hidden = self.widen(self.norm(answers))
        return answers + self.narrow(hidden * torch.sigmoid(1.702 * hidden))


@dataclass(frozen=True)
class BlipParts:
    """The networks of a model, its noise schedule and its tokenizers; `subjects` holds prompts [Q, D] by subject text.

    The Q-Former is BLIP-2's with text beside the queries, which transformers calls InstructBLIP's.
    """

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    subject_tokenizer: PreTrainedTokenizerBase
    image_encoder: CLIPVisionModel
    qformer: InstructBlipQFormerModel
    prompter: Prompter
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: DDPMScheduler
    subjects: Mapping[str, Tensor] = field(default_factory=dict)


def load_blip_parts(folder: str | Path) -> BlipParts:
    """Load a model from a folder that `save_blip_parts` wrote, or one in the layout of the published weights.

    Raises:
        ModelError: something is missing or is of another kind.
    """
    with loading(folder, "BLIP-Diffusion's layout, a Stable Diffusion with qformer/ beside"):
        sight = _published(folder) if is_published(folder) else _own(folder)
        kept = Path(folder) / "subjects.safetensors"
        return BlipParts(
            **sight,
            tokenizer=CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
            text_encoder=CLIPTextModel.from_pretrained(folder, subfolder="text_encoder"),
            unet=UNet2DConditionModel.from_pretrained(folder, subfolder="unet"),
            vae=AutoencoderKL.from_pretrained(folder, subfolder="vae"),
            scheduler=DDPMScheduler.from_pretrained(folder, subfolder="scheduler"),
            subjects=load_file(kept) if kept.is_file() else {},
        )


def _own(folder: str | Path) -> dict[str, Any]:
    return {
        "subject_tokenizer": AutoTokenizer.from_pretrained(folder, subfolder="subject_tokenizer"),
        "image_encoder": CLIPVisionModel.from_pretrained(folder, subfolder="image_encoder"),
        "qformer": InstructBlipQFormerModel.from_pretrained(folder, subfolder="qformer"),
        "prompter": Prompter.from_pretrained(folder, subfolder="prompter"),
    }


def _published(folder: str | Path) -> dict[str, Any]:
    sight: Sight = load_sight(folder)
    count, width = sight.prompter["queries"].shape
    prompter = Prompter(width, count)
    prompter.load_state_dict(sight.prompter)
    tokenizer = AutoTokenizer.from_pretrained(sight.tokenizer)
    return {
        "subject_tokenizer": tokenizer,
        "image_encoder": sight.image_encoder,
        "qformer": sight.qformer,
        "prompter": prompter,
    }


def save_blip_parts(parts: BlipParts, folder: Path) -> None:
    """Write a model in Stable Diffusion 1.5's layout, with what sees and knows its subjects beside.

    diffusers' own `StableDiffusionPipeline` reads the folder too, for pictures from text alone.
    """
    save_stable_diffusion(folder, parts.tokenizer, parts.text_encoder, parts.unet, parts.vae, parts.scheduler)
    parts.subject_tokenizer.save_pretrained(folder / "subject_tokenizer")
    parts.image_encoder.save_pretrained(folder / "image_encoder")
    parts.qformer.save_pretrained(folder / "qformer")
    parts.prompter.save_pretrained(folder / "prompter")
    if parts.subjects:
        kept = {text: prompt.detach().cpu().contiguous() for text, prompt in parts.subjects.items()}
        save_file(kept, folder / "subjects.safetensors")


def average_subjects(texts: Sequence[str], prompts: Tensor) -> dict[str, Tensor]:
    """Average the prompts [N, Q, D] of pictures over those with one subject text, [Q, D] each."""
    rows = {text: [i for i, other in enumerate(texts) if other == text] for text in texts}
    return {text: prompts[chosen].mean(0) for text, chosen in rows.items()}


@contextmanager
def spliced(encoder: CLIPTextModel, mask: Tensor, prompts: Tensor) -> Iterator[None]:
    """Have a text encoder read prompts [B, Q, D] in place of the words where `mask` [B, L] bool is true."""
    order = (mask.cumsum(1) - 1).clamp(min=0)[..., None].expand(-1, -1, prompts.shape[-1])

    def splice(_module: nn.Module, _inputs: object, words: Tensor) -> Tensor:
        return torch.where(mask[..., None], prompts.gather(1, order).to(words.dtype), words)

    handle = encoder.get_input_embeddings().register_forward_hook(splice)
    try:
        yield
    finally:
        handle.remove()


class BlipDiffusion(nn.Module):
    """A BLIP-Diffusion model; `forward` is its objective, `sample` its use.

    Args:
        parts: the networks. The autoencoder is frozen, and so is the image encoder.
        finetune: train the U-Net only.
        train_encoders: train the image encoder too: for a model that starts from nothing.
    """

    losses = ("loss", "noise")

    def __init__(self, parts: BlipParts, *, finetune: bool = False, train_encoders: bool = False) -> None:
        super().__init__()
        self.tokenizer, self.subject_tokenizer = parts.tokenizer, parts.subject_tokenizer
        self.text_encoder, self.image_encoder = parts.text_encoder, parts.image_encoder
        self.qformer, self.prompter = parts.qformer, parts.prompter
        self.unet, self.vae, self.scheduler = parts.unet, parts.vae, parts.scheduler
        self.subjects = dict(parts.subjects)
        self.eval()
        self.vae.requires_grad_(False)
        self.image_encoder.requires_grad_(train_encoders and not finetune)
        for part in (self.qformer, self.prompter, self.text_encoder):
            part.requires_grad_(not finetune)

    @property
    def parts(self) -> BlipParts:
        """The networks, as `save_blip_parts` takes them."""
        return BlipParts(
            tokenizer=self.tokenizer,
            text_encoder=self.text_encoder,
            subject_tokenizer=self.subject_tokenizer,
            image_encoder=self.image_encoder,
            qformer=self.qformer,
            prompter=self.prompter,
            unet=self.unet,
            vae=self.vae,
            scheduler=self.scheduler,
            subjects=self.subjects,
        )

    def draw(self, batch: Batch, rng: np.random.Generator) -> Draws:
        """Draw all that is random in a step on `batch`."""
        steps = self.scheduler.config.num_train_timesteps
        return Draws.of(latent_shape(batch["pixel_values"], self.vae), steps, 0.0, rng)

    def forward(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Compute the loss of a batch, a scalar under `loss` and `noise`."""
        latents = encode_pictures(self.vae, batch["pixel_values"], draws.latent_noise)
        noisy = self.scheduler.add_noise(latents, draws.noise, draws.timesteps)
        prediction = self.unet(noisy, draws.timesteps, encoder_hidden_states=self.condition(batch)).sample
        noise = noise_loss(prediction, noise_target(self.scheduler, latents, draws))
        return {"loss": noise, "noise": noise}

    def condition(self, batch: Batch) -> Tensor:
        """Encode the template with the subject prompts in their places: [B, L, D]."""
        with spliced(self.text_encoder, batch["subject_prompt_mask"], self.prompts(batch)):
            return self.text_encoder(batch["input_ids"]).last_hidden_state

    def prompts(self, batch: Batch) -> Tensor:
        """The subject prompts of a batch, [B, Q, D]: the kept ones, and of other subjects what their pictures say."""
        kept = [self.subjects.get(text) for text in batch["subject_text"]]
        if all(prompt is not None for prompt in kept):
            return torch.stack([prompt for prompt in kept if prompt is not None]).to(batch["input_ids"].device)
        # Where all prompts are dropped they are computed all the same: each parameter has a gradient at every step.
        seen = self.see(batch)
        chosen = [one if prompt is None else prompt.to(one) for one, prompt in zip(seen, kept, strict=True)]
        return torch.stack(chosen)

    def see(self, batch: Batch) -> Tensor:
        """Turn inputs and subject texts into subject prompts [B, Q, D]."""
        pictures = as_clip_sees(batch["input_pixel_values"], self.image_encoder.config.image_size)
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains(self.image_encoder)):
            seen = self.image_encoder.post_layernorm(self.image_encoder(pictures).last_hidden_state)
        words = batch["subject_attention_mask"]
        queries = self.prompter.queries.expand(len(words), -1, -1)
        attended = torch.cat([words.new_ones(queries.shape[:2]), words], dim=1)
        answers = self.qformer(
            input_ids=batch["subject_input_ids"],
            attention_mask=attended.long(),
            query_embeds=queries,
            encoder_hidden_states=seen,
        ).last_hidden_state[:, : queries.shape[1]]
        return self.prompter(answers)

    @torch.no_grad()
    def remember(self, batches: Iterable[Batch]) -> None:
        """Keep the average prompt of each subject over all its pictures in `batches`."""
        texts: list[str] = []
        prompts: list[Tensor] = []
        for batch in batches:
            texts += batch["subject_text"]
            prompts.append(self.see(batch))
        self.subjects = average_subjects(texts, torch.cat(prompts))

    def references(self, batch: Batch) -> Tensor:
        """The pictures that a batch shows the model: [B, 1, 3, h, w] float32 in [0, 1]."""
        return batch["input_pixel_values"][:, None]

    @torch.no_grad()
    def sample(self, batch: Batch, noise: Tensor, *, steps: int = 50, guidance: float = 7.5) -> Tensor:
        """Draw a picture for each caption and its subject: [B, 3, H, W] float32 in [0, 1].

        Args:
            batch: all but `pixel_values`.
            noise: where it starts, [B, C, h, w] float32, standard normal.
            steps: of DDIM, without fresh noise.
            guidance: weight of classifier-free guidance; 1 is none. 7.5 is the published pipeline's.
        """
        text = self.condition(batch)
        nothing = self.text_encoder(self.tokenize([""]).to(noise.device)).last_hidden_state.expand_as(text)
        return draw_pictures(self.unet, self.vae, self.scheduler, noise, nothing, [text] * steps, guidance)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Turn texts into token ids, padded and cut to the encoder's length L: [B, L] int64."""
        return tokenize(self.tokenizer, texts, self.text_encoder.config.max_position_embeddings)

    def save(self, folder: Path) -> None:
        """Write the model as `save_blip_parts` does."""
        save_blip_parts(self.parts, folder)


def without_subjects(parts: BlipParts) -> BlipParts:
    """Forget the kept prompts: what is trained next sees its own pictures."""
    return replace(parts, subjects={})
