"""Layouts: a prompt, phrases of it, and boxes in which the phrases are to be drawn.

Boxes are (left, top, right, bottom) as shares of the canvas, in [0, 1].
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pydantic import Field

from schemas.errors import ConfigError
from schemas.samples.base import find_spans
from schemas.strict import StrictModel

Frame = tuple[float, float, float, float]
"""(left, top, right, bottom) as shares of the canvas, in [0, 1]."""

MOST = 30
"""Most boxes of a layout, which is what GLIGEN has places for."""


@dataclass(frozen=True)
class Placed:
    """A phrase and its boxes; `text == prompt[start:end]`."""

    text: str
    start: int
    end: int
    boxes: tuple[Frame, ...]


@dataclass(frozen=True)
class Layout:
    """A prompt and the phrases of it that have a place, in the order of the prompt."""

    prompt: str
    phrases: tuple[Placed, ...]


class PhraseField(StrictModel):
    """A phrase of a `LayoutRecord`; `start` and `end` may be left out, as they can be found."""

    text: str
    boxes: tuple[tuple[float, ...], ...]
    start: int | None = None
    end: int | None = None
    tokens: dict[str, tuple[int, int]] = Field(default_factory=dict)


class LayoutRecord(StrictModel):
    """A layout as files hold it.

    `relation` is the preposition by which it was made, "" if none. `tokens` of a phrase are the positions [first, last)
    of its tokens, by the name of the tokenizer.
    """

    prompt: str
    phrases: tuple[PhraseField, ...]
    relation: str = ""

    def to_layout(self) -> Layout:
        """Check the record.

        Raises:
            ConfigError: see `make_layout`, or the spans that the record states are not its phrases'.
        """
        for phrase in self.phrases:
            if phrase.start is not None and self.prompt[phrase.start : phrase.end] != phrase.text:
                held = self.prompt[phrase.start : phrase.end]
                raise ConfigError(f"{phrase.text!r}: its span in {self.prompt!r} holds {held!r}")
        spans = [
            None if phrase.start is None or phrase.end is None else (phrase.start, phrase.end)
            for phrase in self.phrases
        ]
        return make_layout(self.prompt, [(phrase.text, phrase.boxes) for phrase in self.phrases], spans)


def make_layout(
    prompt: str,
    placed: Sequence[tuple[str, Sequence[Sequence[float]]]],
    spans: Sequence[tuple[int, int] | None] | None = None,
) -> Layout:
    """Make a layout of phrases, each with its boxes.

    Args:
        prompt: the prompt.
        placed: phrases with boxes (left, top, right, bottom). Of equal phrases the first is the first in the prompt.
        spans: of the phrases in the prompt, [start, end); those that are None are found.

    Raises:
        ConfigError: a box cannot be used, the prompt does not contain a phrase, two phrases share words, or there are
            more than `MOST` boxes.
    """
    found = find_spans([text for text, _ in placed], prompt)
    spans = [stated or other for stated, other in zip(spans or [None] * len(placed), found, strict=True)]
    phrases = []
    for (text, boxes), span in zip(placed, spans, strict=True):
        if span is None:
            raise ConfigError(f"the prompt {prompt!r} does not contain {text!r}, for which a box is given")
        if not boxes:
            raise ConfigError(f"{text!r} has no box: leave the phrase out, or give it one")
        frames = tuple(check_frame(box, f"the box of {text!r}") for box in boxes)
        phrases.append(Placed(prompt[slice(*span)], *span, frames))
    phrases.sort(key=lambda phrase: phrase.start)
    for first, second in pairwise(phrases):
        if second.start < first.end:
            raise ConfigError(f"{first.text!r} and {second.text!r} share words of {prompt!r}: place one of them")
    if (count := sum(len(phrase.boxes) for phrase in phrases)) > MOST:
        raise ConfigError(f"{count} boxes for {prompt!r}: at most {MOST} can be placed")
    return Layout(prompt, tuple(phrases))


def check_frame(box: Sequence[float], name: str) -> Frame:
    """Check a box (left, top, right, bottom) in shares of the canvas.

    Raises:
        ConfigError: it has not four numbers, a number is not finite, a corner lies outside, or it is empty.
    """
    given = ",".join(f"{value:g}" for value in box)
    if len(box) != 4:
        raise ConfigError(f"{name} has {len(box)} numbers ({given}): write left,top,right,bottom, as 0.1,0.2,0.5,0.6")
    left, top, right, bottom = map(float, box)
    if not all(map(math.isfinite, (left, top, right, bottom))):
        raise ConfigError(f"{name} is {given}: all four must be numbers")
    if not all(0 <= value <= 1 for value in (left, top, right, bottom)):
        raise ConfigError(f"{name}, {given}, lies outside the picture: write shares of its sides, from 0 to 1")
    if left > right or top > bottom:
        raise ConfigError(f"{name}, {given}, has swapped corners: write left,top,right,bottom")
    if left == right or top == bottom:
        raise ConfigError(f"{name}, {given}, is empty: right must be more than left, and bottom more than top")
    return left, top, right, bottom


def parse_box(text: str) -> tuple[str, list[float]]:
    """Read "PHRASE=left,top,right,bottom".

    Raises:
        ConfigError: it is written in another way.
    """
    phrase, equals, numbers = text.rpartition("=")
    phrase = " ".join(phrase.split())
    try:
        box = [float(number) for number in numbers.split(",")]
    except ValueError:
        box = []
    if not equals or not phrase or not box:
        raise ConfigError(f"--box {text!r}: write PHRASE=left,top,right,bottom, as 'a red ball=0.1,0.2,0.5,0.6'")
    return phrase, box


def layout_of(prompt: str, boxes: Iterable[tuple[str, Sequence[float]]]) -> Layout:
    """Make a layout of boxes, each with its phrase.

    A phrase with several boxes that the prompt contains once has all of them; one that it contains several times has
    one at each place, and the last place has those that are left.

    Raises:
        ConfigError: see `make_layout`.
    """
    grouped: Mapping[str, list[Sequence[float]]] = defaultdict(list)
    for phrase, box in boxes:
        grouped[phrase.lower()].append(box)
    placed: list[tuple[str, list[Sequence[float]]]] = []
    for phrase, given in grouped.items():
        times = max(1, sum(span is not None for span in find_spans([phrase] * len(given), prompt)))
        placed += [(phrase, [box]) for box in given[: times - 1]] + [(phrase, given[times - 1 :])]
    return make_layout(prompt, placed)


def record_of(
    layout: Layout, relation: str = "", tokens: Sequence[Mapping[str, tuple[int, int]]] | None = None
) -> LayoutRecord:
    """Make the record of a layout; `tokens` are those of each phrase."""
    found: Sequence[Mapping[str, Any]] = tokens or [{}] * len(layout.phrases)
    return LayoutRecord(
        prompt=layout.prompt,
        phrases=tuple(
            PhraseField(text=phrase.text, boxes=phrase.boxes, start=phrase.start, end=phrase.end, tokens=dict(own))
            for phrase, own in zip(layout.phrases, found, strict=True)
        ),
        relation=relation,
    )
