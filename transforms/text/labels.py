"""Similarity of a phrase's head noun and a segment's class, without a model."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.example import Phrase, Segment
from transforms.text.inflection import singular
from transforms.text.synonyms import KINDS, SYNONYMS, plain_labels

SAME, SYNONYM, KIND = 0.98, 0.88, 0.58
"""Similarity of a class to its own name, to a synonym and to a wider word."""
THING_BONUS, AREA_BONUS = 0.01, 0.01
"""Most that is added for a thing, and for its area; the sum never outweighs a better word."""

MAX_WORDS = 4
"""Most words of a class name that are compared with the end of a phrase."""


def label_similarity(phrases: Sequence[Phrase], segments: Sequence[Segment]) -> NDArray[np.float64]:
    """Compare phrases with class names: [P, S] float64 in [0, 1], 0 if they are unrelated.

    Of several segments of a class, a caption usually means the most conspicuous one: things score slightly more than
    stuff, and larger segments slightly more than smaller ones.
    """
    scores = np.zeros((len(phrases), len(segments)))
    largest = max((segment.area for segment in segments), default=1) or 1
    for s, segment in enumerate(segments):
        bonus = THING_BONUS * segment.is_thing + AREA_BONUS * segment.area / largest
        for p, phrase in enumerate(phrases):
            word = word_similarity(phrase, segment.label)
            scores[p, s] = word and word + bonus
    return scores


def word_similarity(phrase: Phrase, label: str) -> float:
    """Compare a phrase with a class name: `SAME`, `SYNONYM`, `KIND` or 0.

    Hyphens and spaces make no difference ("a stop-sign", "a motor bike"), nor does a plural ("boots"); of a class with
    several names ("mountain, mount") each one counts. A phrase names a class of several words if it ends in them: "a
    stop sign" is a "stop sign", "a sign" is not. A compound that is another class does not name the class of its last
    word: "a hot dog" is no dog.
    """
    names = plain_labels(label)
    same = {form for name in names for form in (_joined(name), _joined(_one(name)))}
    synonyms = {_joined(word) for name in names for word in SYNONYMS.get(name, ())}
    root = phrase.root.lower()
    words = re.split(r"[\s-]+", phrase.text.lower())
    head = [*words[:-1], root]
    for length in range(min(MAX_WORDS, len(head)), 1, -1):
        compound = "".join(head[-length:])
        if compound in same:
            return SAME
        if compound in COMPOUNDS and compound not in synonyms:
            return 0.0
        if compound in synonyms and not same & {_joined(root), words[-1]}:
            return SYNONYM
    if same & {_joined(root), words[-1]}:
        return SAME
    if _joined(root) in synonyms:
        return SYNONYM
    return KIND if KINDS.get(root, frozenset()).intersection(names) else 0.0


def _joined(name: str) -> str:
    return name.replace(" ", "").replace("-", "")


def _one(name: str) -> str:
    """The singular of a class name; "glasses" are no glass."""
    before, space, last = name.rpartition(" ")
    return name if name == "glasses" else f"{before}{space}{singular(last) or last}"


COMPOUNDS = frozenset(_joined(word) for label, words in SYNONYMS.items() for word in (label, *words))
"""Classes and their synonyms without spaces and hyphens: what two words of a phrase may name together."""
