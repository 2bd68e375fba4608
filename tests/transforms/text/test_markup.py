"""Entities, tags and weights in captions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.sources.records import clean_caption
from transforms.text.markup import readable


@pytest.mark.parametrize(
    ("raw", "caption"),
    [
        ("a dog &amp; a cat", "a dog & a cat"),
        ("a dog &amp;amp; a cat", "a dog & a cat"),
        ("the &quot;big&quot; dog&#39;s bowl", 'the "big" dog\'s bowl'),
        ("a caf&eacute;&nbsp;table<br>with a <b>cup</b>", "a café table with a cup"),
        ('<p class="x">a dog</p><!-- no -->', "a dog"),
        ("&lt;b&gt;a dog&lt;/b&gt;", "a dog"),
        ("a girl, <lora:style:0.8>", "a girl,"),
        ("AT&T <3 fish &chips; a <new> dog &copy", "AT&T <3 fish &chips; a <new> dog &copy"),
    ],
)
def test_a_caption_is_read_without_markup(raw: str, caption: str) -> None:
    assert clean_caption(raw) == caption


def test_a_parser_reads_neither_weights_nor_braces() -> None:
    assert readable("(a dog:1.3) {a|b}")[0] == "(a dog,) (a,b)"
    assert readable("16:9 a;b a; b")[0] == "16:9 a,b a; b"


@pytest.mark.parametrize(
    ("caption", "text"),
    [
        ("Tags: dog, grass", "dog, grass"),
        (" keywords:beach, sea", "beach, sea"),
        ("Image may contain: 1 person, dog", "1 person, dog"),
        ("May be an image of 2 people", "2 people"),
        ("This picture can show a dog", "a dog"),
        ("In the photo: a dog", "a dog"),
        ("Alt-text: (a dog:1.3)", "(a dog,)"),
        # No labels.
        ("Tags:", "Tags:"),
        ("a table with: a cup", "a table with: a cup"),
        ("Tags on a suitcase", "Tags on a suitcase"),
        ("Breakfast: eggs", "Breakfast: eggs"),
    ],
)
def test_a_label_before_a_caption_is_not_read(caption: str, text: str) -> None:
    assert readable(caption)[0] == text


@given(
    st.text("a 1:;|{}&amp<br>.", max_size=30) | st.text(max_size=20) | st.text("a:(", max_size=9).map("Tags: ".__add__)
)
def test_every_character_has_an_origin(caption: str) -> None:
    text, origins = readable(caption)
    assert len(origins) == len(text) + 1
    assert origins[-1] == len(caption)
    assert sorted(set(origins)) == origins
    assert all(caption[i] == c for c, i in zip(text, origins, strict=False) if c.isalpha() and caption[i] != "&")
