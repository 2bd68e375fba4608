"""Prompts of relations: how many there are, their articles, and boxes that lie as the prompts say."""

from collections import Counter

from schemas.layouts import LayoutRecord
from transforms.layouts.relations import NAMES, relation_layouts

DIRECTIONS = {"to the left of": (1, 0), "to the right of": (-1, 0), "above": (0, 1), "below": (0, -1)}
"""From the first object to the second, (x, y)."""
RECORDS = list(relation_layouts())


def center(record: LayoutRecord, index: int) -> tuple[float, float]:
    ((left, top, right, bottom),) = record.phrases[index].boxes
    return (left + right) / 2, (top + bottom) / 2


def test_there_are_as_many_as_in_the_published_benchmark() -> None:
    records = RECORDS
    assert len(NAMES) == len(set(NAMES)) == 80
    counts = Counter(record.relation for record in records)
    assert counts == dict.fromkeys(DIRECTIONS, 6320) | {"and": 6320, "": 80}
    prompts = {record.prompt for record in records}
    assert len(prompts) == len(records) == 31_680
    assert {
        "an apple to the left of a hot dog",
        "a hot dog to the left of an apple",
        "a pair of scissors above an umbrella",
        "an oven and a teddy bear",
        "an orange",
    } <= prompts


def test_boxes_lie_as_the_prompts_say_and_phrases_where_they_stand() -> None:
    for record in RECORDS[::97]:
        layout = record.to_layout()
        assert [phrase.text for phrase in layout.phrases] == [phrase.text for phrase in record.phrases]
        if record.relation in DIRECTIONS:
            (x, y), (other_x, other_y) = center(record, 0), center(record, 1)
            assert ((other_x > x) - (other_x < x), (other_y > y) - (other_y < y)) == DIRECTIONS[record.relation]
