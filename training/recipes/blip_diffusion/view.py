"""From a sample to BLIP-Diffusion's tensors: target and input, and the template with places for the subject prompt."""

import re
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPTokenizer, PreTrainedTokenizerBase

from schemas.samples.blip_diffusion import PlacementField, Record
from training.configs.blip_diffusion import Config, Template
from training.drops import Drop, Drops, DropTable, draw
from training.geometry import Box, crop_window, decode, open_jpeg, window_of
from training.shards import Pixels, Raw

QUERIES = 16
"""Embeddings of a subject prompt. The paper found that 32 overwhelm the text."""
SUBJECT_LENGTH = 16
"""Tokens of a subject's text for the Q-Former, start and end included; a longer text is cut."""


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
    caption = "" if "caption" in dropped else caption_of(record, config)
    shown_subject = None if "subject" in dropped else record.subject
    ids, mask = fill_template(caption, shown_subject, tokenizers.text, config.template)
    subject = tokenizers.subject(record.subject, padding="max_length", max_length=SUBJECT_LENGTH, truncation=True)
    return {
        "pixel_values": Pixels(torch.from_numpy(np.ascontiguousarray(target.transpose(2, 0, 1))), -1, 1),
        "input_pixel_values": Pixels(torch.from_numpy(np.ascontiguousarray(shown.transpose(2, 0, 1))), 0, 1),
        "input_ids": torch.tensor(ids),
        "subject_prompt_mask": torch.tensor(mask),
        "caption": caption,
        "subject_text": record.subject,
        "subject_input_ids": torch.tensor(subject.input_ids),
        "subject_attention_mask": torch.tensor(subject.attention_mask, dtype=torch.bool),
    }


def caption_of(record: Record, config: Config) -> str:
    """The caption that fills the template; "" if the template `released` alone says `a SUBJECT`."""
    if config.captions == "own":
        return record.caption
    return "" if config.template == "released" else f"a {record.subject}"


def template_end(subject: str) -> str:
    """The template's words between the caption and the subject prompt."""
    return f", the {subject} is"


def fill_template(
    caption: str, subject: str | None, tokenizer: CLIPTokenizer, template: Template = "paper", reps: int = 1
) -> tuple[list[int], list[bool]]:
    """Tokenize the template or, without a subject, the caption alone.

    A text of the template `paper` that is too long is shortened at the caption's end, never at the subject; one of
    `released`, at its own end.

    Args:
        caption: fills the template.
        subject: its text; None for the caption alone.
        tokenizer: the text encoder's.
        template: which one.
        reps: repetitions of the whole text in the template `released`, joined by commas.

    Returns:
        The L ids, padded, and which of them are the positions of the subject prompt.

    Raises:
        ValueError: the subject's text alone is too long for the template `paper`.
    """
    room = tokenizer.model_max_length - 2
    if subject is None:
        return _padded(_word_ids(caption, tokenizer)[:room], 0, 0, tokenizer)
    room -= QUERIES
    if template == "released":
        words = _word_ids(", ".join([released_text(caption, subject)] * reps), tokenizer)
        return _padded(words[:room], 1, QUERIES, tokenizer)
    # A full stop before the template's comma would be merged with it into a token that no other caption has.
    words, end = _word_ids(caption.rstrip(" .,;:"), tokenizer), _word_ids(template_end(subject), tokenizer)
    if len(end) > room:
        raise ValueError(
            f"of {tokenizer.model_max_length} tokens the subject's {len(end)} leave no room for its prompt: {subject!r}"
        )
    words = words[: room - len(end)] + end
    return _padded(words, len(words), QUERIES, tokenizer)


def _padded(words: list[int], before: int, queries: int, tokenizer: CLIPTokenizer) -> tuple[list[int], list[bool]]:
    """Add start, end, padding, and the subject prompt's `queries` positions after the first `before` words."""
    prompt = [tokenizer.pad_token_id] * queries
    ids = [tokenizer.bos_token_id, *words[:before], *prompt, *words[before:], tokenizer.eos_token_id]
    length = tokenizer.model_max_length
    mask = [before < place <= before + queries for place in range(length)]
    return ids + [tokenizer.pad_token_id] * (length - len(ids)), mask


def released_text(caption: str, subject: str) -> str:
    """The words of the template `released`, without punctuation and in lower case, as the authors prepare them."""
    return f"a {_simplified(subject)} {_simplified(caption)}".strip()


def _simplified(text: str) -> str:
    """Lower the case, remove most punctuation, and keep 50 words, as LAVIS' processor `blip_caption`."""
    return " ".join(re.sub(r'[.!"()*#:;~]', " ", text.lower()).split()[:50])


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
