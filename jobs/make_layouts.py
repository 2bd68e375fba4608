"""Layouts of the pictures of a dataset, and the tokens of phrases."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from transformers import CLIPTokenizer

from jobs.exports.folder import read_samples
from schemas.errors import ConfigError, InputError
from schemas.layouts import Layout, LayoutRecord, make_layout, record_of
from schemas.samples import FORMATS
from training.diffusion import LAYOUT, loading
from training.tokenizer import token_range
from transforms.dataset import read_info

NAMED: Mapping[str, str] = {"fastcomposer": "subjects", "mip-adapter": "objects", "gligen": "boxes"}
"""Where the records of recipes hold phrases with boxes."""


def dataset_layouts(output: str, left_out: list[str]) -> Iterator[LayoutRecord]:
    """Yield the layout of each sample of a dataset whose samples have phrases with boxes.

    Of samples that have no layout, as their phrases overlap or they have too many boxes, the reason is added to
    `left_out`.

    Raises:
        InputError: there is no finished dataset, or its recipe has no such phrases.
    """
    recipe = read_info(output).recipe
    if recipe not in NAMED:
        raise InputError(f"{output} holds a {recipe} dataset, which has no phrases with boxes: {', '.join(NAMED)} have")
    for sample in read_samples(output, recipe):
        record: Any = FORMATS[recipe].record.from_sample(sample)
        try:
            layout = sample_layout(record, getattr(record, NAMED[recipe]))
        except ConfigError as error:
            left_out.append(f"{record.key}: {error}")
            continue
        if layout:
            yield record_of(layout)
        else:
            left_out.append(f"{record.key}: its caption names nothing that has a box")


def sample_layout(record: Any, things: Iterable[Any]) -> Layout | None:  # noqa: ANN401 - a recipe's record
    """The layout of a sample's things; things of one phrase are its boxes. None if no phrase has a box."""
    boxes: dict[tuple[int, int], list[tuple[float, ...]]] = {}
    for thing in things:
        x, y, w, h = thing.bbox
        frame = (x / record.width, y / record.height, (x + w) / record.width, (y + h) / record.height)
        for span in thing.spans if hasattr(thing, "spans") else [(thing.start, thing.end)]:
            boxes.setdefault(tuple(span), []).append(frame)
    placed = [(record.caption[slice(*span)], frames) for span, frames in boxes.items()]
    return make_layout(record.caption, placed, list(boxes)) if placed else None


def add_tokens(record: LayoutRecord, tokenizers: Mapping[str, Any]) -> LayoutRecord:
    """Add the positions of each phrase's tokens, by the tokenizers' names.

    Raises:
        ConfigError: a phrase lies beyond the tokens that a text encoder reads.
    """
    layout = record.to_layout()
    tokens = [
        {name: token_range(layout.prompt, phrase.start, phrase.end, tool) for name, tool in tokenizers.items()}
        for phrase in layout.phrases
    ]
    return record_of(layout, record.relation, tokens)


def load_tokenizers(names: Sequence[str]) -> dict[str, Any]:
    """Load the tokenizers of models, by their names.

    Raises:
        ModelError: there is none.
    """
    tokenizers = {}
    for name in names:
        with loading(name, LAYOUT):
            tokenizers[name] = CLIPTokenizer.from_pretrained(name, subfolder="tokenizer")
    return tokenizers
