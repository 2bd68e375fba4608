"""Synthetic BLIP-Diffusion pairs, datasets of them, a small model and batches for it."""

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.deprecated.blip_diffusion.modeling_ctx_clip import ContextCLIPTextModel
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPTextModel

from schemas.example import Example, Placement, Source, Subject
from schemas.images import encode_grey
from schemas.samples.blip_diffusion import FORMAT
from schemas.shards import write_tar
from tests.training.models import save_tiny_autoencoder
from training.recipes.blip_diffusion import Parts, small
from training.recipes.blip_diffusion.view import fill_template
from training.small import SIDE

PROMPTS = ("a red ball on grass, the ball is", "a blue cup by a house, the cup is")
"""Texts that the tokenizers' vocabularies are built from."""

Box = tuple[int, int, int, int]


def pixels_of(width: int, height: int, blue: int = 128) -> NDArray[np.uint8]:
    """A picture whose red value encodes the column and whose green value encodes the row, each from 0 to 255."""
    rows, columns = np.mgrid[0:height, 0:width]
    tones = columns * 255 / (width - 1), rows * 255 / (height - 1), np.full((height, width), blue)
    return np.stack(tones, axis=-1).round().astype(np.uint8)


def jpeg_of(pixels: NDArray[np.uint8]) -> bytes:
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, "JPEG", quality=100, subsampling="4:4:4")
    return stored.getvalue()


def pair(
    key: str,
    size: tuple[int, int] = (60, 40),
    box: Box = (4, 4, 20, 20),
    placement: Placement = Placement("painted"),  # noqa: B008
    caption: str = "a red ball on grass",
    subject: str = "ball",
) -> Example:
    """A pair of `size` (width, height) whose subject fills `box`, [x, y, w, h]; the input is bluer than the target."""
    width, height = size
    alpha = np.zeros((height, width), np.uint8)
    alpha[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = 255
    return Example(
        key,
        jpeg_of(pixels_of(width, height)),
        width,
        height,
        caption,
        Source(f"{key}.jpg"),
        caption,
        subject=Subject(subject),
        trimap=encode_grey(alpha),
        alpha=encode_grey(alpha),
        composite=jpeg_of(pixels_of(width, height, blue=255)),
        placement=placement,
    )


def raw_of(record: Example) -> dict[str, Any]:
    """The sample of a pair, in the form in which webdataset reads it."""
    return {"__key__": record.key, **FORMAT.pack(record)[0].members}


def write_pairs(folder: Path, sizes: Sequence[int]) -> Path:
    """Write shards with these numbers of pairs; every second subject is a cup."""
    folder.mkdir()
    numbers = itertools.count()
    for shard, size in enumerate(sizes):
        chosen = [next(numbers) for _ in range(size)]
        pairs = [pair(f"key{i:03d}", subject="cup" if i % 2 else "ball") for i in chosen]
        with (folder / f"blip-diffusion-{shard:06d}.tar").open("wb") as tar:
            write_tar(tar, (FORMAT.pack(pair)[0] for pair in pairs))
    return folder


def tiny_blip_parts(folder: Path, seed: int = 0) -> Parts:
    """BLIP-Diffusion's small parts with the untrained autoencoder in `folder`, created if it does not exist."""
    save_tiny_autoencoder(folder)
    return small(folder, PROMPTS, seed)


def published_text_encoder(encoder: CLIPTextModel) -> ContextCLIPTextModel:
    """diffusers' text encoder for subject prompts, with the weights of `encoder`."""
    peer = ContextCLIPTextModel(encoder.config).eval()
    peer.text_model.load_state_dict(encoder.state_dict(), strict=False)
    layers = peer.text_model.encoder.forward

    def forward(causal_attention_mask: torch.Tensor, **arguments: Any) -> Any:  # noqa: ANN401
        # It passes its causal mask under a name that transformers 5 ignores.
        return layers(**{**arguments, "attention_mask": causal_attention_mask})

    peer.text_model.encoder.forward = forward
    return peer


def tiny_pairs(parts: Parts, subjects: Sequence[str | None], seed: int = 0) -> dict[str, Any]:
    """A batch with the caption "a red ball on grass"; where a subject is None, it is a ball whose prompt is dropped."""
    rng = np.random.default_rng(seed)
    count = len(subjects)
    filled = [fill_template("a red ball on grass", subject, parts.tokenizer) for subject in subjects]
    texts = [subject or "ball" for subject in subjects]
    tokens = parts.subject_tokenizer(texts, padding="max_length", max_length=8, return_tensors="pt")
    return {
        "keys": [f"key{i}" for i in range(count)],
        "pixel_values": torch.from_numpy(rng.uniform(-1, 1, (count, 3, SIDE, SIDE)).astype(np.float32)),
        "input_pixel_values": torch.from_numpy(rng.random((count, 3, SIDE, SIDE), np.float32)),
        "input_ids": torch.tensor([ids for ids, _ in filled]),
        "subject_prompt_mask": torch.tensor([mask for _, mask in filled]),
        "caption": ["a red ball on grass"] * count,
        "subject_text": texts,
        "subject_input_ids": tokens.input_ids,
        "subject_attention_mask": tokens.attention_mask.bool(),
        "skipped": [],
    }
