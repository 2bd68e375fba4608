"""Synthetic FastComposer samples, and datasets of them."""

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from schemas.example import Example, Match, Phrase, Segment, Source
from schemas.masks import Mask
from schemas.samples.fastcomposer import FORMAT
from schemas.shards import write_tar
from training.configs.fastcomposer import Config
from training.recipes.fastcomposer import view
from training.shards import Batch, Shards, batches, find_shards
from training.tokenizer import small_tokenizer

TOKENIZER = small_tokenizer(["a red ball and a blue cup by a tree"])
CONFIG = Config(resolution=32, reference=16, batch=3, workers=0, seed=1)


def pixels_of(height: int, width: int) -> NDArray[np.uint8]:
    """A picture whose red value encodes the column and whose green value encodes the row, each from 0 to 255."""
    rows, columns = np.mgrid[0:height, 0:width]
    blue = np.full((height, width), 128)
    return np.stack([columns * 255 / (width - 1), rows * 255 / (height - 1), blue], axis=-1).round().astype(np.uint8)


def example(
    key: str,
    masks: Sequence[NDArray[np.bool_]],
    caption: str = "a red ball and a blue cup",
    spans: Sequence[tuple[int, int]] = ((0, 10), (15, 25)),
) -> Example:
    height, width = masks[0].shape
    stored = io.BytesIO()
    Image.fromarray(pixels_of(height, width)).save(stored, "JPEG", quality=100, subsampling="4:4:4")
    return Example(
        key,
        stored.getvalue(),
        width,
        height,
        caption,
        Source(f"{key}.jpg"),
        caption,
        phrases=tuple(Phrase(caption[a:b], a, b, caption[a:b].rsplit(maxsplit=1)[-1], (a, b)) for a, b in spans),
        segments=tuple(Segment(f"class{i}", 1.0, Mask.from_array(mask)) for i, mask in enumerate(masks)),
        matches=tuple(Match(i, i, 0.9) for i in range(len(masks))),
    )


def box_mask(height: int, width: int, box: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    x, y, w, h = box
    mask = np.zeros((height, width), bool)
    mask[y : y + h, x : x + w] = True
    return mask


def raw_of(record: Example) -> dict[str, Any]:
    sample = FORMAT.pack(record)[0]
    return {"__key__": record.key, **sample.members}


def write_shards(folder: Path, sizes: Sequence[int]) -> Path:
    folder.mkdir()
    number = itertools.count()
    for shard, size in enumerate(sizes):
        mask = box_mask(40, 40, (4, 4, 20, 20))
        samples = [FORMAT.pack(example(f"key{next(number):03d}", [mask, ~mask]))[0] for _ in range(size)]
        with (folder / f"fastcomposer-{shard:06d}.tar").open("wb") as tar:
            write_tar(tar, samples)
    return folder


def find(data: Path | str) -> Shards:
    return find_shards(str(data), "fastcomposer")


def take(data: Path | Shards, count: int, start: int = 0, config: Config = CONFIG, **where: int) -> list[Batch]:
    """Take batches from position `start` on."""
    shards = data if isinstance(data, Shards) else find(data)
    rank, world = where.get("rank"), where.get("world")
    return list(itertools.islice(batches(shards, view, TOKENIZER, config, start, rank, world), count))
