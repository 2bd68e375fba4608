"""How well a phrase's head noun names a segment's class: a similarity that needs no model."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.example import Phrase, Segment
from transforms.text.synonyms import KINDS, SYNONYMS, plain_label

SAME, SYNONYM, KIND = 0.98, 0.88, 0.58
"""What a class's own name, another word for it and a wider word are worth; up to 0.02 are added by size."""
THING_BONUS, AREA_BONUS = 0.01, 0.01


def label_similarity(phrases: Sequence[Phrase], segments: Sequence[Segment]) -> NDArray[np.float64]:
    """Compare phrases with class names: [P, S] float64 in [0, 1], 0 where the words have nothing in common.

    Of several segments of one class a caption means the one that strikes the eye: things come before stuff, and
    larger segments before smaller ones, by an amount that never outweighs a better word.
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

    The class's own name may have several words, which the phrase must end in: "a stop sign" is a "stop sign",
    "a sign" is not. A compound that ends in another class is none of it: "a hot dog" is no dog.
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
