"""Parses written by hand: "[two dogs] on [the left] of [a man]" is a caption with its noun chunks in brackets."""

import re

from transforms.text.inflection import singular
from transforms.text.parses import Parse, Token

PARTS_OF_SPEECH = {
    "DET": "a an the this that these those no some another all each",
    "NUM": "one two three four five 2 3 4 5 12 twelve hundred dozen half",
    "PRON": "i it he she they them him her you who which someone itself his their its",
    "ADP": "of on in at to from by with near behind without between",
    "CCONJ": "and or both",
    "ADV": "just not only",
}
POS = {word: pos for pos, words in PARTS_OF_SPEECH.items() for word in words.split()}


def bracketed(marked: str) -> Parse:
    """Read a caption whose noun chunks stand in brackets; the last token of each is its head.

    Outside the table above, words are nouns at the end of a chunk, adjectives within one and verbs elsewhere.
    Everything in a chunk hangs under its head; the head is a `pobj` after a preposition, else a `nsubj`.
    """
    caption, opened = "", 0
    tokens: list[tuple[str, int, int]] = []
    chunks: list[tuple[int, int]] = []
    for piece in re.findall(r"\[|\]|\s+|'s\b|[\w’]+|[^\w\s]", marked):
        if piece == "[":
            opened = len(tokens)
        elif piece == "]":
            chunks.append((opened, len(tokens)))
        else:
            if not piece.isspace():
                tokens.append((piece, len(caption), len(caption) + len(piece)))
            caption += piece
    return Parse(caption, tuple(_token(tokens, chunks, i) for i in range(len(tokens))), tuple(chunks))


def _token(tokens: list[tuple[str, int, int]], chunks: list[tuple[int, int]], i: int) -> Token:
    text, start, end = tokens[i]
    word = text.lower()
    chunk = next(((s, e) for s, e in chunks if s <= i < e), None)
    head = chunk[1] - 1 if chunk else i
    default = "VERB" if chunk is None else "NOUN" if i == head else "ADJ"
    pos = POS.get(word, default if text[0].isalnum() else "PUNCT")
    dep = "dep"
    if chunk and i == head:
        before = tokens[chunk[0] - 1][0].lower() if chunk[0] else ""
        dep = "pobj" if POS.get(before) == "ADP" else "nsubj"
    elif pos == "PRON":
        dep = "poss"
    elif word == "both":
        dep = "preconj"
    lemma = (singular(word) if pos == "NOUN" else None) or word
    return Token(text, start, end, lemma, pos, dep, head)
