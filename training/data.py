"""FastComposer's batches: what a sample's caption, picture and subjects become, cropped and drawn.

Shards are read, shuffled and divided as `training.shards` does for every recipe.
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

from schemas.errors import RecordError
from schemas.rejects import Reason
from schemas.samples import mip_adapter
from schemas.samples.fastcomposer import Record, Subject
from schemas.samples.mip_adapter import ObjectField
from training.geometry import Square, decode, open_jpeg, to_pixels
from training.references import cut_out, disturb, to_square
from training.shards import Batch, LoadConfig, Raw, Shards, as_floats, load, read_samples, rng_of, stack
from training.tokenizer import locate

SMALLEST = 1 / 4096
"""Share of the square below which a subject is gone: one pixel of the 64 x 64 latents of Stable Diffusion."""


class DataConfig(LoadConfig):
    """What a FastComposer batch is made of; rates as in the published run (mit-han-lab/fastcomposer)."""

    max_subjects: int = Field(default=4, gt=0, description="subjects of a sample; more are drawn from at random")
    unconditional: float = Field(default=0.1, ge=0, le=1, description="share of samples without caption and subjects")
    text_only: float = Field(
        default=0.0, ge=0, le=1, description="share of samples without subjects; the published script has 0"
    )
    subject_kept: float = Field(default=0.9, ge=0, le=1, description="probability that a subject stays")
    labels: tuple[str, ...] = Field(default=(), description="classes of the subjects; none: all. Published: person")
    augment: bool = Field(default=True, description="mirror pictures, disturb references")

    def plain(self) -> "DataConfig":
        """Nothing dropped and nothing disturbed: for looking at, and for measuring."""
        kept = {"unconditional": 0.0, "text_only": 0.0, "subject_kept": 1.0, "augment": False}
        return self.model_copy(update=kept)


def read_captions(shards: Shards, limit: int = 10_000) -> list[str]:
    """Read the captions of the first `limit` samples; those that cannot be read are left out."""
    captions = []
    for raw in islice(read_samples(shards), limit):
        with suppress(ValidationError):
            captions.append(_record(raw).caption)
    return captions


def batches(
    shards: Shards,
    tokenizer: CLIPTokenizer,
    config: DataConfig,
    done: int = 0,
    rank: int | None = None,
    world: int | None = None,
) -> Iterator[Batch]:
    """Yield FastComposer's batches, as `load` does.

    A batch holds

        keys                   list of B str
        pixel_values           [B, 3, R, R] float32 in [-1, 1]
        input_ids              [B, L] int64
        subject_token_mask     [B, L] bool, where a subject's token stands
        subject_token_index    [B, M] int64, its position; 0 beyond the sample's subjects
        subject_mask           [B, M] bool, which of the M are subjects
        subject_pixel_values   [B, M, 3, r, r] float32 in [0, 1], references (CLIP's mean and spread are the encoder's)
        subject_segmentation   [B, M, R, R] float32, 0 or 1
        num_subjects           [B] int64
        skipped                list of str: samples that could not be read, and why; the batch is that much smaller,
                               and one of which nothing is left gives place to the next

    Raises:
        InputError: a shard cannot be read, or of `training.shards.PATIENCE` batches not one sample.
    """
    make = partial(make_batch, tokenizer=tokenizer, config=config)
    yield from map(as_floats, load(shards, make, config, done, rank, world))


def make_batch(samples: Sequence[tuple[int, Raw]], tokenizer: CLIPTokenizer, config: DataConfig) -> Batch:
    """Make a batch of (epoch, sample) pairs, pictures, references and masks as bytes; `as_floats` finishes it."""
    return stack(samples, partial(view, tokenizer=tokenizer, config=config))


def view(raw: Raw, epoch: int, tokenizer: CLIPTokenizer, config: DataConfig) -> dict[str, torch.Tensor]:
    """Make one sample's tensors, pixels as bytes: a function of (sample, seed, epoch)."""
    record = _record(raw)
    opened = open_jpeg(raw.get("jpg", b""), record.width, record.height)
    rng = rng_of(config.seed, epoch, record.key)
    square = Square(record.width, record.height, config.resolution, config.augment and bool(rng.random() < 0.5))
    caption, subjects = drop(record, config, rng)
    ids, places = locate(caption, subjects, tokenizer)
    kept = []
    for subject, place in zip(subjects, places, strict=True):
        check(subject, record)
        if place is not None:
            mask = subject.segmentation.to_mask()
            pixels = to_pixels(mask, subject.area)
            shown = square.of_mask(pixels)
            if shown.mean() >= SMALLEST:
                kept.append(_Kept(place, mask.bbox, pixels, shown))
    picture = decode(opened, square, [one.bbox for one in kept], config.reference)
    return _tensors(kept, ids, square, picture, config, rng)


def check(subject: Subject | ObjectField, record: Record | mip_adapter.Record) -> None:
    """Raise a RecordError where a subject or object does not fit the caption or the picture of its record."""
    if record.caption[subject.start : subject.end] != subject.text:
        where = f"{subject.start} to {subject.end} of the caption"
        raise RecordError(Reason.MISMATCHED_ANNOTATION, f"{subject.text!r} does not stand at {where}")
    height, width = subject.segmentation.size
    if (width, height) != (record.width, record.height):
        stated = f"{width} x {height} pixels, the picture {record.width} x {record.height}"
        raise RecordError(Reason.MISMATCHED_ANNOTATION, f"the mask of {subject.text!r} has {stated}")


@dataclass(frozen=True)
class _Kept:
    """A subject of a sample: its token, box and mask [H, W] bool in the picture, and mask in the square."""

    place: int
    bbox: tuple[int, int, int, int]
    mask: NDArray[np.bool_]
    shown: NDArray[np.bool_]


def drop(record: Record, config: DataConfig, rng: np.random.Generator) -> tuple[str, list[Subject]]:
    """Draw what a sample shows of its caption and its subjects, these in the order of their phrases' ends.

    One draw decides over caption and subjects, then one over each subject, as published; subjects beyond
    `max_subjects` are left out at random.
    """
    draw = rng.random()
    if draw < config.unconditional:
        return "", []
    if draw < config.unconditional + config.text_only:
        return record.caption, []
    subjects = [subject for subject in record.subjects if not config.labels or subject.label in config.labels]
    subjects = [subject for subject in subjects if rng.random() < config.subject_kept]
    if len(subjects) > config.max_subjects:
        chosen = rng.choice(len(subjects), config.max_subjects, replace=False)
        subjects = [subjects[i] for i in sorted(chosen)]
    return record.caption, sorted(subjects, key=lambda subject: subject.end)


def _tensors(
    kept: Sequence[_Kept],
    ids: Sequence[int],
    square: Square,
    picture: Image.Image,
    config: DataConfig,
    rng: np.random.Generator,
) -> dict[str, torch.Tensor]:
    most, side, small = config.max_subjects, config.resolution, config.reference
    index = np.zeros(most, np.int64)
    segmentation = np.zeros((most, side, side), bool)
    references = np.zeros((most, small, small, 3), np.uint8)
    pixels = np.asarray(picture)
    for j, one in enumerate(kept):
        crop = cut_out(pixels, one.mask, one.bbox, rng)
        references[j] = disturb(crop, small, rng) if config.augment else np.asarray(to_square(crop, small))
        index[j] = one.place
        segmentation[j] = one.shown
    marks = np.zeros(len(ids), bool)
    marks[index[: len(kept)]] = True
    shown = torch.from_numpy(np.ascontiguousarray(square.of_picture(picture).transpose(2, 0, 1)))
    return {
        "pixel_values": shown,
        "input_ids": torch.tensor(ids),
        "subject_token_mask": torch.from_numpy(marks),
        "subject_token_index": torch.from_numpy(index),
        "subject_mask": torch.arange(most) < len(kept),
        "subject_pixel_values": torch.from_numpy(references).permute(0, 3, 1, 2),
        "subject_segmentation": torch.from_numpy(segmentation),
        "num_subjects": torch.tensor(len(kept)),
    }


def _record(raw: Raw) -> Record:
    return Record.model_validate_json(raw.get("json", b""))
