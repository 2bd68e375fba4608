"""From a BLIP-Diffusion dataset's shards to batches: pairs of an input and the picture that it came from.

Shards are read, shuffled and divided as `training.shards` does for every recipe; here stands what a pair is. The text
encoder reads the template of the paper (Li, Li and Hoi 2023, section 3.2),

    [text prompt], the [subject text] is [subject prompt]

in which `QUERIES` positions are left for the subject prompt: embeddings, no words.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, ValidationError
from transformers import CLIPTokenizer, PreTrainedTokenizerBase

from schemas.samples.blip_diffusion import PlacementField, Record
from training.geometry import Box, Window, decode, open_jpeg, reduction, window_of
from training.shards import Batch, LoadConfig, Raw, Shards, as_floats, load, read_samples, rng_of, stack

QUERIES = 16
"""Embeddings of a subject prompt: of 32 the paper says that they overwhelm the text."""
SUBJECT_LENGTH = 16
"""Tokens of a subject's text that the Q-Former reads, marks included."""


class PairConfig(LoadConfig):
    """What a BLIP-Diffusion batch is made of; `reference` is the input's side."""

    subject_dropped: float = Field(
        default=0.15, ge=0, le=1, description="share of samples without the subject prompt (the paper's 15 %)"
    )
    unconditional: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of samples without any text: for a U-Net that never learnt to do without (the paper: none)",
    )

    def plain(self) -> "PairConfig":
        """Nothing dropped: for looking at, and for measuring."""
        return self.model_copy(update={"subject_dropped": 0.0, "unconditional": 0.0})


def pairs(
    shards: Shards,
    tokenizer: CLIPTokenizer,
    subject_tokenizer: PreTrainedTokenizerBase,
    config: PairConfig,
    done: int = 0,
    rank: int | None = None,
    world: int | None = None,
) -> Iterator[Batch]:
    """Yield BLIP-Diffusion's batches, as `training.shards.load` does.

    A batch holds

        keys                    list of B str
        pixel_values            [B, 3, R, R] float32 in [-1, 1], the target
        input_pixel_values      [B, 3, r, r] float32 in [0, 1] (CLIP's mean and spread are the encoder's)
        input_ids               [B, L] int64, the template; of samples without a subject prompt the caption alone
        subject_prompt_mask     [B, L] bool, the 16 positions of the subject prompt; none where it is dropped
        subject_text            list of B str
        subject_input_ids       [B, S] int64, the same for the Q-Former
        subject_attention_mask  [B, S] bool, which of these are no padding
        skipped                 list of str: samples that could not be read, and why

    Raises:
        InputError: a shard cannot be read, or of `training.shards.PATIENCE` batches not one sample.
    """
    make = partial(make_pairs, tokenizer=tokenizer, subject_tokenizer=subject_tokenizer, config=config)
    yield from map(as_floats, load(shards, make, config, done, rank, world))


def each_once(
    shards: Shards, tokenizer: CLIPTokenizer, subject_tokenizer: PreTrainedTokenizerBase, config: PairConfig
) -> Iterator[Batch]:
    """Yield batches of all samples once, in their order, with nothing dropped; the last one may be smaller."""
    samples = ((0, raw) for raw in read_samples(shards))
    while group := list(islice(samples, config.batch)):
        batch = make_pairs(group, tokenizer, subject_tokenizer, config.plain())
        if batch["keys"]:
            yield as_floats(batch)


def read_prompts(shards: Shards, limit: int = 10_000) -> list[str]:
    """Read the texts of the first `limit` samples, as the template has them; those that cannot be read are left out."""
    texts = []
    for raw in islice(read_samples(shards), limit):
        try:
            record = _record(raw)
        except ValidationError:
            continue
        texts.append(record.caption + tail_of(record.subject))
    return texts


def make_pairs(
    samples: Sequence[tuple[int, Raw]],
    tokenizer: CLIPTokenizer,
    subject_tokenizer: PreTrainedTokenizerBase,
    config: PairConfig,
) -> Batch:
    """Make a batch of (epoch, sample) pairs, pictures as bytes; `as_floats` finishes it."""
    return stack(samples, partial(view, tokenizer=tokenizer, subject_tokenizer=subject_tokenizer, config=config))


def view(
    raw: Raw,
    epoch: int,
    tokenizer: CLIPTokenizer,
    subject_tokenizer: PreTrainedTokenizerBase,
    config: PairConfig,
) -> dict[str, Any]:
    """Make one sample's tensors, pixels as bytes: a function of (sample, seed, epoch)."""
    record = _record(raw)
    size = record.width, record.height
    target = show(raw.get("target.jpg", b""), size, record.bbox, config.resolution)
    moved = placed(record.bbox, record.placement, record.width)
    shown = show(raw.get("input.jpg", b""), size, moved, config.reference)
    caption, subject = drop(record, config, rng_of(config.seed, epoch, record.key))
    ids, mask = fill_template(caption, subject, tokenizer)
    read = subject_tokenizer(record.subject, padding="max_length", max_length=SUBJECT_LENGTH, truncation=True)
    return {
        "pixel_values": torch.from_numpy(np.ascontiguousarray(target.transpose(2, 0, 1))),
        "input_pixel_values": torch.from_numpy(np.ascontiguousarray(shown.transpose(2, 0, 1))),
        "input_ids": torch.tensor(ids),
        "subject_prompt_mask": torch.tensor(mask),
        "subject_text": record.subject,
        "subject_input_ids": torch.tensor(read.input_ids),
        "subject_attention_mask": torch.tensor(read.attention_mask, dtype=torch.bool),
    }


def drop(record: Record, config: PairConfig, rng: np.random.Generator) -> tuple[str, str | None]:
    """Draw what the text encoder reads of a sample: its caption, "" or not, and its subject, None where dropped."""
    draw = rng.random()
    if draw < config.unconditional:
        return "", None
    if draw < config.unconditional + config.subject_dropped:
        return record.caption, None
    return record.caption, record.subject


def tail_of(subject: str) -> str:
    """What the template says between the caption and the subject prompt."""
    return f", the {subject} is"


def fill_template(caption: str, subject: str | None, tokenizer: CLIPTokenizer) -> tuple[list[int], list[bool]]:
    """Tokenize the template, or, without a subject, the caption alone.

    Where it is too long the caption's end is cut, never the subject.

    Returns:
        The L ids, padded, and which of them are the positions of the subject prompt.

    Raises:
        ValueError: the subject's text alone is too long.
    """
    length = tokenizer.model_max_length
    tail, queries = [], 0
    if subject is not None:
        # A full stop and the template's comma would become one token that no other caption has.
        caption = caption.rstrip(" .,;:")
        tail, queries = _words(tail_of(subject), tokenizer), QUERIES
    room = length - 2 - len(tail) - queries
    if room < 0:
        raise ValueError(f"of {length} tokens the subject's {len(tail)} leave no room for its prompt: {subject!r}")
    words = _words(caption, tokenizer)[:room] + tail
    ids = [tokenizer.bos_token_id, *words, *[tokenizer.pad_token_id] * queries, tokenizer.eos_token_id]
    first = 1 + len(words)
    mask = [first <= place < first + queries for place in range(length)]
    return ids + [tokenizer.pad_token_id] * (length - len(ids)), mask


def _words(text: str, tokenizer: CLIPTokenizer) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids


def placed(box: Box, placement: PlacementField, width: int) -> Box:
    """Where a subject's box of the target lies in the input, which is as wide."""
    x, y, w, h = box
    if placement.flip:
        x = width - x - w
    grown_w, grown_h = w * placement.scale, h * placement.scale
    return x + (w - grown_w) / 2 + placement.shift[0], y + (h - grown_h) / 2 + placement.shift[1], grown_w, grown_h


def show(data: bytes, size: tuple[int, int], box: Box, side: int) -> NDArray[np.uint8]:
    """Show the window of a JPEG that holds its subject in a square: [side, side, 3] uint8.

    The published trainer cuts out the middle, whatever is there.

    Args:
        data: the JPEG.
        size: what its record says of it, (width, height) in pixels.
        box: the subject's.
        side: of the square, in pixels.

    Raises:
        RecordError: it is no JPEG, of another size, or damaged.
    """
    width, height = size
    opened = open_jpeg(data, width, height)
    x, y, length = window_of(width, height, box)
    picture = decode(opened, Window(height, x, y, length, side, mirrored=False), [], side)
    scale = reduction(height, picture.height)
    window = x / scale, y / scale, (x + length) / scale, (y + length) / scale
    return np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC, box=window))


def _record(raw: Raw) -> Record:
    return Record.model_validate_json(raw.get("json", b""))
