"""Pairs of different pictures of one subject: which picture is shown as the reference of which.

Subjects meet in groups (of a folder, of an id, or of similar embeddings), not in pictures: what goes through the
shuffle is a `Subject`, two kilobytes. In a group each subject gets the most similar one of another picture whose
similarity lies within bounds. Below the lower one it may be another subject, or another side of it; above the upper one
the two pictures are near copies, which teach a model to copy.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import apache_beam as beam
import numpy as np
from numpy.typing import NDArray

from schemas.errors import RecordError
from schemas.keys import rng_of
from schemas.rejects import Reason

BLOCK = 256
"""Subjects that are compared with all others of their group at once."""

NONE = -2.0
"""Similarity of a subject that has no other to be compared with: below any cosine."""

BUCKET = 2_000
"""Subjects in a bucket of similar embeddings, about; fewer in all are one bucket, in which none is missed."""

BANDS = 4
"""Buckets that a subject is in, if there are several: a similar one that one of them misses may be in another."""


class Subject(NamedTuple):
    """A subject of a sample, number `number` of its subjects, from 0, and where the sample is.

    `embedding` is a unit vector as float32 bytes.
    """

    key: str
    number: int
    shard: int
    offset: int
    size: int
    group: str
    embedding: bytes


class Pair(NamedTuple):
    """A subject and its reference; `similarity` is `NONE` where its group holds no other picture.

    `reference` is None where no other subject is within the bounds: then `similarity` is that of the most similar one.
    """

    target: Subject
    reference: Subject | None
    similarity: float


@dataclass(frozen=True)
class Bounds:
    """Lowest and highest similarity of a pair, cosines."""

    lower: float
    upper: float


def choose_pairs(subjects: Iterable[Subject], bounds: Bounds) -> Iterator[Pair]:
    """Yield a `Pair` for each subject of a group, in the order of keys and numbers."""
    ordered = sorted(subjects)
    if not ordered:
        return
    matrix = np.stack([np.frombuffer(subject.embedding, np.float32) for subject in ordered])
    names = np.unique([subject.key for subject in ordered], return_inverse=True)[1]
    for start in range(0, len(ordered), BLOCK):
        rows = slice(start, start + BLOCK)
        # Rounded, as a sum of floats differs by its order from machine to machine.
        cosines = (matrix[rows].astype(np.float64) @ matrix.T.astype(np.float64)).round(4)
        cosines[names[rows][:, None] == names[None]] = NONE
        for subject, row in zip(ordered[rows], cosines, strict=True):
            yield _pair_of(subject, ordered, row, bounds)


def _pair_of(subject: Subject, others: Sequence[Subject], cosines: NDArray[np.float64], bounds: Bounds) -> Pair:
    within = np.where((cosines >= bounds.lower) & (cosines <= bounds.upper), cosines, NONE)
    best = int(within.argmax())
    if within[best] == NONE:
        return Pair(subject, None, float(cosines.max()))
    return Pair(subject, others[best], float(within[best]))


def best_of(pairs: Iterable[Pair]) -> Pair:
    """Of the pairs of one subject in several buckets: the most similar within the bounds, else the most similar."""
    return max(
        sorted(pairs, key=lambda pair: pair.reference or pair.target),
        key=lambda pair: (pair.reference is not None, pair.similarity),
    )


def group_of(uri: str, how: Literal["folder", "pattern", "clusters"], pattern: str = "") -> str:
    """Return the group of the picture at an address.

    Args:
        uri: The address.
        how: "folder", the name of the picture's folder; "pattern", what the parentheses of `pattern` match, or its
            whole match without parentheses; "clusters", "".
        pattern: A regular expression.

    Raises:
        RecordError: NO_PARTNER, the address has no folder, or the pattern is not found in it.
    """
    if how == "clusters":
        return ""
    if how == "folder":
        folder = re.split(r"[/\\]", uri)[-2:-1]
        if not folder or not folder[0]:
            raise RecordError(Reason.NO_PARTNER, f"{uri} lies in no folder")
        return folder[0]
    match = re.search(pattern, uri)
    if not match:
        raise RecordError(Reason.NO_PARTNER, f"the pattern {pattern!r} is not found in {uri}")
    return match.group(min(1, match.re.groups)) or ""


def buckets(embedding: NDArray[np.float32], count: int, seed: int) -> list[str]:
    """Return the buckets of an embedding among `count`: embeddings of a small angle mostly share one.

    The signs of random projections decide (Charikar 2002, "Similarity Estimation Techniques from Rounding Algorithms").
    """
    bits = max(0, int(np.ceil(np.log2(max(count, 1) / BUCKET))))
    if not bits:
        return ["0"]
    planes = rng_of(seed, "buckets", "").standard_normal((BANDS, bits, len(embedding)))
    signs = planes @ embedding.astype(np.float64) > 0
    return [f"{band}-{''.join('1' if sign else '0' for sign in row)}" for band, row in enumerate(signs)]


@dataclass(eq=False)
class ChoosePairs(beam.PTransform):
    """Choose the reference of each subject: PCollection[Subject] -> PCollection[Pair].

    Those of a group are compared with each other; where groups have no name, those of a bucket among `count` subjects.
    """

    bounds: Bounds
    count: int
    seed: int

    def expand(self, subjects: beam.PCollection[Subject]) -> beam.PCollection[Pair]:
        """Group the subjects, choose in each group, and of several choices keep the best."""
        return (
            subjects
            | "places" >> beam.FlatMap(self._places)
            | "groups" >> beam.GroupByKey()
            | "choose" >> beam.FlatMapTuple(lambda _, group: choose_pairs(group, self.bounds))
            | "by subject" >> beam.WithKeys(lambda pair: f"{pair.target.key}.{pair.target.number}")
            | "choices" >> beam.GroupByKey()
            | "best" >> beam.MapTuple(lambda _, pairs: best_of(pairs))
        )

    def _places(self, subject: Subject) -> Iterator[tuple[str, Subject]]:
        if subject.group:
            yield f"group {subject.group}", subject
            return
        embedding = np.frombuffer(subject.embedding, np.float32)
        for bucket in buckets(embedding, self.count, self.seed):
            yield f"bucket {bucket}", subject
