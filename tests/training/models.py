"""Small models for tests, and batches for them: FastComposer, and Stable Diffusion XL."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from training import diffusion
from training.recipes.fastcomposer import Parts, small
from training.small import SIDE, WIDTH, seeded, small_scheduler, small_text_encoder
from training.tokenizer import small_tokenizer

CAPTIONS = ("a red ball and a blue cup", "a green tree by a house")


def tiny_parts(folder: Path, seed: int = 0) -> Parts:
    """FastComposer's small parts with the untrained autoencoder in `folder`, created if it does not exist."""
    save_tiny_autoencoder(folder)
    return small(folder, CAPTIONS, seed)


def tiny_xl_parts(folder: Path, seed: int = 0) -> diffusion.Parts:
    """A small Stable Diffusion XL with the untrained autoencoder in `folder`, created if it does not exist.

    Its text encoders have widths 64 and 32, and its second tokenizer pads with an exclamation mark, as the published
    one does.
    """
    save_tiny_autoencoder(folder)
    tokenizer, tokenizer_2 = (small_tokenizer([*CAPTIONS, "a ball!"]) for _ in range(2))
    tokenizer_2.add_special_tokens({"pad_token": "!"})
    vae = AutoencoderKL.from_pretrained(folder)
    with seeded(seed):
        return diffusion.Parts(
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            text_encoder=small_text_encoder(tokenizer),
            text_encoder_2=tiny_text_encoder_2(tokenizer_2),
            unet=tiny_xl_unet(vae.config.latent_channels),
            vae=vae,
            scheduler=small_scheduler(),
        )


def tiny_text_encoder_2(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """A second text encoder, with outputs of width 32 and a pooled embedding of width 24."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            projection_dim=24,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tiny_xl_unet(channels: int) -> UNet2DConditionModel:
    """A U-Net of SDXL's kind, without cross-attention at full size, and deeper where the latents are small."""
    return UNet2DConditionModel(
        sample_size=SIDE // 4,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        cross_attention_dim=WIDTH + 32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
    )


def save_tiny_autoencoder(folder: Path) -> None:
    """Save an untrained autoencoder to `folder`, unless it exists."""
    if folder.is_dir():
        return
    torch.manual_seed(3)
    AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        mid_block_add_attention=False,
    ).save_pretrained(folder)


def tiny_batch(parts: Parts, valid: list[list[bool]], seed: int = 0) -> dict[str, Any]:
    """A batch with the caption "a red ball and a blue cup".

    The subjects are at the words ball and cup; their masks are the left and the right half.
    """
    rng = np.random.default_rng(seed)
    count = len(valid)
    ids = parts.tokenizer([CAPTIONS[0]] * count, padding="max_length", max_length=77, return_tensors="pt").input_ids
    index = [ids[0].tolist().index(parts.tokenizer.convert_tokens_to_ids(f"{word}</w>")) for word in ("ball", "cup")]
    masks = torch.zeros(count, 2, SIDE, SIDE)
    masks[:, 0, :, : SIDE // 2] = 1
    masks[:, 1, :, SIDE // 2 :] = 1
    kept = torch.tensor(valid)
    return {
        "keys": [f"key{i}" for i in range(count)],
        "pixel_values": torch.from_numpy(rng.uniform(-1, 1, (count, 3, SIDE, SIDE)).astype(np.float32)),
        "input_ids": ids,
        "subject_token_index": torch.tensor([index] * count) * kept,
        "subject_mask": kept,
        "subject_pixel_values": torch.from_numpy(rng.random((count, 2, 3, SIDE, SIDE), np.float32)),
        "subject_segmentation": masks * kept[:, :, None, None],
        "skipped": [],
    }
