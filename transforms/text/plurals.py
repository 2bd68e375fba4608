"""Numbered plurals, written out: "two women" becomes "a woman and a woman", as in FastComposer's data.

A trainer marks one place in the caption per subject; two subjects of one phrase would share that place. The expansion
is careful rather than complete: where the count is vague, the noun is a measure or its singular is unknown, the caption
stays as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from schemas.example import Phrase
from transforms.text.inflection import singular, with_article
from transforms.text.parses import Parse, word_set

COUNTS = {"two": 2, "three": 3, "four": 4, "2": 2, "3": 3, "4": 4}
"""Numbers that are written out. FastComposer's trainer takes at most four subjects of a picture: further copies could
never be used, and would push the rest of the caption beyond the text encoder's 77 tokens."""

UNITS = word_set(
    """second minute hour day week month year decade century time inch foot yard mile meter metre kilometer
    kilometre centimeter gram kilogram pound ounce liter litre gallon degree dollar euro cent percent step way
    dozen hundred thousand million billion"""
)
"""Nouns that measure: "two miles away" shows no mile."""

VAGUE = word_set("least most than nearly almost roughly approximately only")
"""Words before a number that leave the count open: "at least two dogs"."""

OTHERS = frozenset(("other", "more"))
""" "two other women" are "another woman and another woman"."""

DETERMINERS = {"the": "the", "these": "this", "those": "that"}
"""Determiners before a number, and their singular. Possessives stay; others ("all two", "any two") are left alone."""


@dataclass(frozen=True)
class Count:
    """A phrase that counts: an optional `determiner`, the number `count`, and `words` with the counted `noun`.

    All but `count` are token indices. The noun is the last of the words unless "of" follows it: "two | slices of
    pizza".
    """

    count: int
    determiner: int | None
    words: range
    noun: int


def expand_plurals(parse: Parse, phrases: Sequence[Phrase]) -> tuple[str, tuple[Phrase, ...]]:
    """Write out each phrase that counts two to four things; return the new caption and its phrases.

    `phrases` are those of `parse.caption`, in order, without overlaps. Each copy becomes a phrase with the `origin` of
    the phrase that it was made from. The rest of the caption does not change.
    """
    caption, expanded, cursor = "", [], 0
    for phrase in phrases:
        caption += parse.caption[cursor : phrase.start]
        for i, text in enumerate(_copies(parse, phrase)):
            caption += (" AND " if text.isupper() else " and ") if i else ""
            expanded.append(replace(phrase, text=text, start=len(caption), end=len(caption) + len(text)))
            caption += text
        cursor = phrase.end
    return caption + parse.caption[cursor:], tuple(expanded)


def _copies(parse: Parse, phrase: Phrase) -> list[str]:
    """The texts that replace `phrase`: itself, or one text per thing that it counts."""
    counted = _read_count(parse, phrase)
    copy = _copy(parse, phrase, counted) if counted else None
    if counted is None or copy is None:
        return [phrase.text]
    if phrase.text.isupper():
        return [copy.upper()] * counted.count
    first = copy[0].upper() + copy[1:] if phrase.text[0].isupper() else copy
    return [first] + [copy] * (counted.count - 1)


def _read_count(parse: Parse, phrase: Phrase) -> Count | None:
    """Parse `phrase` as a count; None if it counts nothing, counts vaguely or is part of another count."""
    inside = [i for i, t in enumerate(parse.tokens) if phrase.start <= t.start and t.end <= phrase.end]
    texts = [parse.tokens[i].text.lower() for i in inside]
    if not inside or parse.word(inside[-1] + 1) == "of" or _is_vague(parse, inside[0]) or {"'s", "’s"} & set(texts):
        return None
    end = inside[-1] + 1
    if texts[:3] == ["a", "couple", "of"] and len(texts) > 3:
        return Count(2, None, range(inside[3], end), end - 1)
    numbers = [i for i in inside if parse.tokens[i].pos == "NUM" or parse.word(i) in COUNTS]
    if len(numbers) != 1 or parse.word(number := numbers[0]) not in COUNTS or number - inside[0] > 1:
        return None
    determiner = inside[0] if number > inside[0] else None
    if determiner is not None and not (parse.word(determiner) in DETERMINERS or parse.tokens[determiner].dep == "poss"):
        return None
    noun = next((i - 1 for i in inside if parse.word(i) == "of"), end - 1)
    stands_apart = parse.caption[parse.tokens[number].end :][:1].isspace()
    if parse.tokens[number].head != noun or noun <= number or not stands_apart:
        return None
    return Count(COUNTS[parse.word(number)], determiner, range(number + 1, end), noun)


def _is_vague(parse: Parse, first: int) -> bool:
    """Whether the words before a phrase leave its number open, or make it a part: "one or two", "each of two"."""
    before, earlier = parse.word(first - 1), parse.tokens[first - 2].pos if first > 1 else ""
    if before in ("or", "to", "and"):
        return earlier == "NUM"
    return before in VAGUE or (before == "of" and earlier in ("NUM", "DET", "PRON"))


def _copy(parse: Parse, phrase: Phrase, counted: Count) -> str | None:
    """The text for one of the counted things, its first word in lower case: "a small red ball", "another woman"."""
    noun, first = parse.tokens[counted.noun], parse.tokens[counted.words[0]]
    thing = singular(noun.text)
    if thing is None or thing.lower() in UNITS:
        return None
    rest = thing + parse.caption[noun.end : phrase.end]
    if first.text.lower() in OTHERS and counted.determiner is None and counted.noun > counted.words[0]:
        return "another" + parse.caption[first.end : noun.start] + rest
    words = parse.caption[first.start : noun.start] + rest
    if counted.determiner is None:
        # A caption in capitals has no abbreviations: "A RED BALL", not "AN RED BALL" as in "an SUV".
        words = words.lower() if phrase.text.isupper() else words
        return with_article(words) if words[0].isalnum() else None
    determiner = parse.word(counted.determiner)
    return f"{DETERMINERS.get(determiner, determiner)} {words}"
