"""Small models for pictures of 64 pixels, in the classes that Stable Diffusion 1.5 is made of.

They start from nothing but the autoencoder, and a CPU can train them: for first tries, tests and measurements in small.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    InstructBlipQFormerConfig,
    InstructBlipQFormerModel,
)

from training.blip_diffusion import BlipParts, Prompter
from training.fastcomposer import Fuser, Parts
from training.mip_adapter import Adapter, MipParts
from training.tokenizer import small_tokenizer

SIDE = 64
"""Side of the pictures in pixels."""
WIDTH = 64
"""Of text tokens and reference embeddings."""


def small_parts(autoencoder: Path, captions: Sequence[str], seed: int) -> Parts:
    """Make FastComposer's networks, their weights a function of `seed`, for the words of `captions`.

    Args:
        autoencoder: folder of an `AutoencoderKL` for pictures of `SIDE` pixels.
        captions: what the tokenizer's vocabulary is made from.
        seed: of the fresh weights.
    """
    tokenizer = small_tokenizer(captions)
    vae = AutoencoderKL.from_pretrained(autoencoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Parts(
            tokenizer=tokenizer,
            text_encoder=_text_encoder(len(tokenizer), tokenizer),
            image_encoder=CLIPVisionModelWithProjection(_image_config()),
            fuser=Fuser(WIDTH, WIDTH),
            unet=_unet(vae.config.latent_channels),
            vae=vae,
            scheduler=_scheduler(),
        )


def small_blip_parts(autoencoder: Path, texts: Sequence[str], seed: int) -> BlipParts:
    """Make BLIP-Diffusion's networks, their weights a function of `seed`, for the words of `texts`.

    The Q-Former reads subjects with the tokenizer of the text encoder.

    Args:
        autoencoder: folder of an `AutoencoderKL` for pictures of `SIDE` pixels.
        texts: what the tokenizer's vocabulary is made from: the template, filled.
        seed: of the fresh weights.
    """
    tokenizer = small_tokenizer(texts)
    vae = AutoencoderKL.from_pretrained(autoencoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BlipParts(
            tokenizer=tokenizer,
            text_encoder=_text_encoder(len(tokenizer), tokenizer),
            subject_tokenizer=tokenizer,
            image_encoder=CLIPVisionModel(_image_config()),
            qformer=InstructBlipQFormerModel(
                InstructBlipQFormerConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=WIDTH,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    intermediate_size=4 * WIDTH,
                    max_position_embeddings=tokenizer.model_max_length,
                    pad_token_id=tokenizer.pad_token_id,
                    cross_attention_frequency=1,
                    encoder_hidden_size=WIDTH,
                )
            ),
            prompter=Prompter(WIDTH),
            unet=_unet(vae.config.latent_channels),
            vae=vae,
            scheduler=_scheduler(),
        )


def small_mip_parts(autoencoder: Path, texts: Sequence[str], seed: int) -> MipParts:
    """Make MIP-Adapter's networks, their weights a function of `seed`, for the words of `texts`.

    Args:
        autoencoder: folder of an `AutoencoderKL` for pictures of `SIDE` pixels.
        texts: what the tokenizer's vocabulary is made from: captions and names.
        seed: of the fresh weights.
    """
    tokenizer = small_tokenizer(texts)
    vae = AutoencoderKL.from_pretrained(autoencoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = _unet(vae.config.latent_channels)
        return MipParts(
            tokenizer=tokenizer,
            text_encoder=_text_encoder(len(tokenizer), tokenizer),
            image_encoder=CLIPVisionModelWithProjection(_image_config()),
            adapter=Adapter(unet, WIDTH),
            unet=unet,
            vae=vae,
            scheduler=_scheduler(),
        )


def _scheduler() -> DDPMScheduler:
    return DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1
    )


def _text_encoder(words: int, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words,
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
    # CLIP begins with embeddings that differ by 0.02, less than its layers add: words are alike for hundreds of steps.
    with torch.no_grad():
        encoder.embeddings.token_embedding.weight.mul_(25)
    return encoder


def _image_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=WIDTH,
        image_size=SIDE,
        patch_size=8,
    )


def _unet(channels: int) -> UNet2DConditionModel:
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
