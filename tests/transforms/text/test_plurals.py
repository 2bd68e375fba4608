"""Numbered plurals written out, on parses written by hand. The traps are those that published data shows."""

from dataclasses import replace
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.example import Phrase
from tests.transforms.text.bracketed import bracketed
from transforms.text.parses import Parse
from transforms.text.phrases import find_phrases
from transforms.text.plurals import COUNTS, expand_plurals


def expand(marked: str) -> str:
    parse = bracketed(marked)
    return expand_plurals(parse, find_phrases(parse))[0]


@pytest.mark.parametrize(
    ("marked", "expected"),
    [
        ("[two women]", "a woman and a woman"),
        ("[three people] near [a car]", "a person and a person and a person near a car"),
        ("[4 dogs]", "a dog and a dog and a dog and a dog"),
        # The right article, before adjectives too.
        ("[two umbrellas]", "an umbrella and an umbrella"),
        ("[two old umbrellas]", "an old umbrella and an old umbrella"),
        ("[two red umbrellas]", "a red umbrella and a red umbrella"),
        ("[two unicorns] for [two hours]", "a unicorn and a unicorn for two hours"),
        # "other" becomes "another", never "a other".
        ("[two other women]", "another woman and another woman"),
        ("[two more old dogs]", "another old dog and another old dog"),
        ("[the two other women]", "the other woman and the other woman"),
        # Determiners and adjectives are kept.
        ("[the two women]", "the woman and the woman"),
        ("[these two dogs]", "this dog and this dog"),
        ("[his two dogs]", "his dog and his dog"),
        ("[two small red balls] on [a mat]", "a small red ball and a small red ball on a mat"),
        ("[two black and white cats]", "a black and white cat and a black and white cat"),
        # A measure is copied with what it measures.
        ("[two slices] of [pizza]", "a slice of pizza and a slice of pizza"),
        ("[two groups] of [people]", "a group of people and a group of people"),
        ("[a couple] of [umbrellas]", "an umbrella and an umbrella"),
        ("[a couple] of [other dogs]", "another dog and another dog"),
        # A plural subject stays one: its verb still agrees.
        ("[two dogs] are near [three cats]", "a dog and a dog are near a cat and a cat and a cat"),
        # Words without a plural form of their own.
        ("[two sheep] and [three fish]", "a sheep and a sheep and a fish and a fish and a fish"),
        ("[two children] hold [two knives]", "a child and a child hold a knife and a knife"),
        # Capitals.
        ("[Two women] and [two dogs]", "A woman and a woman and a dog and a dog"),
        ("[Two Women]", "A Woman and a Woman"),
        ("[TWO DOGS] RUN", "A DOG AND A DOG RUN"),
        # Every count in the caption, what lies between untouched.
        ("(yes) [two cats],  [a 🐶 dog]; [two cups]", "(yes) a cat and a cat,  a 🐶 dog; a cup and a cup"),
    ],
)
def test_counted_things_are_written_out(marked: str, expected: str) -> None:
    assert expand(marked) == expected


@pytest.mark.parametrize(
    "marked",
    [
        "[five dogs]",  # more than a trainer can use
        "[a dog] and [the dogs]",
        "two of [the women]",
        "one or [two dogs]",
        "[two or three dogs]",
        "at least [two dogs]",
        "each of [two dogs]",
        "[two hundred people]",
        "[two dozen eggs]",
        "[a two-story house]",
        "[two-story houses]",
        "[the two-story houses]",
        "[two women's hats]",
        "[the first two dogs]",
        "[all two dogs]",
        "[two o’clock]",
        "[two years]",
        "[two miles] from [a house]",
        "[two jeans]",
        "[two scissors]",
        "[two bowls] of [soup]",  # the soup would be shared
        "[two dog]",
        "[2019 cars]",
        "[a group] of [people]",
        "[a pair] of [shoes]",  # a pair is one thing to be seen
        "[a couple] sits",
    ],
)
def test_everything_else_stays_as_it_is(marked: str) -> None:
    assert expand(marked) == bracketed(marked).caption


def test_a_number_that_counts_another_noun_is_left_alone() -> None:
    parse = bracketed("[two year old boys]")
    year = replace(parse.tokens[0], head=1)
    parse = Parse(parse.caption, (year, *parse.tokens[1:]), parse.chunks)
    assert expand_plurals(parse, find_phrases(parse))[0] == "two year old boys"


def test_copies_share_their_origin_and_what_follows_is_moved() -> None:
    parse = bracketed("[two old men] and [a dog]")
    caption, phrases = expand_plurals(parse, find_phrases(parse))
    assert caption == "an old man and an old man and a dog"
    assert phrases == (
        Phrase("an old man", 0, 10, "man", (0, 11)),
        Phrase("an old man", 15, 25, "man", (0, 11)),
        Phrase("a dog", 30, 35, "dog", (16, 21)),
    )


WORDS = st.sampled_from(("two", "2", "the", "other", "a", "🐶", "עברית", "women", "umbrellas", "dog", "of", ",", "é"))
PIECES = st.tuples(WORDS, WORDS, st.booleans(), st.sampled_from((" ", "  ", "\u00a0", "\n")))


@given(st.lists(PIECES, min_size=1, max_size=12))
def test_spans_are_exact_and_the_rest_untouched(pieces: list[tuple[str, str, bool, str]]) -> None:
    parse = bracketed("".join(f"[{a}{gap}{b}]{gap}" if chunk else f"{a}{gap}{b}{gap}" for a, b, chunk, gap in pieces))
    before = find_phrases(parse)
    caption, after = expand_plurals(parse, before)
    assert all(phrase.text == caption[phrase.start : phrase.end] for phrase in after)
    assert list(dict.fromkeys(phrase.origin for phrase in after)) == [phrase.origin for phrase in before]
    rest, cursor = "", 0
    for origin, copies in groupby(after, key=lambda phrase: phrase.origin):
        written = list(copies)
        assert len(written) <= max(COUNTS.values())
        rest += caption[cursor : written[0].start] + parse.caption[slice(*origin)]
        cursor = written[-1].end
    assert rest + caption[cursor:] == parse.caption
