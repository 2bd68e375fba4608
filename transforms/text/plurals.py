"""Numbered plurals, written out: "two women" becomes "a woman and a woman", as in FastComposer's data.

A trainer marks one place in the caption per subject; two subjects of one phrase would share that place. The expansion
is careful rather than complete: where the count is vague, the noun is a measure or its singular is unknown, the caption
stays as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from schemas.example import Phrase
from transforms.text.inflection import SPELLED, singular, with_article
from transforms.text.parses import Parse, Token, word_set

COUNTS = {"two": 2, "three": 3, "four": 4, "2": 2, "3": 3, "4": 4}
"""Numbers that are written out. FastComposer's trainer takes at most four subjects of a picture: further copies could
never be used, and would push the rest of the caption beyond the text encoder's 77 tokens."""

UNITS = word_set(
    """second minute hour day night week weekend month season year decade century generation moment time inch foot yard
    mile meter metre kilometer kilometre centimeter gram kilogram pound ounce liter litre gallon degree dollar euro cent
    percent point step way side part half third quarter fifth dimension direction color colour shade size
    kind type sort variety style dozen hundred thousand million billion"""
)
"""Nouns that measure, divide or classify: "two miles away" shows no mile, "two kinds of fruit" no kind."""

COMPOUNDS = UNITS | word_set(
    """story storey bedroom bed bath door wheel wheeler person seat seater leaf lane piece tier level layer man car
    burner blade star engine arm head speed player deck page room row ply pack cylinder digit letter panel string
    legged"""
)
"""Nouns that, with a number, make one adjective: "two story houses" are not two houses."""

TOGETHER = word_set(
    """different identical similar matching separate opposite adjacent adjoining neighboring parallel consecutive
    various same equal distinct"""
)
"""Adjectives that hold of several things only: there is no "a different dog and a different dog"."""

VAGUE = word_set(
    """least most than nearly almost barely hardly scarcely roughly approximately approx approx. circa ca ca. c. only
    about around over under above below beyond within maybe perhaps possibly probably exactly precisely max
    maximum min minimum every any some another per into for without like"""
)
"""Words before a number that leave the count open ("at least two dogs", "about two dogs"), or after which the things
need not be there ("a table for two people", "cut into two pieces")."""

WORDS_BEFORE = frozenset(
    (("up", "to"), ("down", "to"), ("close", "to"), ("many", "as"), ("few", "as"), ("instead", "of"), ("out", "of"))
)
"""The same in two words."""

NUMBERED = word_set(
    """no. nos. no nos number numbers size sizes route chapter page level grade class type phase figure fig. section
    stage gate lane room channel platform formula highway model version step line series season episode round area zone
    unit block bay dock hall team group vol. volume pt. part ch. sec. p. pp. nr. rm. apt.
    rt. rte. hwy. mark mk"""
)
"""What is numbered rather than counted: "size three shoes", "no. 2 pencils"."""

AFTER = word_set("each apiece per")
"""Words after a phrase that multiply the count: "two dogs each"."""

MAYBE = ("maybe", "perhaps", "possibly")
OPEN_ENDS = frozenset(("more", "so", "fewer", "less"))
"""Words after "or" that leave the count open: "two dogs or more"."""

OPENING = frozenset("([{\"'“‘«,;:!?—")
"""Characters that a number may follow without a space; after any other it is part of a longer word: "$2", "#2"."""

SIGNS = frozenset("#$€£¥₹№~≈±<>≤≥=+-–/x×*@%&")
"""Signs before a number that is no count, also with a space between."""

SENTENCE_ENDS = frozenset(".!?;")
"""What stands before these does not belong to a number after them."""

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
            is_copy = text != phrase.text
            things = 1 if is_copy else phrase.things
            expanded.append(replace(phrase, text=text, start=len(caption), end=len(caption) + len(text), things=things))
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
    end = inside[-1] + 1 if inside else 0
    if not inside or parse.word(end) == "of" or {"'s", "’s", "'", "’"} & set(texts) or _is_vague(parse, inside[0], end):
        return None
    if texts[:3] == ["a", "couple", "of"] and len(texts) > 3:
        return Count(2, None, range(inside[3], end), end - 1)
    numbers = [i for i in inside[:-1] if _is_number(parse.tokens[i])]
    if len(numbers) != 1 or parse.word(number := numbers[0]) not in COUNTS or number - inside[0] > 1:
        return None
    determiner = inside[0] if number > inside[0] else None
    if determiner is not None and not (parse.word(determiner) in DETERMINERS or parse.tokens[determiner].dep == "poss"):
        return None
    noun = next((i - 1 for i in inside if parse.word(i) == "of"), end - 1)
    stands_apart = parse.caption[parse.tokens[number].end :][:1].isspace()
    if noun <= number or not stands_apart or not _counts(parse, number, noun):
        return None
    return Count(COUNTS[parse.word(number)], determiner, range(number + 1, end), noun)


def _counts(parse: Parse, number: int, noun: int) -> bool:
    """Whether token `number` counts the noun, rather than a word before it as in "two year old boys"."""
    following, first = parse.tokens[number + 1], parse.word(number + 1)
    if noun == number + 1:
        return True
    if following.pos == "CCONJ" or first in ("or", "and", "to") or (singular(first) or first) in COMPOUNDS:
        return False
    # Parsers often attach the number to the first part of a compound: "two | police officers".
    head = parse.tokens[number].head
    return head == noun or (number < head and parse.tokens[head].dep == "compound" and parse.tokens[head].head == noun)


def _is_vague(parse: Parse, first: int, end: int) -> bool:
    """Whether the words around tokens [first, end) leave their number open, or make it a part or a label.

    "one or two", "each of two", "up to two", "size 3", "two by two" before them; "or three", "each", "-by" after them.
    """
    return _is_open_before(parse, first) or _is_open_after(parse, end)


def _words_before(parse: Parse, first: int) -> list[str]:
    """The two words before token `first`, the nearer one first; the dot of an abbreviation belongs to its word."""
    words: list[str] = []
    i = first - 1
    while i >= 0 and len(words) < 2:
        is_dot = parse.word(i) == "." and i > 0 and parse.tokens[i - 1].end == parse.tokens[i].start
        words.append(parse.word(i - 1) + "." if is_dot else parse.word(i))
        i -= 1 + is_dot
    return [*words, "", ""][:2]


def _is_open_before(parse: Parse, first: int) -> bool:
    if first == 0:
        return False
    nearer, farther = _words_before(parse, first)
    if nearer in VAGUE | NUMBERED | SIGNS or (farther, nearer) in WORDS_BEFORE:
        return True
    number, before = parse.tokens[first], parse.tokens[first - 1]
    if before.end == number.start and before.text[-1] not in OPENING:
        return True
    is_name = before.pos in ("NOUN", "PROPN", "SYM") or any(map(str.isupper, before.text[first == 1 :]))
    if (is_name and number.text.isdigit()) or _is_number(before) or nearer in ("hundred", "thousand"):
        return True
    if first == 1 or before.text in SENTENCE_ENDS:
        return False
    earlier = parse.tokens[first - 2]
    is_part = nearer == "of" and earlier.pos in ("DET", "PRON", "CCONJ")
    return is_part or (before.pos in ("CCONJ", "ADP", "PUNCT", "PART", "SYM") and _is_number(earlier))


def _is_number(token: Token) -> bool:
    return token.pos == "NUM" or token.text.lower() in COUNTS


def _is_open_after(parse: Parse, end: int) -> bool:
    following, second, third = (parse.word(i) for i in range(end, end + 3))
    if following and parse.tokens[end].start == parse.tokens[end - 1].end and following[0] in "-–/'’+%":
        return True
    if following in AFTER or (following, second, third) == ("and", "a", "half"):
        return True
    if following == "at":
        return second in ("least", "most")
    if following in ("and", "&", "or") and end + 1 < len(parse.tokens):
        # "two cookies and cream cakes", "two dogs and cats": how many of which?
        return second in OPEN_ENDS or _is_number_or_bare(parse.tokens[end + 1], following)
    rest = [t for t in parse.tokens[end : end + 3] if t.text not in (",", "(")]
    return len(rest) > 1 and rest[0].text.lower() in ("or", "to", *MAYBE) and _is_number(rest[1])


def _is_number_or_bare(token: Token, conjunction: str) -> bool:
    return token.pos in ("NOUN", "PROPN", "ADJ") or (conjunction == "or" and _is_number(token))


def _copy(parse: Parse, phrase: Phrase, counted: Count) -> str | None:
    """The text for one of the counted things, its first word in lower case: "a small red ball", "another woman"."""
    noun, first = parse.tokens[counted.noun], parse.tokens[counted.words[0]]
    start = parse.start_of_word(counted.noun)
    thing = singular(parse.caption[start : noun.end])
    is_compound = noun.start > start or parse.tokens[counted.noun - 1].dep == "compound"
    if thing is None or (thing.lower() in UNITS and not is_compound):
        return None
    if any(parse.word(i) in TOGETHER for i in counted.words):
        return None
    rest = thing + parse.caption[noun.end : phrase.end]
    if first.text.lower() in OTHERS and counted.determiner is None and counted.noun > counted.words[0]:
        return "another" + parse.caption[first.end : start] + rest
    words = parse.caption[first.start : start] + rest
    if counted.determiner is None:
        # A caption in capitals has no abbreviations: "A RED BALL", not "AN RED BALL" as in "an SUV".
        words = words.lower() if phrase.text.isupper() and words.split()[0] not in SPELLED else words
        return with_article(words) if words[0].isalnum() else None
    determiner = parse.word(counted.determiner)
    return f"{DETERMINERS.get(determiner, determiner)} {words}"
