"""Noun phrases of captions: the rules on a parse, and the transform that runs the parser.

A phrase is a candidate subject: something that could be visible in the picture. The parser gives base noun phrases; the
rules below, each a table or a function, drop those that name no thing and join those that together name one.
"""

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
from transforms.text.inflection import PAIRED, singular
from transforms.text.parses import Parse, Token
from transforms.text.phrase_words import (
    AMOUNTS,
    BREAKS,
    CAPITALS,
    COLLECTIVES,
    COLOURS,
    DEFINITE,
    FORBIDS,
    GROUPS,
    IMAGES,
    NEGATIONS,
    NUMBERS,
    PAIRS,
    PARTS,
    PICTURES,
    POSITIONS,
    PRONOUNS,
    RELATIONS,
    SEVERAL,
    SHOWS,
    SITES,
    STYLES,
)
from transforms.text.plurals import COUNTS, expand_plurals

if TYPE_CHECKING:
    from transforms.models.parser import Parser

STAGE = "phrases"


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
    chunks = [chunk for chunk in _without_pictures(parse, chunks) if _is_thing(parse, chunk)]
    return tuple(_phrase(parse, chunk) for chunk in _first_mentions(parse, chunks))


def _whole_words(parse: Parse) -> list[Chunk]:
    """The parse's base noun phrases, with the words that a parser tends to cut or to miss.

    Numbered capitals ("two TVs") and two colours with a noun ("a gold and silver watch") are phrases even where the
    parser does not see it, and no phrase ends within a word ("a passer | -by").
    """
    found = list(parse.chunks)
    covered = {i for start, end in found for i in range(start, end)}
    for i, token in enumerate(parse.tokens[1:], start=1):
        if parse.word(i - 1) in COUNTS and CAPITALS.fullmatch(token.text) and not covered & {i - 1, i}:
            found.append((i - 1, i + 1))
        if parse.word(i - 1) in ("and", "&") and parse.word(i - 2) in COLOURS and parse.word(i) in COLOURS:
            noun = _noun_after(parse, i)
            if noun is not None and i not in covered:
                own = next(((start, end) for start, end in found if start <= noun < end), (noun, noun + 1))
                found = [*(chunk for chunk in found if chunk != own), (i, own[1])]
    found = _with_first_colours(parse, sorted(found))
    chunks: list[Chunk] = []
    for start, end in found:
        word_end = _end_of_word(parse, end)
        is_split = any(s < word_end < e for s, e in found)
        if not chunks or start >= chunks[-1].end:
            chunks.append(Chunk(start, end if is_split else word_end, end - 1))
    return chunks


def _noun_after(parse: Parse, i: int) -> int | None:
    """The noun that follows adjective `i` and perhaps more adjectives."""
    following = next((j for j in range(i + 1, len(parse.tokens)) if parse.tokens[j].pos != "ADJ"), None)
    return following if following is not None and parse.tokens[following].pos == "NOUN" else None


def _with_first_colours(parse: Parse, chunks: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Add "an orange and" to "white cat", where a parser took "an orange" for a thing or left it out."""
    joined: list[tuple[int, int]] = []
    for start, end in chunks:
        before = _first_of_adjectives(parse, start, end)
        if before < start:
            while joined and joined[-1][0] >= before:
                joined.pop()
            before = max([before, *(e for _, e in joined[-1:])])
        joined.append((before, end))
    return joined


def _first_of_adjectives(parse: Parse, start: int, end: int) -> int:
    """The first token of a phrase whose chunk [start, end) begins with the last of several adjectives; else `start`.

    Words before "and" are taken for adjectives if they follow a determiner, a preposition or nothing: in "the sky is
    blue and white clouds" they do not belong to the clouds.
    """
    tokens = parse.tokens
    if parse.word(start - 1) not in ("and", "&", "or") or start == end - 1 or not _describes(tokens[start]):
        return start
    first = start - 1
    while first > 0 and (_describes(tokens[first - 1]) or parse.word(first - 1) == ","):
        first -= 1
    if first == 0 or tokens[first - 1].pos == "ADP":
        return first if any(map(_describes, tokens[first : start - 1])) else start
    is_determined = tokens[first - 1].pos in ("DET", "NUM") or tokens[first - 1].dep == "poss"
    return first - 1 if is_determined and _describes(tokens[first]) else start


def _describes(token: Token) -> bool:
    return token.pos == "ADJ" or token.text.lower() in COLOURS


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
    if has_word and _ends_in_verb(parse, start, chunk):
        return Chunk(start, chunk.root, chunk.root - 1)
    return replace(chunk, start=start) if has_word else None


def _ends_in_verb(parse: Parse, start: int, chunk: Chunk) -> bool:
    """Whether a parser took a verb for the noun: "a homeless man begs" would be one thing and several."""
    root, before = parse.tokens[chunk.root], parse.tokens[chunk.root - 1]
    is_plural = root.number == "Plur" and root.text.lower() not in PAIRED and chunk.end == chunk.root + 1
    is_single = parse.word(start) in ("a", "an") and chunk.root - start >= 2
    is_noun = before.pos in ("NOUN", "PROPN") and not before.text.endswith("ing")  # "making pizzas"
    return is_plural and is_single and is_noun and before.lemma not in AMOUNTS | COLLECTIVES


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


def _without_pictures(parse: Parse, chunks: Sequence[Chunk]) -> list[Chunk]:
    """Leave out the "photo" of "a photo of a dog", of "this is a photo showing a dog" and of "in this photo"."""
    kept: list[Chunk] = []
    for chunk in chunks:
        is_opening = all(parse.tokens[c.root].pos in PRONOUNS for c in kept)
        if not _is_picture(parse, chunk, is_opening=is_opening):
            kept.append(chunk)
    return kept


def _is_picture(parse: Parse, chunk: Chunk, *, is_opening: bool) -> bool:
    """Whether a chunk is the picture that the caption is of; `is_opening`: nothing visible stands before it."""
    root, first = parse.tokens[chunk.root], parse.word(chunk.start)
    following, before = parse.word(chunk.end), parse.word(chunk.start - 1)
    if parse.word(chunk.root) in SHOWS and chunk.root > chunk.start and parse.tokens[chunk.root - 1].lemma in IMAGES:
        # "The image features a dog": a parser may take "features" for a noun.
        root, following = parse.tokens[chunk.root - 1], parse.word(chunk.root)
    if root.lemma not in IMAGES or first in NEGATIONS:
        return False
    definite = first in DEFINITE
    if before in ("in", "within", "throughout", "across") and definite and (is_opening or root.lemma in PICTURES):
        return True
    if not is_opening:
        return definite and root.lemma in PICTURES and before == "of"
    if following in ("is", "was") and root.lemma in PICTURES:
        return parse.word(chunk.end + 1) in ("of", "a", "an", "taken", "captured", "shot", "set", "from")
    is_bare = parse.tokens[chunk.start].pos not in PRONOUNS
    return following in SHOWS or (is_bare and following == ",")


def _is_thing(parse: Parse, chunk: Chunk) -> bool:
    """Whether a chunk may name something visible: no pronoun, nothing absent, no amount, no part of space."""
    root = parse.tokens[chunk.root]
    if root.pos in PRONOUNS or _is_link(root.text) or root.lemma in AMOUNTS or root.lemma in ("one", "ones"):
        return False
    # "no bicycles", "a sign without bicycles", and "a no bicycles" of a sign, but not "a no parking sign".
    before = parse.word(chunk.start - 1)
    if before in FORBIDS or NEGATIONS.intersection((before, parse.word(chunk.start), parse.word(chunk.root - 1))):
        return False
    if not any(map(str.isalpha, root.text)):
        return False
    return not (root.lemma in RELATIONS and _is_bare_place(parse, chunk)) and not _is_style(parse, chunk)


def _is_style(parse: Parse, chunk: Chunk) -> bool:
    """Whether a chunk says how the picture was made: "concept art", "sharp focus", who follows "art by" and "style of".

    Such words are tags: bare and between commas. "A painting on a wall" is a thing.
    """
    root, before, following = parse.tokens[chunk.root], parse.word(chunk.start - 1), parse.word(chunk.end)
    earlier = parse.word(chunk.start - 2)
    if (
        root.lemma in SITES
        or (before == "by" and earlier in IMAGES | STYLES)
        or (before == "of" and earlier == "style")
    ):
        return True
    if root.lemma == "style":
        return following == "of"
    is_bare = parse.tokens[chunk.start].pos not in PRONOUNS
    is_tag = before in (",", "") and following in (",", ".", "", "by", "of")
    return is_bare and is_tag and root.lemma in STYLES


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
    things = _count(parse, chunk)
    return Phrase(
        parse.caption[start:end], start, end, root[word[0] : word[-1] + 1], origin=(start, end), things=things
    )


def _count(parse: Parse, chunk: Chunk) -> int | None:
    """How many things a phrase names at most; None if it does not say.

    The count is that of a number ("five dogs") or of a group ("a pair of shoes", "a crowd"); else it depends on the
    noun being a plural.
    """
    root = parse.tokens[chunk.root]
    before = [token for token in parse.tokens[chunk.start : chunk.root] if token.text not in "()"]
    texts = [token.text.lower() for token in before]
    if root.text.lower() in PAIRED:
        return 1
    if "of" in texts:
        measure = before[texts.index("of") - 1].lemma
        if measure in COLLECTIVES:
            return PAIRS.get(measure, 1 if measure in PARTS else None)
    numbers = [NUMBERS.get(token.text.lower(), 0) for token in before if token.pos == "NUM"]
    if len(numbers) == 1 and numbers[0]:
        return numbers[0]
    if root.lemma in COLLECTIVES | GROUPS and root.lemma not in PARTS and root.number != "Plur":
        return PAIRS.get(root.lemma)
    base = singular(root.text)
    is_plural = root.number == "Plur" or (not root.number and root.pos == "NOUN" and base not in (None, root.text))
    return None if is_plural or (base == root.text and SEVERAL.intersection(texts)) else 1


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
