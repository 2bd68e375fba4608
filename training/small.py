"""Small networks for pictures of 64 pixels, of the same classes as in Stable Diffusion 1.5.

A CPU can train them: for first tries, tests and benchmarks. They start from the sample text-to-image model, as the
published ones start from Stable Diffusion 1.5, or from nothing but an autoencoder. What a recipe adds to them, its
`small` creates with random weights.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig

from training.config import SMALL_SIDE
from training.diffusion import Parts, load_stable_diffusion
from training.tokenizer import extend_tokenizer, small_tokenizer

SIDE = SMALL_SIDE
"""Side of the pictures in pixels."""
WIDTH = 64
"""Width of text tokens and reference embeddings."""
FROM_NOTHING = 1e-3
"""Learning rate for models of random weights: three times that of the preset `sample`."""


def small_parts(folder: Path, texts: Sequence[str], seed: int) -> Parts:
    """Make a small Stable Diffusion.

    Args:
        folder: a Stable Diffusion for pictures of `SIDE` pixels, such as the sample text-to-image model; or an
            `AutoencoderKL` alone: the rest then starts from random weights.
        texts: their words become tokens. Of a model's own tokens, none changes; new ones have random embeddings.
        seed: of the random weights.
    """
    if (folder / "unet").is_dir():
        base = Parts(**load_stable_diffusion(folder))
        tokenizer = extend_tokenizer(base.tokenizer, texts)
        with seeded(seed):
            add_embeddings(base.text_encoder, len(tokenizer))
        return replace(base, tokenizer=tokenizer)
    tokenizer, vae = small_tokenizer(texts), AutoencoderKL.from_pretrained(folder)
    with seeded(seed):
        return Parts(
            tokenizer=tokenizer,
            text_encoder=small_text_encoder(tokenizer),
            unet=small_unet(vae.config.latent_channels),
            vae=vae,
            scheduler=small_scheduler(),
        )


@torch.no_grad()
def add_embeddings(encoder: CLIPTextModel, tokens: int) -> None:
    """Extend a text encoder to `tokens` tokens, with embeddings as large as its own on average, drawn at random."""
    own = encoder.get_input_embeddings().weight
    (count, width), spread = own.shape, own.std()  # resizing changes this tensor
    if tokens > count:
        encoder.resize_token_embeddings(tokens, mean_resizing=False)
        encoder.get_input_embeddings().weight[count:] = spread * torch.randn(tokens - count, width)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw the weights of networks created in this block from `seed`, without changing torch's global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def small_scheduler() -> DDPMScheduler:
    """Stable Diffusion's noise schedule."""
    return DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1
    )


def small_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A text encoder for the tokens of `tokenizer`, [B, L] to [B, L, WIDTH]."""
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    # CLIP's initial token embeddings differ by 0.02, less than its layers add: for hundreds of steps the outputs for
    # different words would hardly differ.
    with torch.no_grad():
        encoder.embeddings.token_embedding.weight.mul_(25)
    return encoder


def small_image_config() -> CLIPVisionConfig:
    """Configuration of an image encoder for pictures of `SIDE` pixels."""
    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=WIDTH,
        image_size=SIDE,
        patch_size=8,
    )


def small_unet(channels: int) -> UNet2DConditionModel:
    """A U-Net for latents of `channels` x `SIDE` / 4 x `SIDE` / 4, with cross-attention to tokens of `WIDTH`."""
    return UNet2DConditionModel(
        sample_size=SIDE // 4,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(48, 96, 96),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=WIDTH,
    )
