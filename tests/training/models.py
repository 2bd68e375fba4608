"""A small FastComposer model for tests, and batches for it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL

from training.recipes.fastcomposer import Parts, small
from training.small import SIDE

CAPTIONS = ("a red ball and a blue cup", "a green tree by a house")


def tiny_parts(folder: Path, seed: int = 0) -> Parts:
    """FastComposer's small parts with the untrained autoencoder in `folder`, created if it does not exist."""
    save_tiny_autoencoder(folder)
    return small(folder, CAPTIONS, seed)


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
