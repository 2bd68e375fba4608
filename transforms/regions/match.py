"""Which phrase names which segment: greedy one-to-one matching by similarity.

Stuff ("the green field") is matched like things: FastComposer pairs phrases with all panoptic segments and leaves the
choice among subjects to the trainer, by their labels.
"""

from dataclasses import dataclass, replace

import apache_beam as beam
import numpy as np
from numpy.typing import NDArray

from schemas.errors import RecordError
from schemas.example import Example, Match
from schemas.rejects import Reason
from transforms.batch import Batch, each
from transforms.step import Step, map_batches

STAGE = "matches"


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


def match_phrases(example: Example, threshold: float) -> Example:
    """Match the example's phrases with its segments.

    Raises:
        RecordError: NO_MATCH, no similarity reaches the threshold.
    """
    similarity = np.array(example.similarity, dtype=np.float64).reshape(len(example.phrases), len(example.segments))
    matches = greedy_match(similarity, threshold)
    if not matches:
        best = np.nanmax(similarity, initial=-np.inf)
        raise RecordError(Reason.NO_MATCH, f"the best similarity is {best:.3f}, the threshold {threshold:.3f}")
    return replace(example, matches=matches)


@dataclass(eq=False)
class MatchPhrases(Step):
    """Fill `matches` from `similarity`; `threshold` is the lowest similarity of a match."""

    threshold: float

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Match each example by itself."""
        threshold = self.threshold
        return map_batches(batches, STAGE, each(lambda example: match_phrases(example, threshold)))
