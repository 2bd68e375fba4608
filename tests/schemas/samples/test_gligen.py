"""GLIGEN's samples: what is wrong with a box, a span or an embedding is found."""

import numpy as np
import pytest

from schemas.samples.gligen import FORMAT, BoxField, Record, read_array, write_array
from tests.gligen import NORM, grounded_example


def record(**changes: object) -> Record:
    return Record.from_example(grounded_example("k")).model_copy(update=changes)


def test_a_sound_sample_has_no_problem() -> None:
    sample, row = FORMAT.pack(grounded_example("k"))
    assert FORMAT.problems_of(sample, row) == []
    assert row["boxes"] == 2
    assert row["texts"] == ["a dog", "a cat"]
    assert row["areas"] == [round(20 * 16 / (64 * 48), 4), round(20 * 30 / (64 * 48), 4)]
    assert Record.from_sample(sample).norm == NORM
    detection, row = FORMAT.pack(grounded_example("k", detection=True))
    assert FORMAT.problems_of(detection, row) == []
    assert Record.from_sample(detection).is_detection


@pytest.mark.parametrize("bbox", [(-1, 0, 5, 5), (60, 0, 5, 5), (0, 47, 5, 2), (0, 0, 0, 5), (5, 5, 5, -1)])
def test_boxes_outside_the_picture_and_empty_ones_are_problems(bbox: tuple[int, int, int, int]) -> None:
    boxes = [BoxField(text="a dog", spans=((0, 5),), bbox=bbox, score=0.5)]
    assert any("in a picture of 64 x 48" in problem for problem in record(boxes=boxes).problems({}))


@pytest.mark.parametrize(
    ("spans", "problem"),
    [
        (((0, 4),), "its span holds 'a do'"),
        ((), "has no span"),
        (((0, 8), (10, 15)), "overlap"),  # "a dog an" and, of the other box, [10, 15): two phrases in one span
    ],
)
def test_texts_that_are_not_in_their_spans_are_problems(spans: tuple[tuple[int, int], ...], problem: str) -> None:
    other = BoxField(text="a dog", spans=((0, 5),), bbox=(0, 0, 9, 9), score=0.5)
    boxes = [BoxField(text="a dog", spans=spans, bbox=(0, 0, 9, 9), score=0.5), other]
    assert any(problem in found for found in record(boxes=boxes).problems({}))


def test_another_caption_keeps_the_boxes_that_it_does_not_name() -> None:
    changed = record().with_caption("see a cat")
    assert [(box.text, box.spans) for box in changed.boxes] == [("a dog", ()), ("a cat", ((4, 9),))]


def test_arrays_are_read_back_and_damaged_ones_refused() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = write_array(values)
    assert content == write_array(values.copy())
    np.testing.assert_array_equal(read_array(content, 2), values)
    for damaged, rows in ((b"", 2), (content[:40], 2), (content, 3), (write_array(values.astype(np.float16)), 2)):
        with pytest.raises(ValueError, match=r"embedding|array|header|magic"):
            read_array(damaged, rows)
