"""Which phrase names which segment: greedy one-to-one matching by similarity.

Stuff ("the green field") is matched like things: FastComposer pairs phrases with all panoptic segments and leaves the
choice among subjects to the trainer, by their labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import apache_beam as beam
import numpy as np
from numpy.typing import NDArray

from schemas.errors import RecordError
from schemas.example import Example, Match, Phrase, Segment
from schemas.rejects import Reason
from transforms.batch import Batch, each
from transforms.step import Step, map_batches
from transforms.text.synonyms import plain_labels

STAGE = "matches"

Plurals = Literal["union", "one", "leave-out"]
"""What a phrase for several things ("a group of people") is matched with: all of them, one of them, nothing."""


def greedy_match(similarity: NDArray[np.floating], threshold: float) -> tuple[Match, ...]:
    """Match rows (phrases) and columns (segments) of `similarity` [P, S] one to one, highest first.

    Scores below `threshold`, and NaN, are never matched. Equal scores are taken in the order of phrase, then
    segment, so that the result is a function of the matrix. Matches are in the order of the phrases.
    """
    rows, columns = np.nonzero(similarity >= threshold)
    scores = similarity[rows, columns]
    matches: dict[int, Match] = {}
    taken: set[int] = set()
    for i in np.lexsort((columns, rows, -scores)):
        phrase, segment = int(rows[i]), int(columns[i])
        if phrase not in matches and segment not in taken:
            matches[phrase] = Match(phrase, segment, float(scores[i]))
            taken.add(segment)
    return tuple(matches[phrase] for phrase in sorted(matches))


def with_all_things(
    matches: Sequence[Match], phrases: Sequence[Phrase], segments: Sequence[Segment], similarity: NDArray[np.floating]
) -> tuple[Match, ...]:
    """Add to the match of each phrase for several things the other segments of the class that it was matched with.

    A segment goes to one phrase: to that which names it alone, else to the one with the highest similarity, of equal
    ones the first. "Five dogs" take the five most similar segments. The score stays that of the match.
    """
    taken = {match.segment for match in matches}
    counts = {match.phrase: phrases[match.phrase].things for match in matches}
    room = {phrase: len(segments) if count is None else count for phrase, count in counts.items()}
    candidates = sorted(
        (-similarity[match.phrase, s], match.phrase, s)
        for match in matches
        for s, segment in enumerate(segments)
        if segment.label == segments[match.segment].label and not np.isnan(similarity[match.phrase, s])
    )
    others: dict[int, list[int]] = {match.phrase: [] for match in matches}
    for _, phrase, s in candidates:
        if s not in taken and len(others[phrase]) + 1 < room[phrase]:
            others[phrase].append(s)
            taken.add(s)
    return tuple(replace(match, others=tuple(sorted(others[match.phrase]))) for match in matches)


@dataclass(frozen=True)
class Names:
    """Which subjects a dataset is about.

    Attributes:
        only: classes and head nouns of phrases; a pair of phrase and segment needs one of them. "things" stands for all
            classes of things, and leaves out stuff ("grass"). Empty: all.
        never: classes and head nouns of which a pair has none.
    """

    only: frozenset[str] = frozenset()
    never: frozenset[str] = frozenset()

    def allows(self, phrase: Phrase, segment: Segment) -> bool:
        """Whether the phrase and the segment may be matched."""
        names = {phrase.root.lower(), segment.label, *plain_labels(segment.label)}
        named = names & self.only or ("things" in self.only and segment.is_thing)
        return bool(named or not self.only) and not names & self.never


def match_phrases(
    example: Example, threshold: float, plurals: Plurals = "one", min_area: float = 0.0, names: Names = Names()
) -> Example:
    """Match the example's phrases with its segments.

    What a phrase is matched with covers at least `min_area` of the picture, a share in [0, 1].

    Raises:
        RecordError: NO_MATCH, no similarity reaches the threshold.
    """
    similarity = np.array(example.similarity, dtype=np.float64).reshape(len(example.phrases), len(example.segments))
    is_plural = np.array([phrase.things != 1 for phrase in example.phrases], bool)
    areas = np.array([segment.area for segment in example.segments])
    smallest = min_area * example.width * example.height
    if plurals == "leave-out":
        similarity[is_plural] = np.nan
    allowed = [[names.allows(phrase, segment) for segment in example.segments] for phrase in example.phrases]
    similarity[~np.array(allowed, bool).reshape(similarity.shape)] = np.nan
    alone = ~is_plural if plurals == "union" else np.full_like(is_plural, True)
    similarity[np.ix_(alone, areas < smallest)] = np.nan
    matches = greedy_match(similarity, threshold)
    if plurals == "union":
        matches = with_all_things(matches, example.phrases, example.segments, similarity)
        matches = tuple(m for m in matches if areas[[m.segment, *m.others]].sum() >= smallest)
    if not matches:
        if names != Names() and not np.any(allowed):
            raise RecordError(Reason.NO_MATCH, "no phrase and segment have a name that only and never allow")
        best = np.nanmax(similarity, initial=-np.inf)
        detail = f"the best similarity is {best:.3f}, the threshold {threshold:.3f}"
        raise RecordError(Reason.NO_MATCH, detail + _most_similar(example, similarity))
    return replace(example, matches=matches)


def _most_similar(example: Example, similarity: NDArray[np.float64]) -> str:
    """Name the most similar phrase and segment, as " ('a red dog' with a 'cat')"; "" if that has no class name."""
    if np.isnan(similarity).all():
        return ""
    phrase, segment = np.unravel_index(int(np.nanargmax(similarity)), similarity.shape)
    label = example.segments[segment].label
    return f" ({example.phrases[phrase].text!r} with a {label!r})" if label else ""


@dataclass(eq=False)
class MatchPhrases(Step):
    """Fill `matches` from `similarity`.

    `threshold` is the lowest similarity of a match, `min_area` the smallest area of what a phrase is matched with, as a
    share of the picture's, `names` what may be matched.
    """

    threshold: float
    plurals: Plurals = "one"
    min_area: float = 0.0
    names: Names = Names()

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Match each example by itself."""
        step = partial(
            match_phrases, threshold=self.threshold, plurals=self.plurals, min_area=self.min_area, names=self.names
        )
        return map_batches(batches, STAGE, each(step))
