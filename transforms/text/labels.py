"""Similarity of a phrase's head noun and a segment's class, without a model."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.example import Phrase, Segment
from transforms.text.synonyms import KINDS, SYNONYMS, plain_label

SAME, SYNONYM, KIND = 0.98, 0.88, 0.58
"""Similarity of a class to its own name, to a synonym and to a wider word."""
THING_BONUS, AREA_BONUS = 0.01, 0.01
"""Most that is added for a thing, and for its area; the sum never outweighs a better word."""


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

    A phrase names a class of several words if it ends in them: "a stop sign" is a "stop sign", "a sign" is not. A
    compound that is another class does not name the class of its last word: "a hot dog" is no dog.
    """
    name = plain_label(label)
    root = phrase.root.lower()
    words = phrase.text.lower().split()
    head = [*words[:-1], root] if words else [root]
    for length in (3, 2):
        compound = " ".join(head[-length:])
        if len(head) >= length and (compound in SYNONYMS or compound == name):
            return SAME if compound == name else 0.0
    if root == name or words[-1:] == [name]:
        return SAME
    if root in SYNONYMS.get(name, ()):
        return SYNONYM
    return KIND if name in KINDS.get(root, ()) else 0.0
