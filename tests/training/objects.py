"""MIP-Adapter samples, made; datasets of them; a model small enough for tests, and batches for it."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from schemas import mip_adapter
from schemas.example import Example, Object, Phrase, Quality, Source
from schemas.masks import Mask
from schemas.mip_adapter import to_sample
from tests.datasets import box_mask, write_dataset
from tests.training.pairs import jpeg_of, pixels_of

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
    """A scored example of `size` (width, height) whose objects fill their boxes, less a pixel on each side.

    The caption joins the phrases with " and "; a name is the last word of its phrase. Red tells the column of a pixel,
    green its row.
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


def raw_of(one: Example) -> dict[str, Any]:
    """An example as webdataset reads it."""
    return {"__key__": one.key, **to_sample(one).members}


def write_objects(folder: Path, sizes: Sequence[int]) -> Path:
    """Write a dataset with shards of that many samples."""
    numbers = itertools.count()
    shards = [[example(f"key{next(numbers):03d}") for _ in range(size)] for size in sizes]
    write_dataset(folder, shards, layout=mip_adapter.LAYOUT)
    return folder
