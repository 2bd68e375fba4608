"""From a MIP-Adapter dataset's shards to batches: pictures, and references cut out of them with their names.

Shards are read, shuffled and divided as `training.shards` does for every recipe; here stands what a sample becomes. As
in the published trainer (hqhQAQ/MIP-Adapter) the picture is cut to a square that holds all boxes, a reference stands on
white, its text is the one word that names the object, and pictures and text are dropped together or alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, ValidationError
from transformers import CLIPTokenizer

from schemas.masks import BBox
from schemas.samples.mip_adapter import ObjectField, Record
from training.data import SMALLEST, check
from training.geometry import Box, Window, decode, open_jpeg, to_pixels, window_of
from training.references import WHITE, cut_out, to_square
from training.shards import Batch, LoadConfig, Raw, Shards, as_floats, load, read_samples, rng_of, stack

NAME_LENGTH = 16
"""Tokens of an object's name, marks included; what is longer is cut."""


class ObjectConfig(LoadConfig):
    """What a MIP-Adapter batch is made of; rates as in the published run."""

    batch: int = Field(default=4, gt=0, description="samples per process and micro-batch")
    max_objects: int = Field(default=2, gt=0, description="objects of a sample, the surest ones; the published: 2")
    image_dropped: float = Field(default=0.05, ge=0, le=1, description="share of samples whose references are not seen")
    text_dropped: float = Field(default=0.05, ge=0, le=1, description="share of samples without caption")
    both_dropped: float = Field(default=0.05, ge=0, le=1, description="share of samples without either")
    augment: bool = Field(default=True, description="mirror pictures and references, move the window")

    def plain(self) -> "ObjectConfig":
        """Nothing dropped and nothing moved: for looking at, and for measuring."""
        kept = {"image_dropped": 0.0, "text_dropped": 0.0, "both_dropped": 0.0, "augment": False}
        return self.model_copy(update=kept)


def object_batches(
    shards: Shards,
    tokenizer: CLIPTokenizer,
    config: ObjectConfig,
    done: int = 0,
    rank: int | None = None,
    world: int | None = None,
) -> Iterator[Batch]:
    """Yield MIP-Adapter's batches, as `training.shards.load` does.

    A batch holds

        keys                 list of B str
        pixel_values         [B, 3, R, R] float32 in [-1, 1]
        input_ids            [B, L] int64; of samples whose text is dropped the empty caption
        image_kept           [B] bool, whether the sample's references are seen
        object_mask          [B, M] bool, which of the M are objects
        object_pixel_values  [B, M, 3, r, r] float32 in [0, 1], references (CLIP's mean and spread are the encoder's)
        object_input_ids     [B, M, S] int64, each object's name alone
        object_token_mask    [B, M, S] bool, which of these are words: no marks, no padding
        object_segmentation  [B, M, R, R] float32, 0 or 1
        object_bbox          [B, M, 4] float32, xywh, pixels of the R x R square: what is seen of the detector's box
        skipped              list of str: samples that could not be read, and why

    Raises:
        InputError: a shard cannot be read, or of `training.shards.PATIENCE` batches not one sample.
    """
    make = partial(make_objects, tokenizer=tokenizer, config=config)
    yield from map(as_floats, load(shards, make, config, done, rank, world))


def read_texts(shards: Shards, limit: int = 10_000) -> list[str]:
    """Read captions and names of the first `limit` samples; those that cannot be read are left out."""
    texts = []
    for raw in islice(read_samples(shards), limit):
        with suppress(ValidationError):
            record = _record(raw)
            texts += [record.caption, *(one.name for one in record.objects)]
    return texts


def make_objects(samples: Sequence[tuple[int, Raw]], tokenizer: CLIPTokenizer, config: ObjectConfig) -> Batch:
    """Make a batch of (epoch, sample) pairs, pictures and masks as bytes; `as_floats` finishes it."""
    return stack(samples, partial(view, tokenizer=tokenizer, config=config))


def view(raw: Raw, epoch: int, tokenizer: CLIPTokenizer, config: ObjectConfig) -> dict[str, torch.Tensor]:
    """Make one sample's tensors, pixels as bytes: a function of (sample, seed, epoch)."""
    record = _record(raw)
    opened = open_jpeg(raw.get("jpg", b""), record.width, record.height)
    rng = rng_of(config.seed, epoch, record.key)
    objects = surest(record.objects, config.max_objects)
    moved = rng if config.augment else None
    x, y, length = window_of(record.width, record.height, union([one.bbox for one in objects]), moved)
    mirrored = moved is not None and bool(moved.random() < 0.5)
    window = Window(record.height, x, y, length, config.resolution, mirrored)
    caption, image_kept = drop(record.caption, config, rng)
    kept = [found for one in objects if (found := _find(one, record, window)) is not None]
    picture = decode(opened, window, [one.bbox for one in kept], config.reference)
    ids = tokenizer(caption, padding="max_length", max_length=tokenizer.model_max_length, truncation=True).input_ids
    shown = np.ascontiguousarray(window.of_picture(picture).transpose(2, 0, 1))
    return {
        "pixel_values": torch.from_numpy(shown),
        "input_ids": torch.tensor(ids),
        "image_kept": torch.tensor(image_kept),
        **_object_tensors(kept, np.asarray(picture), tokenizer, config, moved),
    }


def surest(objects: Sequence[ObjectField], most: int) -> list[ObjectField]:
    """Choose the `most` objects that the detector is surest of, the first of equals; they keep their order."""
    ranked = sorted(range(len(objects)), key=lambda index: -objects[index].score)
    return [objects[index] for index in sorted(ranked[:most])]


def union(boxes: Sequence[BBox]) -> BBox:
    """The smallest box around boxes, [x, y, w, h]."""
    left, top = min(x for x, _, _, _ in boxes), min(y for _, y, _, _ in boxes)
    return left, top, max(x + w for x, _, w, _ in boxes) - left, max(y + h for _, y, _, h in boxes) - top


def drop(caption: str, config: ObjectConfig, rng: np.random.Generator) -> tuple[str, bool]:
    """Draw what is seen of a sample: its caption or "", and whether its references."""
    draw = rng.random()
    if draw < config.image_dropped:
        return caption, False
    if draw < config.image_dropped + config.text_dropped:
        return "", True
    both = draw < config.image_dropped + config.text_dropped + config.both_dropped
    return ("", False) if both else (caption, True)


@dataclass(frozen=True)
class _Found:
    """An object of a sample: name, its mask [H, W] bool in the picture and the box around it; mask and box shown."""

    name: str
    bbox: BBox
    mask: NDArray[np.bool_]
    shown: NDArray[np.bool_]
    box: Box


def _find(one: ObjectField, record: Record, window: Window) -> _Found | None:
    """Find an object in the window; None where it is not seen."""
    check(one, record)
    mask = one.segmentation.to_mask()
    pixels = to_pixels(mask, one.area)
    shown = window.of_mask(pixels)
    if shown.mean() < SMALLEST:
        return None
    return _Found(one.name, mask.bbox, pixels, shown, window.of_box(one.bbox))


def _object_tensors(
    found: Sequence[_Found],
    pixels: NDArray[np.uint8],
    tokenizer: CLIPTokenizer,
    config: ObjectConfig,
    rng: np.random.Generator | None,
) -> dict[str, torch.Tensor]:
    most, side, small = config.max_objects, config.resolution, config.reference
    references = np.zeros((most, small, small, 3), np.uint8)
    segmentation = np.zeros((most, side, side), bool)
    boxes = np.zeros((most, 4), np.float32)
    for j, one in enumerate(found):
        references[j] = _reference(pixels, one, small, rng)
        segmentation[j] = one.shown
        boxes[j] = one.box
    # A name without a place gets the marks alone.
    names = [one.name for one in found] + [""] * (most - len(found))
    ids, words = name_tokens(names, tokenizer)
    return {
        "object_mask": torch.arange(most) < len(found),
        "object_pixel_values": torch.from_numpy(references).permute(0, 3, 1, 2),
        "object_input_ids": ids,
        "object_token_mask": words,
        "object_segmentation": torch.from_numpy(segmentation),
        "object_bbox": torch.from_numpy(boxes),
    }


def _reference(pixels: NDArray[np.uint8], one: _Found, side: int, rng: np.random.Generator | None) -> NDArray[np.uint8]:
    """Cut an object out, on a white square; mirrored, with `rng`, half of the time: [side, side, 3] uint8."""
    square: Image.Image = to_square(cut_out(pixels, one.mask, one.bbox, None), side, WHITE)
    if rng is not None and rng.random() < 0.5:
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(square)


def name_tokens(names: Sequence[str], tokenizer: CLIPTokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokenize N names: ids [N, S] int64, and which of them are words, [N, S] bool: no marks, no padding.

    S is `NAME_LENGTH`, not the caption's length: the text encoder looks back only, what would follow changes nothing.
    """
    read = tokenizer(list(names), padding="max_length", max_length=NAME_LENGTH, truncation=True, return_tensors="pt")
    # CLIP's padding is its last mark, so counting is surer than comparing: the words are what is attended but two.
    places = torch.arange(NAME_LENGTH)
    last = read.attention_mask.sum(1, keepdim=True) - 1
    return read.input_ids, (places > 0) & (places < last)


def _record(raw: Raw) -> Record:
    return Record.model_validate_json(raw.get("json", b""))
