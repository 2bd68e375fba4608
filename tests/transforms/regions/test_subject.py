from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.errors import RecordError
from schemas.example import Box, Example, Phrase, Segment
from schemas.masks import Mask
from schemas.rejects import Reason, Reject
from tests.beam import apply
from tests.examples import make_example, phrase
from transforms.batch import Batch
from transforms.regions.subject import (
    ChooseSubject,
    DropSmallPictures,
    Filters,
    candidates_of_boxes,
    check_size,
    find_subject,
    is_person,
    salience_of,
)

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
    return refused(example, filters).reason


def refused(example: Example, filters: Filters = FILTERS) -> RecordError:
    with pytest.raises(RecordError) as caught:
        find_subject(example, filters, 0.5)
    return caught.value


def cells(count: int) -> NDArray[np.float32]:
    """The first `count` cells of a grid of 10 x 10."""
    return (np.arange(100) < count).reshape(10, 10).astype(np.float32)


def test_a_refusal_names_the_subject_and_the_bound() -> None:
    cases = {
        "no-subject: nothing in the picture could be its subject": segmented(stuff="grass"),
        "small-subject: the largest is dog (2.0%), the smallest allowed is 3.0%": segmented(("dog", cells(2))),
        "large-subject: it is dog (71.0%), the largest allowed is 70.0%": segmented(("dog", cells(71))),
        "person-subject: it is woman (30.0%)": segmented(("woman", LARGE)),
        "person-subject: it is my wife (30.0%)": captioned(("my wife", LARGE)),
        "many-subjects: two dogs (30.0%) names several things": captioned(("two dogs", LARGE)),
        "many-subjects: dog (30.0%) and cat (24.0%)": segmented(("cat", LOW), ("dog", LARGE)),
    }
    assert [str(refused(example)) for example in cases.values()] == list(cases)


def test_without_filters_any_size_is_a_subject_and_people_and_rivals_are_none() -> None:
    assert find_subject(segmented(("dog", cells(1))), Filters(), 0.5).subject
    assert find_subject(segmented(("dog", cells(100))), Filters(), 0.5).subject
    assert refusal(segmented(("woman", cells(1))), Filters()) is Reason.PERSON_SUBJECT
    rival = patch(slice(9, 10), slice(2, 5))
    assert refusal(segmented(("dog", cells(6)), ("cat", rival)), Filters()) is Reason.MANY_SUBJECTS
    assert find_subject(segmented(("dog", cells(7)), ("cat", rival)), Filters(), 0.5).subject
    assert check_size(make_example(size=(1, 1)), Filters().min_side)


def test_a_part_lies_in_the_subject_by_more_than_four_fifths() -> None:
    dog = cells(30)  # the first three rows
    inside = dog.copy()
    inside.flat[:14] = 0  # 16 of its cells
    outside = patch(slice(5, 6), slice(0, 4))
    assert refusal(segmented(("dog", dog), ("coat", inside + outside))) is Reason.MANY_SUBJECTS  # 16 of 20
    outside[5, 3] = 0
    assert find_subject(segmented(("dog", dog), ("coat", inside + outside)), FILTERS, 0.5).subject  # 16 of 19


def test_of_two_equally_large_parts_of_one_thing_the_first_is_the_subject() -> None:
    found = find_subject(segmented(("dog", LARGE), ("puppy", LARGE)), FILTERS, 0.5).subject
    assert found is not None
    assert found.text == "dog"


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


@pytest.mark.parametrize(
    "label", ["person", "Human face", "Human body", "woman", "Boy", "crowd", "hand", "men", "class", "face", "skin"]
)
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


def test_things_that_come_in_pairs_are_one_and_copies_of_a_phrase_are_many() -> None:
    jeans = replace(captioned(("blue jeans", LARGE)), phrases=(phrase("blue jeans", root="jean"),))
    assert find_subject(jeans, FILTERS, 0.5).subject
    assert find_subject(captioned(("the Dog", LARGE)), FILTERS, 0.5).subject
    # "two dogs", written out: both copies come from the same words.
    copies = (Phrase("a dog", 0, 5, "dog", (0, 8)), Phrase("a dog", 10, 15, "dog", (0, 8)))
    written_out = replace(captioned(("a dog", LARGE), ("a dog", SMALL)), phrases=copies)
    assert refusal(written_out) is Reason.MANY_SUBJECTS


def test_a_second_piece_of_half_the_size_is_another_thing() -> None:
    piece = patch(slice(0, 2), slice(0, 5))
    assert refusal(captioned(("a dog", piece + patch(slice(5, 6), slice(0, 5))))) is Reason.MANY_SUBJECTS
    assert find_subject(captioned(("a dog", piece + patch(slice(5, 6), slice(0, 4)))), FILTERS, 0.5).subject
    crumbs = patch(slice(5, 6), slice(0, 4)) + patch(slice(7, 8), slice(0, 4))  # together, but not each
    assert find_subject(captioned(("a dog", piece + crumbs)), FILTERS, 0.5).subject


def test_a_confidence_at_the_level_counts() -> None:
    assert find_subject(captioned(("a dog", LARGE * 0.5)), FILTERS, 0.5).subject
    assert refusal(captioned(("a dog", LARGE * 0.49))) is Reason.NO_SUBJECT


def test_of_several_pieces_the_largest_is_the_subject() -> None:
    haze = patch(slice(5, 6), slice(0, 6), 0.3) + patch(slice(8, 9), slice(9, 10), 0.3)
    soft = LARGE + patch(slice(9, 10), slice(9, 10)) + haze
    subject = find_subject(captioned(("a dog", soft)), FILTERS, 0.5).subject
    assert subject is not None
    expected = LARGE + patch(slice(5, 6), slice(0, 6), 0.3)  # the crumb goes, with the haze around it
    np.testing.assert_array_equal(subject.heatmap, expected)


def test_the_largest_piece_need_not_be_the_first_one() -> None:
    crumb = patch(slice(0, 1), slice(9, 10))
    subject = find_subject(captioned(("a dog", crumb + LOW)), FILTERS, 0.5).subject
    assert subject is not None
    np.testing.assert_array_equal(subject.heatmap, LOW)


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


def test_the_salience_of_a_mask_by_hand() -> None:
    """A box of 4 x 3 pixels at (1, 2) and a crumb of one pixel at (9, 9), of a picture of 10 x 10 pixels."""
    box = patch(slice(2, 5), slice(1, 5)) > 0
    whole = salience_of(box)
    assert (whole.area, whole.wholeness, whole.border) == (0.12, 1.0, 0.0)
    assert whole.centrality == pytest.approx(1 - np.hypot(0.15, 0.2) / np.hypot(0.5, 0.5))
    box[9, 9] = True
    two = salience_of(box)
    assert (two.area, two.wholeness, two.border) == pytest.approx((0.13, 12 / 13, 1 / (9 + 8)))
    # Pieces that touch at a corner are one.
    assert salience_of(np.eye(6, dtype=bool)).wholeness == 1.0
    assert salience_of(np.ones((6, 10), bool)).centrality == pytest.approx(1)
    assert salience_of(np.ones((6, 10), bool)).border == pytest.approx(28 / 16)
    # A whole side lies on the border, of a thing of 4 x 5 pixels.
    assert salience_of(patch(slice(5, 10), slice(3, 7)) > 0).border == pytest.approx(4 / 9)
    # In a corner of a picture of any shape, one pixel is as far from the middle as can be.
    assert salience_of(np.arange(10_000).reshape(50, 200) == 0).centrality == pytest.approx(0, abs=0.03)


MIDDLE = patch(slice(3, 7), slice(3, 7))  # 16 %
SALIENT = replace(FILTERS, min_centrality=0.5, min_wholeness=0.9, max_border=0.05)


def test_an_annotated_subject_is_near_the_middle_whole_and_not_cut_off() -> None:
    example = segmented(("truck", MIDDLE))
    subject = find_subject(example, SALIENT, 0.5).subject
    assert subject is not None
    assert subject.salience == salience_of(MIDDLE > 0)
    cases = {
        "scattered-subject: the largest piece of truck (12.0%) has 67% of it, it needs more than 90%": (
            MIDDLE * (np.arange(10) != 4)
        ),
        "cut-subject: truck (21.0%) has 0.30 of its width and height on the picture's border, at most 0.05 is "
        "allowed": patch(slice(3, 10), slice(3, 6)),
        "off-center-subject: truck (6.0%) has centrality 0.45, the smallest allowed is 0.50": (
            patch(slice(1, 3), slice(1, 4))
        ),
    }
    for message, mask in cases.items():
        assert str(refused(segmented(("truck", mask)), SALIENT)) == message
        assert find_subject(segmented(("truck", mask)), FILTERS, 0.5).subject


def test_a_wholeness_at_its_bound_is_too_small() -> None:
    ten = patch(slice(3, 6), slice(3, 6)) + patch(slice(8, 9), slice(3, 4))  # nine pixels and one
    assert refusal(segmented(("dog", ten)), SALIENT) is Reason.SCATTERED_SUBJECT
    assert find_subject(segmented(("dog", ten)), replace(SALIENT, min_wholeness=0.89), 0.5).subject


def test_what_is_near_the_middle_goes_before_what_is_larger() -> None:
    """A truck in two pieces behind a horse, as in the photograph of riders, and a horse that is not much smaller."""
    truck = patch(slice(1, 3), slice(0, 4)) + patch(slice(1, 3), slice(6, 9))  # 14 %, centrality 0.57
    horse = patch(slice(4, 7), slice(3, 7))  # 12 %, centrality 0.86
    found = find_subject(segmented(("truck", truck), ("horse", horse)), replace(SALIENT, rival=0.9), 0.5).subject
    assert found is not None
    assert found.text == "horse"
    assert refusal(segmented(("truck", truck)), SALIENT) is Reason.SCATTERED_SUBJECT
    # A person in the middle is the subject of a picture though the truck is larger.
    assert refusal(segmented(("truck", truck), ("person", horse)), SALIENT) is Reason.PERSON_SUBJECT


def test_what_captions_and_boxes_name_is_measured_by_its_area_alone() -> None:
    corner = patch(slice(0, 5), slice(0, 6))
    assert find_subject(captioned(("a dog", corner), ("a cat", SMALL)), SALIENT, 0.5).subject
    assert find_subject(framed(("Cat", (0, 0, 50, 40), True)), SALIENT, 0.5).subject


GRIDS = st.sampled_from([(8, 8), (16, 8), (64, 32)])


@given(GRIDS, st.integers(0, 30), st.integers(0, 62), st.integers(1, 33), st.integers(1, 65))
def test_a_box_covers_the_cells_that_its_pixels_touch(grid: tuple[int, int], y: int, x: int, h: int, w: int) -> None:
    height, width = 32, 64
    h, w = min(h, height - y), min(w, width - x)
    (candidate,) = candidates_of_boxes([Box("Dog", (x, y, w, h))], (height, width), np.ones((1, *grid), np.float32))
    down, across = height / grid[0], width / grid[1]
    expected = np.zeros(grid, bool)
    for row, column in np.ndindex(*grid):
        is_beside = row * down >= y + h or (row + 1) * down <= y
        expected[row, column] = not is_beside and column * across < x + w and (column + 1) * across > x
    np.testing.assert_array_equal(candidate.region(), expected)
    assert candidate.area == pytest.approx(expected.mean())


def test_the_smallest_side_of_a_picture_is_checked() -> None:
    example = make_example(size=(16, 12))
    assert check_size(example, 12) is example
    with pytest.raises(RecordError, match=r"^small-image: 16 x 12 pixels, the shorter side must have 13$") as caught:
        check_size(example, 13)
    assert caught.value.reason is Reason.SMALL_IMAGE


def test_the_transforms_turn_pictures_into_rejects() -> None:
    dog, woman = segmented(("dog", LARGE)), segmented(("woman", LARGE))
    (batch,) = apply(ChooseSubject(FILTERS), [Batch(0, (dog, woman))])
    assert batch.records[0] == find_subject(dog, FILTERS, 0.5)
    assert isinstance(batch.records[1], Reject)
    assert (batch.records[1].stage, batch.records[1].reason) == ("subject", Reason.PERSON_SUBJECT)
    unsure = captioned(("a dog", LARGE * 0.5))  # the level where none is given
    (batch,) = apply(ChooseSubject(FILTERS), [Batch(0, (unsure,))])
    assert batch.records[0] == find_subject(unsure, FILTERS, 0.5)
    small = make_example("small", size=(16, 11))
    (batch,) = apply(DropSmallPictures(12), [Batch(0, (make_example(), small))])
    assert batch.records[0] == make_example()
    assert isinstance(batch.records[1], Reject)
    assert (batch.records[1].stage, batch.records[1].reason) == ("size", Reason.SMALL_IMAGE)
