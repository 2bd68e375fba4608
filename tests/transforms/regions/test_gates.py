from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from schemas.errors import RecordError
from schemas.example import Example, Object
from schemas.masks import BBox, Mask
from schemas.rejects import Reason, Reject
from tests.beam import apply
from tests.examples import make_example, phrase
from transforms.batch import Batch
from transforms.regions.gates import ORDER, ApplyGates, Gates, keep_passing, passing

SIDE = 100
LEFT, RIGHT = (5, 10, 40, 40), (55, 10, 40, 40)  # 16 % of the picture each
GATES = Gates()


def filled(box: BBox, share: float = 1.0) -> NDArray[np.bool_]:
    """[100, 100] bool: the first `share` of the box's rows."""
    x, y, w, h = box
    mask = np.zeros((SIDE, SIDE), bool)
    mask[y : y + round(h * share), x : x + w] = True
    return mask


def thing(box: BBox, score: float = 0.9, mask: NDArray[np.bool_] | None = None, phrase: int = 0) -> Object:
    """A thing that fills its box, unless a mask is given."""
    return Object(phrase, box, score, Mask.from_array(filled(box) if mask is None else mask))


def pictured(*things: tuple[str, Object]) -> Example:
    """An example whose objects have these names."""
    phrases = tuple(phrase(f"a {name}", start=20 * i) for i, (name, _) in enumerate(things))
    return replace(
        make_example(), phrases=phrases, objects=tuple(replace(thing, phrase=i) for i, (_, thing) in enumerate(things))
    )


def refusal(*things: tuple[str, Object], gates: Gates = GATES) -> tuple[Reason, str]:
    with pytest.raises(RecordError) as caught:
        keep_passing(pictured(*things), gates)
    return caught.value.reason, caught.value.detail


def test_two_fit_things_pass() -> None:
    example = pictured(("dog", thing(LEFT)), ("cat", thing(RIGHT)))
    assert keep_passing(example, GATES) == example


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((0, 0, 40, 20), Reason.SMALL_SUBJECT),  # 8 %: the bound is refused
        ((0, 0, 27, 30), None),  # 8.1 %
        ((0, 0, 100, 70), Reason.LARGE_SUBJECT),
        ((0, 0, 100, 69), None),
        ((0, 0, 60, 20), Reason.OBJECT_ASPECT),  # three times as wide as high
        ((0, 0, 59, 20), None),
        ((0, 0, 24, 80), Reason.OBJECT_ASPECT),  # 0.3
        ((0, 0, 25, 80), None),
    ],
)
def test_boxes_have_bounds(box: BBox, reason: Reason | None) -> None:
    expected = ([0], {}) if reason is None else ([], {0: reason})
    assert passing([thing(box)], GATES) == expected


def test_a_score_must_lie_above_the_bound() -> None:
    assert passing([thing(LEFT, score=0.3), thing(RIGHT, score=0.31)], GATES) == ([1], {0: Reason.LOW_SCORE})


@pytest.mark.parametrize(("share", "passes"), [(0.575, False), (0.6, True)])
def test_a_box_is_filled_by_its_own_mask(share: float, passes: bool) -> None:
    kept, refused = passing([thing(LEFT, mask=filled(LEFT, share))], GATES)
    assert (kept, refused) == (([0], {}) if passes else ([], {0: Reason.UNFILLED_BOX}))


def test_a_box_of_background_does_not_pass_for_filled() -> None:
    """The published gate asks for the most frequent value in the box, which here is the background's: 90 %."""
    nearly_empty = thing(LEFT, mask=filled(LEFT, 0.1))
    assert passing([nearly_empty], GATES)[1] == {0: Reason.UNFILLED_BOX}
    other = thing(RIGHT, mask=filled(LEFT))  # another's mask is no filling either
    assert passing([other], GATES)[1] == {0: Reason.UNFILLED_BOX}


def test_a_mask_must_not_lie_mostly_outside_its_box() -> None:
    spilled = filled(LEFT)
    spilled[60, :1] = True
    assert passing([thing(LEFT, mask=spilled)], GATES) == ([], {0: Reason.SPILLED_MASK})
    spilled[10, 5] = False  # as many pixels as the box has
    assert passing([thing(LEFT, mask=spilled)], GATES) == ([0], {})


def test_a_box_holds_five_things_at_most_and_the_background_is_one() -> None:
    crumbs = [thing((6 + i, 12, 1, 1), score=0.1) for i in range(5)]
    assert passing([thing(LEFT), *crumbs[:4]], GATES)[0] == [0]  # its own mask covers the box: no background
    assert passing([thing(LEFT), *crumbs], GATES)[1][0] == Reason.CROWDED_BOX
    open_box = filled(LEFT, 0.9)
    assert passing([thing(LEFT, mask=open_box), *crumbs[:3]], GATES)[0] == [0]
    assert passing([thing(LEFT, mask=open_box), *crumbs[:4]], GATES)[1][0] == Reason.CROWDED_BOX
    far = [thing((60 + i, 80, 1, 1), score=0.1) for i in range(9)]
    assert passing([thing(LEFT, mask=open_box), *far], GATES)[0] == [0]


def test_of_two_boxes_that_overlap_the_better_one_stays() -> None:
    inner = (10, 15, 30, 30)  # 9 % of the picture, all of it inside
    things = [thing(LEFT, score=0.5), thing(inner, score=0.6), thing(RIGHT, score=0.4)]
    assert passing(things, GATES) == ([1, 2], {0: Reason.OVERLAPPING_OBJECTS})
    things[0] = replace(things[0], score=0.6)  # equal scores: the first one
    assert passing(things, GATES)[0] == [0, 2]
    across = [thing((0, 0, 40, 50)), thing((0, 10, 40, 50))]  # they share 0.8 of each other
    assert passing(across, GATES)[0] == [0, 1]  # the bound itself passes
    assert passing(across, replace(GATES, overlap=0.79)) == ([0], {1: Reason.OVERLAPPING_OBJECTS})


BOXES = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 20), st.integers(1, 20))
OPEN = Gates(min_area=-1, max_area=2, min_aspect=0, max_aspect=99, fill=0, crowd=99)


@given(BOXES, BOXES, st.sampled_from([0.0, 0.25, 0.5, 0.8, 1.0]))
def test_boxes_overlap_by_the_pixels_that_they_share(a: BBox, b: BBox, overlap: float) -> None:
    shared = int((filled(a) & filled(b)).sum())
    kept, refused = passing([thing(a), thing(b)], replace(OPEN, overlap=overlap))
    if shared > overlap * min(a[2] * a[3], b[2] * b[3]):
        assert (kept, refused) == ([0], {1: Reason.OVERLAPPING_OBJECTS})
    else:
        assert (kept, refused) == ([0, 1], {})


def test_the_gates_are_the_published_ones_unless_told() -> None:
    """MIP-Adapter's constants: score, area, aspect, fill, labels in a box, overlap."""
    published = Gates(0.3, 0.08, 0.7, 0.3, 3.0, 0.6, 5, 0.8, None)
    assert Gates() == published


def test_what_is_refused_itself_refuses_nobody() -> None:
    hollow = thing(LEFT, score=0.9, mask=filled(LEFT, 0.5))
    kept, refused = passing([hollow, thing(LEFT, score=0.5)], GATES)
    assert (kept, refused) == ([1], {0: Reason.UNFILLED_BOX})


def test_the_most_certain_objects_are_kept_in_the_order_of_their_phrases() -> None:
    boxes = [(0, 0, 30, 30), (35, 0, 30, 30), (70, 0, 30, 30), (0, 50, 30, 30)]
    things = [thing(box, score) for box, score in zip(boxes, (0.4, 0.9, 0.5, 0.8), strict=True)]
    named = list(zip("abcd", things, strict=True))
    assert [thing.phrase for thing in keep_passing(pictured(*named), replace(GATES, most=2)).objects] == [1, 3]
    assert [thing.phrase for thing in keep_passing(pictured(*named), replace(GATES, most=3)).objects] == [1, 2, 3]
    assert len(keep_passing(pictured(*named), GATES).objects) == 4


def test_the_gate_that_refused_most_is_the_reason_and_all_are_told() -> None:
    small = [("mouse", thing((0, 80 + i, 10, 10))) for i in range(2)]
    reason, detail = refusal(("dog", thing(LEFT)), *small, ("cat", thing(RIGHT, score=0.2)))
    assert reason is Reason.SMALL_SUBJECT
    refused = "mouse (small-subject), mouse (small-subject), cat (low-score)"
    assert detail == f"1 of 4 left, two names are asked for (dog); refused: {refused}"
    reason, detail = refusal(("mouse", small[0][1]), ("cat", thing(RIGHT, score=0.2)))
    assert reason is Reason.LOW_SCORE  # the earlier one of equals
    assert detail == "0 of 2 left, two names are asked for (none); refused: mouse (small-subject), cat (low-score)"


def test_two_of_one_name_are_not_two_objects() -> None:
    assert refusal(("dog", thing(LEFT)), ("dog", thing(RIGHT))) == (
        Reason.FEW_OBJECTS,
        "2 found, two names are asked for (dog)",
    )
    assert refusal() == (Reason.FEW_OBJECTS, "0 found, two names are asked for (none)")
    low = thing((0, 60, 30, 30), score=0.4)
    reason, detail = refusal(("dog", thing(LEFT)), ("dog", thing(RIGHT)), ("cat", low), gates=replace(GATES, most=2))
    assert (reason, detail) == (
        Reason.FEW_OBJECTS,
        "2 of 3 left, two names are asked for (dog); refused: cat (most 2)",
    )


@given(hnp.arrays(np.uint8, (20, 20), elements=st.integers(0, 8)), st.data())
def test_things_in_a_box_are_counted_as_in_a_map_of_labels(labels: NDArray[np.uint8], data: st.DataObject) -> None:
    x, y = data.draw(st.integers(0, 15)), data.draw(st.integers(0, 15))
    box = (x, y, data.draw(st.integers(1, 20 - x)), data.draw(st.integers(1, 20 - y)))
    objects = [Object(0, box, 0.9, Mask.from_array(labels == value)) for value in range(1, 9)]
    values = len(np.unique(labels[y : y + box[3], x : x + box[2]]))
    others = Gates(min_area=-1, max_area=2, min_aspect=0, max_aspect=99, fill=0, overlap=1)
    for crowd in (values, values - 1):
        _, refused = passing(objects, replace(others, crowd=crowd))
        reasons = list(refused.values())
        crowded, spilled = reasons.count(Reason.CROWDED_BOX), reasons.count(Reason.SPILLED_MASK)
        assert crowded == (0 if crowd == values else len(objects) - spilled)


@given(st.lists(st.tuples(*[st.integers(0, 60)] * 2, *[st.integers(15, 40)] * 2, st.integers(1, 9)), max_size=7))
def test_every_object_is_kept_or_refused_once(drawn: list[tuple[int, int, int, int, int]]) -> None:
    objects = [thing((x, y, w, h), score / 10) for x, y, w, h, score in drawn]
    kept, refused = passing(objects, GATES)
    assert sorted([*kept, *refused]) == list(range(len(objects)))
    assert set(refused.values()) <= set(ORDER)
    scores = [objects[i].score for i in kept]
    assert scores == sorted(scores, reverse=True)
    again, none = passing([objects[i] for i in kept], GATES)
    assert (again, none) == (list(range(len(kept))), {})


def test_the_transform_turns_pictures_into_rejects() -> None:
    good = pictured(("dog", thing(LEFT)), ("cat", thing(RIGHT)))
    bad = replace(pictured(("dog", thing(LEFT)), ("cat", thing((0, 0, 40, 9)))), key="bad")
    (batch,) = apply(ApplyGates(GATES), [Batch(0, (good, bad))])
    assert batch.records[0] == good
    assert isinstance(batch.records[1], Reject)
    assert (batch.records[1].stage, batch.records[1].reason) == ("gates", Reason.SMALL_SUBJECT)
