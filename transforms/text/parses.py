"""A parsed caption as plain values, so that the rules for phrases and plurals can be tested without a parser."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Token:
    """A token, characters [start, end) of its caption.

    `lemma` is lower case; for a plural without a lemma from the parser, its singular. `pos` is the Universal
    part of speech ("NOUN", "PRON", "NUM" ...), `dep` the CLEAR relation to the token at index `head` (its own
    for a root), `number` is "Sing", "Plur" or "" if the parser gives none.
    """

    text: str
    start: int
    end: int
    lemma: str
    pos: str
    dep: str
    head: int
    number: str = ""


@dataclass(frozen=True)
class Parse:
    """A parsed caption.

    `chunks` are base noun phrases as token ranges, end exclusive, in order and without overlaps; the last token of each
    is its head.
    """

    caption: str
    tokens: tuple[Token, ...]
    chunks: tuple[tuple[int, int], ...]

    def word(self, i: int) -> str:
        """Token `i` in lower case; "" before the first token and after the last."""
        return self.tokens[i].text.lower() if 0 <= i < len(self.tokens) else ""

    def start_of_word(self, i: int) -> int:
        """Where the word begins of which token `i` is the last part: "talkies" is part of "walkie-talkies"."""
        while i > 1 and self.tokens[i - 1].text == "-" and self.tokens[i - 2].end + 1 == self.tokens[i].start:
            i -= 2
        return self.tokens[i].start


def word_set(words: str) -> frozenset[str]:
    """The words of a table, separated by spaces."""
    return frozenset(words.split())
