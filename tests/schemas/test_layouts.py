"""Layouts: which boxes and phrases can be used, and which boxes belong to which words."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import ConfigError
from schemas.layouts import LayoutRecord, check_frame, layout_of, make_layout, parse_box, record_of

PROMPT = "a red ball and a blue cup on a red ball"
BOX = (0.1, 0.2, 0.5, 0.6)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((0.1, 0.2, 1.1, 0.6), "outside"),
        ((-0.1, 0.2, 0.5, 0.6), "outside"),
        ((10, 20, 50, 60), "outside"),
        ((0.5, 0.2, 0.1, 0.6), "swapped"),
        ((0.1, 0.6, 0.5, 0.2), "swapped"),
        ((0.1, 0.2, 0.1, 0.6), "empty"),
        ((0.1, 0.2, 0.5, 0.2), "empty"),
        ((0.1, math.nan, 0.5, 0.6), "numbers"),
        ((0.1, 0.2, math.inf, 0.6), "numbers"),
        ((0.1, 0.2, 0.5), "3 numbers"),
        ((), "0 numbers"),
    ],
)
def test_a_box_that_cannot_be_drawn_is_refused_with_its_phrase(box: tuple[float, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=f"a red ball.*{message}"):
        make_layout(PROMPT, [("a red ball", [box])])


SHARES = st.floats(0, 1)


@given(SHARES, SHARES, SHARES, SHARES)
def test_boxes_with_an_inside_are_taken_as_they_are(left: float, top: float, right: float, bottom: float) -> None:
    box = (left, top, right, bottom)
    if left < right and top < bottom:
        assert check_frame(box, "box") == box
    else:
        with pytest.raises(ConfigError):
            check_frame(box, "box")


def test_boxes_go_to_the_words_that_they_name() -> None:
    """The second box of a phrase that stands there twice goes to the second place; a third one joins it."""
    other, third = (0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0)
    layout = layout_of(PROMPT, [("a red ball", BOX), ("A BLUE cup", BOX), ("a red ball", other), ("a red ball", third)])
    assert [(p.text, p.start, p.boxes) for p in layout.phrases] == [
        ("a red ball", 0, (BOX,)),
        ("a blue cup", 15, (BOX,)),
        ("a red ball", 29, (other, third)),
    ]
    once = layout_of("a red ball", [("a red ball", BOX), ("a red ball", other)])
    assert [phrase.boxes for phrase in once.phrases] == [(BOX, other)]


@pytest.mark.parametrize(
    ("phrases", "message"),
    [
        (["a green cup"], "does not contain 'a green cup'"),
        (["red ball and a blue", "blue cup"], "share words"),
        (["cu"], "does not contain"),  # "cup" is another word
    ],
)
def test_phrases_that_cannot_be_placed_are_refused(phrases: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_layout(PROMPT, [(phrase, [BOX]) for phrase in phrases])


def test_more_boxes_than_places_are_refused() -> None:
    assert len(make_layout(PROMPT, [("a blue cup", [BOX] * 30)]).phrases[0].boxes) == 30
    with pytest.raises(ConfigError, match="31 boxes"):
        make_layout(PROMPT, [("a blue cup", [BOX] * 31)])
    with pytest.raises(ConfigError, match="no box"):
        make_layout(PROMPT, [("a blue cup", [])])


@pytest.mark.parametrize("text", ["a red ball", "=0,0,1,1", "a red ball=", "a red ball=0;0;1;1", "a red ball=left"])
def test_boxes_on_the_command_line_are_written_in_one_way(text: str) -> None:
    with pytest.raises(ConfigError, match="PHRASE="):
        parse_box(text)


def test_a_phrase_may_contain_an_equals_sign() -> None:
    assert parse_box(" e = mc2 = 0, .5,1,1") == ("e = mc2", [0, 0.5, 1, 1])


def test_a_record_is_read_back_as_the_layout_it_was_made_of() -> None:
    layout = layout_of(PROMPT, [("a red ball", BOX), ("a blue cup", BOX)])
    record = record_of(layout, "and", [{"clip": (1, 4)}, {"clip": (5, 8)}])
    assert LayoutRecord.model_validate_json(record.model_dump_json()).to_layout() == layout
    wrong = record.model_copy(update={"prompt": f"see {PROMPT}"})
    with pytest.raises(ConfigError, match="its span"):
        wrong.to_layout()
