"""Prompts about two objects and their relation, as the VISOR benchmark has them, with boxes.

Gokhale et al., "Benchmarking Spatial Relationships in Text-to-Image Generation" (2022): every pair of COCO's 80 names
in both orders, with four relations and with "and", and each name alone: 31,680 prompts. They are made here by this
rule; the published file is not used. The boxes are this project's own: halves of the canvas.
"""

from collections.abc import Iterator, Mapping
from itertools import combinations

from schemas.layouts import Frame, LayoutRecord, make_layout, record_of
from transforms.text.inflection import with_article

NAMES = tuple(
    name.replace("-", " ")
    for name in """person bicycle car motorcycle airplane bus train truck boat traffic-light fire-hydrant stop-sign
    parking-meter bench bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie suitcase
    frisbee skis snowboard sports-ball kite baseball-bat baseball-glove skateboard surfboard tennis-racket bottle
    wine-glass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot hot-dog pizza donut cake chair
    couch potted-plant bed dining-table toilet tv laptop mouse remote keyboard cell-phone microwave oven toaster sink
    refrigerator book clock vase scissors teddy-bear hair-drier toothbrush""".split()  # noqa: SIM905
)
"""COCO's names, in its order."""
PAIRS_OF = frozenset({"skis", "scissors"})
"""Names in the plural, which take "a pair of"."""

LEFT: Frame = (0.05, 0.25, 0.45, 0.75)
RIGHT: Frame = (0.55, 0.25, 0.95, 0.75)
UPPER: Frame = (0.25, 0.05, 0.75, 0.45)
LOWER: Frame = (0.25, 0.55, 0.75, 0.95)
MIDDLE: Frame = (0.25, 0.25, 0.75, 0.75)
RELATIONS: Mapping[str, tuple[Frame, Frame]] = {
    "to the left of": (LEFT, RIGHT),
    "to the right of": (RIGHT, LEFT),
    "above": (UPPER, LOWER),
    "below": (LOWER, UPPER),
    "and": (LEFT, RIGHT),
}
"""Box of the first and of the second object. "and" says nothing about places: they stand side by side."""


def relation_layouts() -> Iterator[LayoutRecord]:
    """Yield the layouts: for each pair in its order and reversed one for each relation, then the names alone."""
    for pair in combinations(NAMES, 2):
        for first, second in (pair, pair[::-1]):
            for relation, (box, other) in RELATIONS.items():
                a, b = phrase_of(first), phrase_of(second)
                # The phrases' places are stated: "a bus" also stands in "a business".
                spans = [(0, len(a)), (len(a) + len(relation) + 2, len(a) + len(relation) + 2 + len(b))]
                layout = make_layout(f"{a} {relation} {b}", [(a, [box]), (b, [other])], spans)
                yield record_of(layout, relation)
    for name in NAMES:
        phrase = phrase_of(name)
        yield record_of(make_layout(phrase, [(phrase, [MIDDLE])]))


def phrase_of(name: str) -> str:
    """A name with its article: "an apple", "a pair of skis"."""
    return f"a pair of {name}" if name in PAIRS_OF else with_article(name)
