"""Noun phrases of captions: the rules on a parse, and the transform that runs the parser.

A phrase is a candidate subject: something that could be visible in the picture. The parser gives base noun phrases; the
rules below, each a table or a function, drop those that name no thing and join those that together name one.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import apache_beam as beam
from apache_beam.utils.shared import Shared

from schemas.errors import RecordError
from schemas.example import Example, Phrase
from schemas.rejects import Reason
from transforms.batch import Batch, advance
from transforms.step import Step
from transforms.text.parses import Parse, Token, word_set
from transforms.text.plurals import COUNTS, expand_plurals

if TYPE_CHECKING:
    from transforms.models.parser import Parser

STAGE = "phrases"

RELATIONS = word_set(
    """side top front back bottom left right middle center centre rear edge corner end inside outside foreground
    background distance air midair"""
)
"""Parts of space: left out before "of" ("the side of a boat") and as a bare place ("on the left", "in the top
corner"), kept where they are things ("a woman in a red top")."""

POSITIONS = RELATIONS | word_set("far near upper lower very other opposite same")
"""Words that may precede a part of space without turning it into a thing."""

IMAGES = word_set(
    """photo photograph picture image painting drawing view close closeup up shot portrait illustration sketch rendering
    cartoon snapshot selfie"""
)
"""What a caption may call the picture ("close up" may be one noun or two): left out at the beginning of a caption ("a
photo of a dog"), kept elsewhere ("a wall with a painting of a dog")."""

AMOUNTS = word_set("lot number variety kind type sort bit dozen plenty amount hundred thousand")
"""Joined with what they measure ("a lot of apples", root "apple"); left out if they measure nothing."""

COLLECTIVES = word_set(
    """group pair couple bunch set piece slice row pile stack herd flock crowd handful series collection assortment
    array cluster pack swarm school"""
)
"""Joined with their members ("a group of people", root "person"); kept if they stand alone."""

NEGATIONS = frozenset(("no", "not", "without", "neither", "nor"))
"""Words before what is absent."""

PRONOUNS = frozenset(("PRON", "DET"))
"""Parts of speech of heads that name nothing by themselves: "it", "this"."""

CAPITALS = re.compile(r"[^\W\d_]*[A-Z]\w*[A-Z]\w*s")
"""Plurals with inner capitals: "TVs", "MacBooks"."""

DEFINITE = frozenset(("the", "this", "that", "these", "those"))
BREAKS = frozenset(".!?;:|()[]{}<>")
"""Punctuation that no noun phrase contains: a chunk that does, as of two lines, is cut to what follows it."""


@dataclass(frozen=True)
class Chunk:
    """Tokens [start, end) of a possible phrase; `root` is the index of the token that names the thing."""

    start: int
    end: int
    root: int


def find_phrases(parse: Parse) -> tuple[Phrase, ...]:
    """The caption's phrases that may name something visible, in order; `text == caption[start:end]`."""
    chunks = [trimmed for chunk in _whole_words(parse) if (trimmed := _trim(parse, chunk))]
    chunks = _join_measures(parse, chunks)
    opening = _opening(parse, chunks)
    chunks = [c for c in chunks if c != opening and _is_thing(parse, c)]
    return tuple(_phrase(parse, chunk) for chunk in _first_mentions(parse, chunks))


def _whole_words(parse: Parse) -> list[Chunk]:
    """The parse's base noun phrases, with the words that a parser tends to cut or to miss.

    Numbered capitals ("two TVs") are phrases even where the parser takes them for numbers or adverbs, and no phrase
    ends within a word ("a passer | -by").
    """
    found = list(parse.chunks)
    covered = {i for start, end in found for i in range(start, end)}
    for i, token in enumerate(parse.tokens[1:], start=1):
        if parse.word(i - 1) in COUNTS and CAPITALS.fullmatch(token.text) and not covered & {i - 1, i}:
            found.append((i - 1, i + 1))
    chunks: list[Chunk] = []
    for start, end in sorted(found):
        word_end = _end_of_word(parse, end)
        is_split = any(s < word_end < e for s, e in found)
        if not chunks or start >= chunks[-1].end:
            chunks.append(Chunk(start, end if is_split else word_end, end - 1))
    return chunks


def _end_of_word(parse: Parse, end: int) -> int:
    """The end of the word whose part ends before token `end`: after "by" for "passers" of "passers-by"."""
    while end + 1 < len(parse.tokens):
        last, hyphen, following = parse.tokens[end - 1 : end + 2]
        if hyphen.text != "-" or last.end != hyphen.start or hyphen.end != following.start:
            break
        end += 2
    return end


def _trim(parse: Parse, chunk: Chunk) -> Chunk | None:
    """Remove leading tokens that do not belong to a phrase, as quotes, "both", "just"; None if no word is left."""
    tokens = parse.tokens
    start = chunk.start
    for i in range(start, chunk.root):
        if tokens[i].text in BREAKS or "\n" in tokens[i].text:
            start = i + 1
    while start < chunk.root and _is_leading(tokens[start], tokens[start + 1]):
        start += 1
    has_word = any(c.isalnum() for c in tokens[chunk.root].text)
    return replace(chunk, start=start) if has_word else None


def _is_leading(token: Token, following: Token) -> bool:
    if token.text.lower() in NEGATIONS:
        return False
    bare = not any(c.isalnum() for c in token.text)
    return (
        bare
        or token.dep == "preconj"
        or token.pos == "CCONJ"
        or (token.pos == "ADV" and following.pos in ("DET", "NUM"))
    )


def _join_measures(parse: Parse, chunks: Sequence[Chunk]) -> list[Chunk]:
    """Join "a pair" + "of" + "shoes" to one chunk of root "shoes".

    Only the innermost measure is joined: "a group of a group of people", a repetition of captioners, becomes "a group
    of people". A measure is left out together with what it measures.
    """
    joined: list[Chunk] = []
    for chunk in chunks:
        outer = joined[-1] if joined else None
        if outer and _measures(parse, outer) and outer.end + 1 == chunk.start and parse.word(outer.end) == "of":
            inner_is_measure = _measures(parse, chunk) and parse.word(chunk.end) == "of"
            joined[-1] = chunk if inner_is_measure else Chunk(outer.start, chunk.end, chunk.root)
        else:
            joined.append(chunk)
    return joined


def _measures(parse: Parse, chunk: Chunk) -> bool:
    return chunk.root == chunk.end - 1 and parse.tokens[chunk.root].lemma in AMOUNTS | COLLECTIVES


def _opening(parse: Parse, chunks: Sequence[Chunk]) -> Chunk | None:
    """The "photo" of a caption that opens with "a photo of" or "this is a photo showing"."""
    first = next((c for c in chunks if parse.tokens[c.root].pos not in PRONOUNS), None)
    if first is None or parse.tokens[first.root].lemma not in IMAGES:
        return None
    following = parse.word(first.end)
    return first if following in ("of", "up", "showing", "shows", "depicting", "with", ":") else None


def _is_thing(parse: Parse, chunk: Chunk) -> bool:
    """Whether a chunk may name something visible: no pronoun, nothing absent, no amount, no part of space."""
    root = parse.tokens[chunk.root]
    if root.pos in PRONOUNS or _is_link(root.text) or root.lemma in AMOUNTS:
        return False
    if parse.word(chunk.start) in NEGATIONS or parse.word(chunk.start - 1) in NEGATIONS:
        return False
    return not (root.lemma in RELATIONS and _is_bare_place(parse, chunk))


def _is_link(text: str) -> bool:
    return "://" in text or "@" in text or text.startswith(("www.", "#"))


def _is_bare_place(parse: Parse, chunk: Chunk) -> bool:
    if parse.word(chunk.end) == "of":
        return True
    modifiers = parse.tokens[chunk.start : chunk.root]
    indefinite = any(token.text.lower() in ("a", "an") for token in modifiers)
    positional = all(token.pos in ("DET", "PRON") or token.text.lower() in POSITIONS for token in modifiers)
    return parse.tokens[chunk.root].dep == "pobj" and positional and not indefinite


def _first_mentions(parse: Parse, chunks: Sequence[Chunk]) -> list[Chunk]:
    """Leave out second mentions: "a dog and a cat; the dog sleeps" shows one dog.

    A definite phrase is a second mention if an earlier phrase with the same root has all of its words. "A dog and a
    dog" are two dogs, and "the blue ball" is not "a red ball": those are kept.
    """
    kept: list[Chunk] = []
    for chunk in chunks:
        words = _content(parse, chunk)
        definite = parse.word(chunk.start) in DEFINITE
        if not (definite and any(_root(parse, c) == _root(parse, chunk) and words <= _content(parse, c) for c in kept)):
            kept.append(chunk)
    return kept


def _content(parse: Parse, chunk: Chunk) -> set[str]:
    return {t.text.lower() for t in parse.tokens[chunk.start : chunk.end - 1] if t.pos != "DET"}


def _root(parse: Parse, chunk: Chunk) -> str:
    return parse.tokens[chunk.root].lemma


def _phrase(parse: Parse, chunk: Chunk) -> Phrase:
    start, end = parse.tokens[chunk.start].start, parse.tokens[chunk.end - 1].end
    while not parse.caption[start].isalnum():
        start += 1
    while not _is_letter(parse.caption[end - 1]):
        end -= 1
    root = _root(parse, chunk)
    word = [i for i, char in enumerate(root) if _is_letter(char)]
    return Phrase(parse.caption[start:end], start, end, root[word[0] : word[-1] + 1], origin=(start, end))


def _is_letter(char: str) -> bool:
    """Whether a phrase may end in `char`: a letter, a digit or a combining mark."""
    return unicodedata.category(char)[0] in "LNM"


def add_phrases(example: Example, parse: Parse, *, plurals: bool) -> Example:
    """Give `example` the phrases of `parse`, which is the parse of its source caption.

    Args:
        example: the record; its caption becomes the one that the phrases lie in.
        parse: the parse of `example.source_caption`.
        plurals: write out numbered plurals; `source_caption` keeps the original.

    Raises:
        RecordError: NO_PHRASE, no phrase of the caption may name something visible.
    """
    caption, phrases = parse.caption, find_phrases(parse)
    if not phrases:
        raise RecordError(Reason.NO_PHRASE, f"no noun phrase that may name something visible in {caption[:100]!r}")
    if plurals:
        caption, phrases = expand_plurals(parse, phrases)
    return replace(example, caption=caption, phrases=phrases)


def extract(parser: "Parser", examples: Sequence[Example], *, plurals: bool) -> list[Example]:
    """Parse the source captions of `examples` together and give each its phrases (`add_phrases`)."""
    from transforms.models.parser import parse_captions

    parses = parse_captions(parser, [example.source_caption for example in examples])
    return [add_phrases(example, parse, plurals=plurals) for example, parse in zip(examples, parses, strict=True)]


@dataclass(eq=False)
class ExtractPhrases(Step):
    """Find the noun phrases of each example's source caption.

    `checkpoint` names the parser (`transforms.models.parser.load_parser`); with `plurals`, "two women" becomes
    "a woman and a woman".
    """

    checkpoint: str
    plurals: bool = True

    def checkpoints(self) -> Mapping[str, str]:
        """The parser."""
        return {"parser": self.checkpoint}

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Run the parser over the batches."""
        return batches | "parse" >> beam.ParDo(_Parse(self.checkpoint, plurals=self.plurals))


def _load(checkpoint: str) -> "Parser":
    from transforms.models.parser import load_parser

    return load_parser(checkpoint)


class _Parse(beam.DoFn):
    """Extracts phrases with a parser that all threads of a worker share.

    It does what `run_model` does without RunInference, which imports torch: a build that runs no other model would
    wait longer for torch than for all of its pictures.
    """

    def __init__(self, checkpoint: str, *, plurals: bool) -> None:
        self._checkpoint = checkpoint
        self._plurals = plurals
        self._shared = Shared()

    def setup(self) -> None:
        """Load the parser, once per worker."""
        self._parser = self._shared.acquire(partial(_load, self._checkpoint))

    def process(self, batch: Batch) -> Iterator[Batch]:
        """Advance a batch; an example that fails becomes a reject in its place."""
        yield advance(batch, STAGE, partial(extract, self._parser, plurals=self._plurals))
