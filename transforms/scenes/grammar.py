"""Captions of the sample scenes, from a small grammar that records the span of every noun phrase."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUMBERS = {2: "two", 3: "three"}
PLURALS = {"fish": "fish", "box": "boxes"}
OPENINGS = (
    "",
    "",
    "",
    "",
    "a photo of ",
    "a picture of ",
    "there {be} ",
    "here {be} ",
    "we see ",
    "this is a photo of ",
)
ENDINGS = (
    "", "", "", "", " on a sunny day", " in the morning", " at night", " on a quiet evening",
    " in the summer", " during a long winter", " on a rainy afternoon",
)  # fmt: skip
JOINS = ("and", "and", "with", "next to", "near", "beside", "in front of", "behind")


@dataclass(frozen=True)
class Group:
    """Objects that share a phrase: `count` of the same noun, colour and texture.

    `center` is (x, y) of the first object and `scale` its size, both in [0, 1] of the picture's side.
    """

    noun: str
    color: str
    texture: str
    count: int
    center: tuple[float, float]
    scale: float


@dataclass(frozen=True)
class Span:
    """A noun phrase of the caption: characters [start, end), and the index of the group it names, None for nothing."""

    start: int
    end: int
    group: int | None


def write_caption(rng: np.random.Generator, groups: Sequence[Group]) -> tuple[str, tuple[Span, ...]]:
    """Write a caption that names each of `groups` once; return it and its noun phrases in order.

    The phrase of a group is true of no other group: groups with the same noun have their colours in their phrases. The
    nouns of openings ("a photo of") are not among the phrases.
    """
    nouns = [group.noun for group in groups]
    first_be = "are" if groups[0].count > 1 else "is"
    text = str(rng.choice(OPENINGS)).format(be=first_be)
    spans: list[Span] = []
    for index, group in enumerate(groups):
        if index:
            text += _join(rng, groups[index - 1], group, index + 1 == len(groups), len(groups))
        phrase = describe(rng, group, needs_color=nouns.count(group.noun) > 1)
        spans.append(Span(len(text), len(text) + len(phrase), index))
        text += phrase
    ending = str(rng.choice(ENDINGS))
    if ending:
        preposition, _, phrase = ending.strip().partition(" ")
        start = len(text) + len(preposition) + 2
        spans.append(Span(start, start + len(phrase), None))
        text += ending
    if rng.random() < 0.4:
        text = text[0].upper() + text[1:] + "."
    return text, tuple(spans)


def describe(rng: np.random.Generator, group: Group, needs_color: bool) -> str:
    """Write a noun phrase for `group`: "a small striped red ball", "two blue cups"."""
    words = []
    if group.count == 1 and rng.random() < 0.3 and not 0.3 <= group.scale <= 0.38:
        words.append(str(rng.choice(("small", "little") if group.scale < 0.3 else ("large", "big"))))
    if group.texture != "plain" and rng.random() < 0.6:
        words.append(group.texture)
    if needs_color or rng.random() < 0.88:
        words.append(group.color)
    if group.count > 1:
        plural = PLURALS.get(group.noun, group.noun + "s")
        return " ".join([NUMBERS[group.count], *words, plural])
    words.append(group.noun)
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words])


def _join(rng: np.random.Generator, left: Group, right: Group, is_last: bool, groups: int) -> str:
    if not is_last:
        return ", "
    if left.count == right.count == 1 and groups == 2 and rng.random() < 0.5:
        return f" {_relation(left, right)} "
    return f" {rng.choice(JOINS)} " if groups == 2 else " and "


def _relation(left: Group, right: Group) -> str:
    dx, dy = right.center[0] - left.center[0], right.center[1] - left.center[1]
    if abs(dx) > abs(dy):
        return "to the left of" if dx > 0 else "to the right of"
    return "above" if dy > 0 else "below"
