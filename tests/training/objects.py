"""Synthetic MIP-Adapter samples, datasets of them, a small model and batches for it."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CLIPVisionModelWithProjection

from schemas.example import Example, Object, Phrase, Quality, Source
from schemas.masks import Mask
from schemas.samples import mip_adapter
from schemas.samples.mip_adapter import FORMAT
from tests.datasets import box_mask, write_dataset
from tests.training.models import save_tiny_autoencoder, tiny_xl_parts
from tests.training.pairs import jpeg_of, pixels_of
from training.adapter import Adapter, ImageProjection
from training.diffusion import LatentDiffusion
from training.recipes.mip_adapter import Parts, name_tokens, small
from training.small import SIDE, WIDTH, seeded, small_image_config
from training.tokenizer import tokenize

Box = tuple[int, int, int, int]
TWO = (("a red ball", (4, 6, 20, 16)), ("a cup", (30, 10, 20, 24)))
"""Phrases and boxes of a sample's objects."""


def example(
    key: str,
    objects: Sequence[tuple[str, Box]] = TWO,
    size: tuple[int, int] = (60, 40),
    scores: Sequence[float] | None = None,
    blue: int = 128,
) -> Example:
    """A scored example of `size` (width, height); each object fills its box except for a border of one pixel.

    The caption joins the phrases with " and "; a name is the last word of its phrase. The red value of a pixel encodes
    its column, the green value its row.
    """
    width, height = size
    phrases, start = [], 0
    for text, _ in objects:
        phrases.append(Phrase(text, start, start + len(text), text.split()[-1], (start, start + len(text))))
        start += len(text) + len(" and ")
    caption = " and ".join(text for text, _ in objects)
    inner = [(x + 1, y + 1, w - 2, h - 2) for _, (x, y, w, h) in objects]
    return Example(
        key,
        jpeg_of(pixels_of(width, height, blue)),
        width,
        height,
        caption,
        Source(f"{key}.jpg"),
        caption,
        phrases=tuple(phrases),
        objects=tuple(
            Object(number, box, score, Mask.from_array(box_mask(width, height, inside)), 0.25)
            for number, ((_, box), inside, score) in enumerate(
                zip(objects, inner, scores or [0.9] * len(objects), strict=True)
            )
        ),
        quality=Quality(0.25, -0.5, -0.25),
    )


def raw_of(record: Example) -> dict[str, Any]:
    """The sample of an example, in the form in which webdataset reads it."""
    return {"__key__": record.key, **FORMAT.pack(record)[0].members}


def write_objects(folder: Path, sizes: Sequence[int]) -> Path:
    """Write a dataset whose shards have these numbers of samples."""
    numbers = itertools.count()
    shards = [[example(f"key{next(numbers):03d}") for _ in range(size)] for size in sizes]
    write_dataset(folder, shards, sample_format=mip_adapter.FORMAT)
    return folder


def tiny_mip_parts(folder: Path, seed: int = 0) -> Parts:
    """MIP-Adapter's small parts with the untrained autoencoder in `folder`, created if it does not exist."""
    save_tiny_autoencoder(folder)
    return small(folder, ["a red ball and a cup", "ball", "cup"], seed)


def tiny_xl_mip_parts(folder: Path, seed: int = 0) -> Parts:
    """The same parts for a small Stable Diffusion XL."""
    base = tiny_xl_parts(folder, seed)
    with seeded(seed):
        return Parts(
            **vars(base),
            image_encoder=CLIPVisionModelWithProjection(small_image_config()),
            adapter=Adapter(base.unet, ImageProjection(WIDTH, base.unet.config.cross_attention_dim)),
        )


def tiny_objects(
    parts: Parts, valid: list[list[bool]], kept: Sequence[bool] | None = None, seed: int = 0
) -> dict[str, Any]:
    """A batch with the caption "a red ball and a cup", its objects left and right.

    `kept` says for which samples the references are kept.
    """
    rng = np.random.default_rng(seed)
    count = len(valid)
    names, words = name_tokens(["ball", "cup"], parts.tokenizers)
    valid_objects = torch.tensor(valid)
    masks = torch.zeros(count, 2, SIDE, SIDE)
    masks[:, 0, :, : SIDE // 2] = 1
    masks[:, 1, :, SIDE // 2 :] = 1
    boxes = torch.tensor([[0.0, 0, SIDE / 2, SIDE], [SIDE / 2, 0, SIDE / 2, SIDE]])
    return {
        "keys": [f"key{i}" for i in range(count)],
        "pixel_values": torch.from_numpy(rng.uniform(-1, 1, (count, 3, SIDE, SIDE)).astype(np.float32)),
        "input_ids": tokenize(["a red ball and a cup"] * count, parts.tokenizers),
        "sizes": torch.tensor([[100, 80, 12, 0, SIDE, SIDE]] * count),
        "image_kept": torch.tensor(kept or [True] * count),
        "object_mask": valid_objects,
        "object_pixel_values": torch.from_numpy(rng.random((count, 2, 3, SIDE, SIDE), np.float32)),
        "object_input_ids": names.expand(count, -1, -1),
        "object_token_mask": words & valid_objects[..., None],
        "object_segmentation": masks * valid_objects[:, :, None, None],
        "object_bbox": boxes * valid_objects[..., None],
        "skipped": [],
    }


def loss_of(model: LatentDiffusion, batch: dict[str, Any]) -> float:
    """The loss of a batch, always with the same draws."""
    with torch.no_grad():
        return float(model(batch, model.draw(batch, np.random.default_rng(1)))["loss"])
