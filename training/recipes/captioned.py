"""Captioned pictures: plain text-to-image training, which is what `LatentDiffusion` does without changes.

A batch holds

    keys          list of B str
    pixel_values  [B, 3, R, R] float32 in [-1, 1]
    input_ids     [B, L] int64, for SDXL [B, 2 L]; the empty caption if the caption is dropped
    sizes         [B, 6] int64, as `training.geometry.sizes_of` computes them
    skipped       list of str, a line for each sample that could not be read
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from schemas.samples.base import SampleRecord
from training.configs.captioned import PRESETS, Config
from training.diffusion import STABLE_DIFFUSION, LatentDiffusion, Parts, load_stable_diffusion
from training.drops import Drop, Drops, DropTable, draw
from training.geometry import crop_height, decode, draw_mirrored, open_jpeg, sizes_of
from training.recipe import Training
from training.shards import Pixels, Raw
from training.small import small_parts
from training.tokenizer import tokenize


def drop_table(config: Config) -> DropTable:
    """The caption is dropped per sample."""
    return {"sample": Drops(independent=(Drop(config.unconditional, frozenset({"caption"})),))}


def texts(raw: Raw) -> list[str]:
    """The caption."""
    return [_record(raw).caption]


def view(
    raw: Raw, rng: np.random.Generator, tokenizers: Sequence[CLIPTokenizer], config: Config
) -> dict[str, Tensor | Pixels]:
    """Make one sample's values; see the module for what a batch of them holds."""
    record = _record(raw)
    opened = open_jpeg(raw.get("jpg", b""), record.width, record.height)
    mirrored = config.mirror and draw_mirrored(record.caption, rng)
    crop = crop_height(record.width, record.height, config.resolution, mirrored=mirrored)
    caption = "" if "caption" in draw(drop_table(config), "sample", rng) else record.caption
    picture = crop.crop_picture(decode(opened, crop, [], config.reference))
    pixels = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
    return {
        "pixel_values": Pixels(pixels, -1, 1),
        "input_ids": tokenize([caption], tokenizers)[0],
        "sizes": torch.tensor(sizes_of(record.width, crop)),
    }


def _record(raw: Raw) -> SampleRecord:
    return SampleRecord.model_validate_json(raw.get("json", b""))


def load(folder: str | Path = STABLE_DIFFUSION) -> Parts:
    """Load a model from a folder (or the hub's name of one) in the layout of Stable Diffusion 1.5 or XL.

    Raises:
        ModelError: something is missing or of another kind.
    """
    return Parts(**load_stable_diffusion(folder, allow_xl=True))


class Model(LatentDiffusion):
    """A text-to-image model; the U-Net is trained, and the text encoders if the config says so."""

    def __init__(self, parts: Parts, config: Config | None = None) -> None:
        config = config or Config()
        super().__init__(parts, drop_table(config))
        self.train_text_encoders(config.train_encoders)


TRAINING = Training(
    config=Config,
    presets=PRESETS,
    view=view,
    texts=texts,
    load=load,
    small=small_parts,
    model=Model,
)
