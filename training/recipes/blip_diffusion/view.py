"""From a sample to BLIP-Diffusion's tensors: target and input, and the template with places for the subject prompt."""

from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from transformers import CLIPTokenizer, PreTrainedTokenizerBase

from schemas.samples.blip_diffusion import PlacementField, Record
from training.drops import Drop, Drops, DropTable, draw
from training.geometry import Box, crop_window, decode, open_jpeg, window_of
from training.loop import RunConfig
from training.shards import Pixels, Raw

QUERIES = 16
"""Embeddings of a subject prompt. The paper found that 32 overwhelm the text."""
SUBJECT_LENGTH = 16
"""Tokens of a subject's text for the Q-Former, start and end included; a longer text is cut."""


class Config(RunConfig):
    """How to train a BLIP-Diffusion model. The defaults are the paper's pre-training, in each process."""

    steps: int = Field(default=500_000, gt=0, description="optimizer steps; fine-tuning takes 40 to 120")
    learning_rate: float = Field(
        default=2e-6, gt=0, description="of AdamW, constant; fine-tuning: 5e-6 as published, 5e-5 in the paper"
    )
    subject_dropped: float = Field(
        default=0.15, ge=0, le=1, description="share of samples without the subject prompt (the paper's 15 %)"
    )
    unconditional: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of samples without any text: for a U-Net from random weights (the paper: none)",
    )
    finetune: bool = Field(
        default=False,
        description="learn a few pictures of a subject: its prompt is averaged once, then only the U-Net is trained",
    )
    train_encoders: bool = Field(
        default=False, description="train the image encoder too: for one that starts from random weights"
    )

    def plain(self) -> Self:
        """Without drops."""
        return self.model_copy(update={"subject_dropped": 0.0, "unconditional": 0.0})


class Tokenizers(NamedTuple):
    """What a view needs of the model: the text encoder's tokenizer, and the Q-Former's."""

    text: CLIPTokenizer
    subject: PreTrainedTokenizerBase


def drop_table(config: Config) -> DropTable:
    """The subject prompt is dropped per sample, alone or with the caption."""
    return {
        "sample": Drops(
            exclusive=(
                Drop(config.unconditional, frozenset({"caption", "subject"})),
                Drop(config.subject_dropped, frozenset({"subject"})),
            )
        )
    }


def texts(raw: Raw) -> list[str]:
    """The caption, filled into the template."""
    record = _record(raw)
    return [record.caption + template_end(record.subject)]


def view(raw: Raw, rng: np.random.Generator, tokenizers: Tokenizers, config: Config) -> dict[str, Any]:
    """Make one sample's values; see the package for what a batch of them holds."""
    record = _record(raw)
    size = record.width, record.height
    target = crop_around(raw.get("target.jpg", b""), size, record.bbox, config.resolution)
    moved = placed(record.bbox, record.placement, record.width)
    shown = crop_around(raw.get("input.jpg", b""), size, moved, config.reference)
    dropped = draw(drop_table(config), "sample", rng)
    caption = "" if "caption" in dropped else record.caption
    ids, mask = fill_template(caption, None if "subject" in dropped else record.subject, tokenizers.text)
    subject = tokenizers.subject(record.subject, padding="max_length", max_length=SUBJECT_LENGTH, truncation=True)
    return {
        "pixel_values": Pixels(torch.from_numpy(np.ascontiguousarray(target.transpose(2, 0, 1))), -1, 1),
        "input_pixel_values": Pixels(torch.from_numpy(np.ascontiguousarray(shown.transpose(2, 0, 1))), 0, 1),
        "input_ids": torch.tensor(ids),
        "subject_prompt_mask": torch.tensor(mask),
        "subject_text": record.subject,
        "subject_input_ids": torch.tensor(subject.input_ids),
        "subject_attention_mask": torch.tensor(subject.attention_mask, dtype=torch.bool),
    }


def template_end(subject: str) -> str:
    """The template's words between the caption and the subject prompt."""
    return f", the {subject} is"


def fill_template(caption: str, subject: str | None, tokenizer: CLIPTokenizer) -> tuple[list[int], list[bool]]:
    """Tokenize the template or, without a subject, the caption alone.

    A template that is too long is shortened at the caption's end, never at the subject.

    Returns:
        The L ids, padded, and which of them are the positions of the subject prompt.

    Raises:
        ValueError: the subject's text alone is too long.
    """
    length = tokenizer.model_max_length
    end, queries = [], 0
    if subject is not None:
        # A full stop before the template's comma would be merged with it into a token that no other caption has.
        caption = caption.rstrip(" .,;:")
        end, queries = _word_ids(template_end(subject), tokenizer), QUERIES
    room = length - 2 - len(end) - queries
    if room < 0:
        raise ValueError(f"of {length} tokens the subject's {len(end)} leave no room for its prompt: {subject!r}")
    words = _word_ids(caption, tokenizer)[:room] + end
    ids = [tokenizer.bos_token_id, *words, *[tokenizer.pad_token_id] * queries, tokenizer.eos_token_id]
    first = 1 + len(words)
    mask = [first <= place < first + queries for place in range(length)]
    return ids + [tokenizer.pad_token_id] * (length - len(ids)), mask


def _word_ids(text: str, tokenizer: CLIPTokenizer) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids


def placed(box: Box, placement: PlacementField, width: int) -> Box:
    """Where a subject's box of the target lies in the input, which is as wide."""
    x, y, w, h = box
    if placement.flip:
        x = width - x - w
    grown_w, grown_h = w * placement.scale, h * placement.scale
    return x + (w - grown_w) / 2 + placement.shift[0], y + (h - grown_h) / 2 + placement.shift[1], grown_w, grown_h


def crop_around(data: bytes, size: tuple[int, int], box: Box, side: int) -> NDArray[np.uint8]:
    """Crop a JPEG to the square window that holds its subject, scaled to [side, side, 3] uint8.

    The published trainer crops the middle, wherever the subject is.

    Args:
        data: the JPEG.
        size: stated by its record, (width, height) in pixels.
        box: of the subject, xywh in pixels.
        side: of the square, in pixels.

    Raises:
        RecordError: `data` is not a JPEG, has another size, or is damaged.
    """
    width, height = size
    opened = open_jpeg(data, width, height)
    crop = crop_window(height, window_of(width, height, box), side, mirrored=False)
    return crop.crop_picture(decode(opened, crop, [], side), Image.Resampling.BICUBIC)


def _record(raw: Raw) -> Record:
    return Record.model_validate_json(raw.get("json", b""))
