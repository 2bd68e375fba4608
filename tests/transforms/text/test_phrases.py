"""The rules on noun phrases, on parses written by hand: no parser is loaded here."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import RecordError
from schemas.example import Example, Source
from schemas.rejects import Reason
from tests.transforms.text.bracketed import bracketed
from transforms.text.parses import Parse, Token
from transforms.text.phrases import add_phrases, find_phrases


def example(caption: str) -> Example:
    return Example("k", b"", 1, 1, caption, Source("a.jpg"), caption)


@pytest.mark.parametrize(
    ("marked", "expected"),
    [
        # The determiner is kept; order is the caption's.
        ("[a red dog] near [the old house]", ["a red dog", "the old house"]),
        # Pronouns name nobody.
        ("[someone] gives [it] to [a dog] [who] sits", ["a dog"]),
        # Parts of space go before "of" and as bare places ...
        ("[a cat] on [the top] of [a car]", ["a cat", "a car"]),
        ("[a cat] in [front] of [a car]", ["a cat", "a car"]),
        ("[a cat] in [the top left corner]", ["a cat"]),
        ("[a cat] on [the left] and [a dog] on [the far right]", ["a cat", "a dog"]),
        # ... and stay where they are things.
        ("[a girl] in [a red top]", ["a girl", "a red top"]),
        ("[the background] is blue", ["the background"]),
        # What the caption is a caption of.
        ("[a photo] of [a dog]", ["a dog"]),
        ("[this] is [a close up] of [a dog]", ["a dog"]),
        ("[a dog] near [a picture] of [a cat]", ["a dog", "a picture", "a cat"]),
        ("[a painting] hangs on [a wall]", ["a painting", "a wall"]),
        # Amounts and collectives join what they measure.
        ("[a lot] of [red apples] on [a table]", ["a lot of red apples", "a table"]),
        ("[a group] of [people]", ["a group of people"]),
        ("[a group] of [a group] of [people]", ["a group of people"]),
        ("[a group] sits on [a bench]", ["a group", "a bench"]),
        ("[a dog] barks [a lot]", ["a dog"]),
        ("[a lot] of [them] near [a dog]", ["a dog"]),
        ("[a bowl] of [soup]", ["a bowl", "soup"]),
        # What is absent cannot be seen.
        ("[a street] with [no cars]", ["a street"]),
        ("[a street] without [cars]", ["a street"]),
        # Two mentions of two things are kept, the second mention of one is not.
        ("[a dog] and [a dog]", ["a dog", "a dog"]),
        ("[a big dog] and [a cat] . [the dog] sleeps", ["a big dog", "a cat"]),
        ("[a red ball] near [the blue ball]", ["a red ball", "the blue ball"]),
        ("[two women] talk , [the women] laugh", ["two women"]),
        # What a parser may leave at the edges.
        ('["a dog]" and [(the cat]', ["a dog", "the cat"]),
        ("[both a dog] and [a cat]", ["a dog", "a cat"]),
        ("[just a dog]", ["a dog"]),
        ("[a dog. a cat]", ["a cat"]),
        ("[a dog\n a cat]", ["a dog\n a cat"]),
        ("[🐶] and [a dog 🐶]", []),
        ("[@someone] shares [a dog]", ["a dog"]),
    ],
)
def test_phrases_follow_the_written_rules(marked: str, expected: list[str]) -> None:
    if marked.startswith("[@"):  # a tokenizer keeps a handle whole
        parse = bracketed(marked.replace("@", ""))
        handle = replace(parse.tokens[0], text="@someone", pos="PROPN")
        parse = Parse(parse.caption, (handle, *parse.tokens[1:]), parse.chunks)
    else:
        parse = bracketed(marked)
    assert [phrase.text for phrase in find_phrases(parse)] == expected


@pytest.mark.parametrize(
    ("marked", "roots"),
    [
        ("[two big women]", ["woman"]),
        ("[a lot] of [red apples]", ["apple"]),
        ("[A DOG] near [People]", ["dog", "person"]),
    ],
)
def test_the_root_is_the_lemma_of_what_is_seen(marked: str, roots: list[str]) -> None:
    assert [phrase.root for phrase in find_phrases(bracketed(marked))] == roots


def test_a_phrase_ends_in_its_last_letter_and_keeps_combining_marks() -> None:
    caption = "a “cafe\u0301”... and हिन्दी!"
    tokens = (
        Token("a", 0, 1, "a", "DET", "det", 1),
        Token("“cafe\u0301”...", 2, 12, "“cafe\u0301”...", "NOUN", "ROOT", 1),
        Token("and", 13, 16, "and", "CCONJ", "cc", 1),
        Token("हिन्दी!", 17, 24, "हिन्दी!", "NOUN", "conj", 1),
    )
    phrases = find_phrases(Parse(caption, tokens, ((0, 2), (3, 4))))
    assert [(p.text, p.root) for p in phrases] == [("a “cafe\u0301", "cafe\u0301"), ("हिन्दी", "हिन्दी")]


@st.composite
def parses(draw: st.DrawFn) -> Parse:
    """Any text, cut anywhere into tokens, with any chunks and labels: what the worst parser could return."""
    caption = draw(st.text(min_size=1, max_size=40))
    cuts = sorted(draw(st.sets(st.integers(0, len(caption)), max_size=12)) | {0, len(caption)})
    spans = [(a, b) for a, b in pairwise(cuts) if caption[a:b].strip()]
    pos = st.sampled_from(("NOUN", "PROPN", "PRON", "DET", "NUM", "ADV", "PUNCT"))
    tokens = tuple(
        Token(caption[a:b], a, b, caption[a:b].lower(), draw(pos), "pobj", draw(st.integers(0, len(spans) - 1)))
        for a, b in spans
    )
    edges = sorted(draw(st.sets(st.integers(0, len(tokens)), max_size=8)))
    chunks = tuple((a, b) for a, b in pairwise(edges) if draw(st.booleans()))
    return Parse(caption, tokens, chunks)


@given(parses())
def test_spans_are_exact_in_any_text(parse: Parse) -> None:
    end = 0
    for phrase in find_phrases(parse):
        assert phrase.text == parse.caption[phrase.start : phrase.end]
        assert phrase.origin == (phrase.start, phrase.end)
        assert phrase.start >= end
        assert phrase.text[0].isalnum()
        assert phrase.root
        end = phrase.end


def test_a_caption_without_phrase_is_refused_with_its_text() -> None:
    with pytest.raises(RecordError, match=r"no-phrase: no noun phrase .* in 'it is here'") as caught:
        add_phrases(example("it is here"), bracketed("[it] is here"), plurals=True)
    assert caught.value.reason is Reason.NO_PHRASE


def test_the_source_caption_stays_beside_the_expanded_one() -> None:
    record = example("two dogs")
    expanded = add_phrases(record, bracketed("[two dogs]"), plurals=True)
    assert (expanded.caption, expanded.source_caption) == ("a dog and a dog", "two dogs")
    assert [(p.start, p.end, p.origin) for p in expanded.phrases] == [(0, 5, (0, 8)), (10, 15, (0, 8))]
    kept = add_phrases(record, bracketed("[two dogs]"), plurals=False)
    assert (kept.caption, [p.text for p in kept.phrases]) == ("two dogs", ["two dogs"])
