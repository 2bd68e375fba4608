from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from schemas.errors import RecordError
from schemas.example import Box, Example, Segment
from schemas.masks import Mask
from schemas.rejects import Reason
from tests.examples import make_example, phrase
from transforms.regions.subject import Filters, check_size, find_subject, is_person

FILTERS = Filters(min_side=8, min_area=0.03, max_area=0.7, rival=0.5)


def patch(rows: slice, columns: slice, value: float = 1.0, side: int = 10) -> NDArray[np.float32]:
    """A grid of `side` x `side` that is `value` in a rectangle and 0 elsewhere."""
    grid = np.zeros((side, side), np.float32)
    grid[rows, columns] = value
    return grid


LARGE, LOW = patch(slice(0, 5), slice(0, 6)), patch(slice(6, 10), slice(0, 6))  # 30 % and 24 % of the picture
SMALL = patch(slice(8, 10), slice(8, 10))  # 4 %


def segmented(*things: tuple[str, NDArray[np.float32]], stuff: str = "") -> Example:
    segments = [Segment(name, 1.0, Mask.from_array(grid > 0)) for name, grid in things]
    if stuff:
        segments.append(Segment(stuff, 1.0, Mask.from_array(np.ones((10, 10), bool)), is_thing=False))
    return replace(make_example(), segments=tuple(segments))


def captioned(*phrases: tuple[str, NDArray[np.float32]]) -> Example:
    """An example whose phrases have these heatmaps."""
    return replace(
        make_example(),
        phrases=tuple(phrase(text, start=20 * i) for i, (text, _) in enumerate(phrases)),
        heatmaps=np.stack([grid for _, grid in phrases]),
    )


def framed(*boxes: tuple[str, tuple[int, int, int, int], bool]) -> Example:
    """An example of a picture of 100 x 50 pixels with boxes; CLIPSeg's confidence is 0.9 everywhere."""
    example = replace(make_example(size=(100, 50)), boxes=tuple(Box(*box) for box in boxes))
    return replace(example, heatmaps=np.full((len(boxes), 10, 10), 0.9, np.float32))


def refusal(example: Example, filters: Filters = FILTERS) -> Reason:
    with pytest.raises(RecordError) as caught:
        find_subject(example, filters, 0.5)
    return caught.value.reason


def test_the_largest_thing_is_the_subject_and_stuff_is_none() -> None:
    subject = find_subject(segmented(("cup", SMALL), ("dog", LARGE), stuff="grass"), FILTERS, 0.5).subject
    assert subject is not None
    assert (subject.text, subject.phrase) == ("dog", "")
    assert subject.mask == Mask.from_array(LARGE > 0)
    assert refusal(segmented(stuff="grass")) is Reason.NO_SUBJECT


def test_a_second_thing_of_half_the_size_is_a_rival_unless_it_is_a_part() -> None:
    assert refusal(segmented(("dog", LARGE), ("cat", LOW))) is Reason.MANY_SUBJECTS
    inner = patch(slice(0, 5), slice(0, 4))  # two thirds of the dog, and inside it
    assert find_subject(segmented(("dog", LARGE), ("coat", inner)), FILTERS, 0.5).subject
    assert find_subject(segmented(("dog", LARGE), ("cat", LOW)), replace(FILTERS, rival=0.9), 0.5).subject


@pytest.mark.parametrize(
    ("rows", "columns", "reason"),
    [
        (1, 2, Reason.SMALL_SUBJECT),  # 2 % < 3 %
        (1, 3, None),  # 3 %: the bound itself passes
        (7, 10, None),  # 70 %
        (8, 9, Reason.LARGE_SUBJECT),
    ],
)
def test_subjects_that_are_too_small_or_too_large_are_refused(rows: int, columns: int, reason: Reason | None) -> None:
    example = segmented(("dog", patch(slice(0, rows), slice(0, columns))))
    if reason is None:
        assert find_subject(example, FILTERS, 0.5).subject
    else:
        assert refusal(example) is reason


@pytest.mark.parametrize("label", ["person", "Human face", "woman", "Boy", "crowd", "hand"])
def test_people_and_their_parts_are_refused_by_label(label: str) -> None:
    example = segmented((label, LARGE))
    assert refusal(example) is Reason.PERSON_SUBJECT
    assert find_subject(example, replace(FILTERS, people=True), 0.5).subject


def test_people_are_refused_by_the_noun_of_a_phrase_and_their_things_are_not() -> None:
    assert refusal(captioned(("an old fisherman's wife", LARGE), ("a boat", SMALL))) is Reason.PERSON_SUBJECT
    assert find_subject(captioned(("a woman's red shoe", LARGE)), FILTERS, 0.5).subject
    assert not is_person("snowman doll")


def test_a_phrase_is_where_confidence_reaches_the_level() -> None:
    example = captioned(("a dog", LARGE * 0.6), ("a cat", LOW * 0.4))
    found = find_subject(example, FILTERS, 0.5)
    assert found.subject is not None
    assert (found.subject.text, found.subject.phrase) == ("dog", "a dog")
    np.testing.assert_array_equal(found.subject.heatmap, LARGE * np.float32(0.6))
    assert found.heatmaps is None
    assert refusal(captioned(("a dog", LARGE * 0.4))) is Reason.NO_SUBJECT


def test_a_phrase_of_many_is_no_single_subject() -> None:
    assert refusal(captioned(("two dogs", LARGE))) is Reason.MANY_SUBJECTS
    dogs = replace(captioned(("dogs", LARGE)), phrases=(phrase("dogs", root="dog"),))
    assert refusal(dogs) is Reason.MANY_SUBJECTS
    pair = captioned(("a dog", patch(slice(0, 3), slice(0, 4)) + patch(slice(6, 9), slice(0, 4))))
    assert refusal(pair) is Reason.MANY_SUBJECTS  # in two places


def test_of_several_pieces_the_largest_is_the_subject() -> None:
    haze = patch(slice(5, 6), slice(0, 6), 0.3) + patch(slice(8, 9), slice(9, 10), 0.3)
    soft = LARGE + patch(slice(9, 10), slice(9, 10)) + haze
    subject = find_subject(captioned(("a dog", soft)), FILTERS, 0.5).subject
    assert subject is not None
    expected = LARGE + patch(slice(5, 6), slice(0, 6), 0.3)  # the crumb goes, with the haze around it
    np.testing.assert_array_equal(subject.heatmap, expected)


def test_boxes_count_by_their_area_and_a_group_is_no_subject() -> None:
    one = framed(("Teddy bear", (10, 10, 40, 30), True), ("Coin", (90, 0, 5, 5), True))
    subject = find_subject(one, FILTERS, 0.5).subject
    assert subject is not None
    assert subject.text == "teddy bear"
    expected = np.zeros((10, 10), np.float32)
    expected[2:8, 1:5] = 0.9  # the box, 10 pixels to a cell across and 5 down
    np.testing.assert_array_equal(subject.heatmap, expected)
    assert refusal(framed(("Cat", (0, 0, 50, 40), True), ("Dog", (50, 0, 40, 40), True))) is Reason.MANY_SUBJECTS
    assert refusal(framed(("Orange", (0, 0, 50, 40), False))) is Reason.MANY_SUBJECTS
    assert refusal(framed(("Human face", (0, 0, 50, 40), True))) is Reason.PERSON_SUBJECT


def test_the_smallest_side_of_a_picture_is_checked() -> None:
    example = make_example(size=(16, 12))
    assert check_size(example, 12) is example
    with pytest.raises(RecordError, match="16 x 12 pixels, the shorter side must have 13") as caught:
        check_size(example, 13)
    assert caught.value.reason is Reason.SMALL_IMAGE
