"""Which samples are kept: no two that look the same, and of the others the best.

What is compared are small records, a `Candidate` per sample, never pictures. Both steps spread over workers: near
duplicates meet in groups of equal bits, and of the best k each worker hands on no more than k.

    marked = candidates | MarkNearDuplicates(distance=3)
    chosen = marked | ChooseBest(100_000)
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import apache_beam as beam
import numpy as np

BITS = 64
"""Of a look."""

BLOCK = 64
"""Rows of a group's comparisons that are made at once: a group of 100,000 takes 50 MB."""


class Candidate(NamedTuple):
    """What a sample is chosen by: the number of its shard, its key, its quality and its look (64 bits).

    `better` is the key of a better sample that looks the same, "" where none is known.
    """

    shard: int
    key: str
    quality: float
    look: int
    better: str = ""


class CandidateCoder(beam.coders.Coder):
    """Candidates as some 35 bytes: Beam's own choice, pickles, are twice that and slower."""

    _HEAD = struct.Struct(">IdQI")

    def encode(self, value: Candidate) -> bytes:
        """Write the numbers, the length of the key, and the two keys."""
        key = value.key.encode()
        head = self._HEAD.pack(value.shard, value.quality, value.look, len(key))
        return head + key + value.better.encode()

    def decode(self, encoded: bytes) -> Candidate:
        """Read what `encode` wrote."""
        shard, quality, look, length = self._HEAD.unpack_from(encoded)
        end = self._HEAD.size + length
        return Candidate(shard, encoded[self._HEAD.size : end].decode(), quality, look, encoded[end:].decode())

    def is_deterministic(self) -> bool:
        """Equal candidates are equal bytes."""
        return True


beam.coders.registry.register_coder(Candidate, CandidateCoder)


def rank(candidate: Candidate) -> tuple[float, str, int]:
    """Order candidates, the best first: by quality; equals by key, as they must have some order."""
    return -candidate.quality, candidate.key, candidate.shard


def bands(distance: int) -> list[int]:
    """Split the bits of a look into `distance` + 1 bands; each is a mask of 64 bits.

    Looks that differ in at most `distance` bits agree in at least one whole band: the bits in which they differ
    cannot reach all of them. Neighbouring bits go to different bands, so that each has its share of the low
    frequencies, which tell pictures apart best.
    """
    return [sum(1 << bit for bit in range(band, BITS, distance + 1)) for band in range(distance + 1)]


def mark_near(group: Iterable[Candidate], distance: int) -> Iterator[Candidate]:
    """Name to each of a group one that is better and differs from it in at most `distance` bits, where there is one.

    It is the best one of its own look, to that one the best of those near it. Those to whom a better one is known
    already keep it, and still count as better ones to others.

    Args:
        group: it is read twice; one candidate for each different look is held in memory.
        distance: in [0, 63].
    """
    best: dict[int, Candidate] = {}
    for one in group:
        if one.look not in best or rank(one) < rank(best[one.look]):
            best[one.look] = one
    better = _better_looks(sorted(best.values(), key=rank), distance)
    for one in group:
        first = best[one.look]
        found = first.key if rank(first) < rank(one) else better.get(one.look, "")
        yield one._replace(better=one.better or found)


def _better_looks(ordered: Sequence[Candidate], distance: int) -> dict[int, str]:
    """Find, for the looks of candidates in their rank, the key of the first one that is near and comes before."""
    looks = np.array([one.look for one in ordered], np.uint64)
    better = {}
    for start in range(0, len(ordered), BLOCK):
        differing = np.bitwise_count(looks[start : start + BLOCK, None] ^ looks[None, : start + BLOCK])
        near = np.tril(differing <= distance, start - 1)  # of each row, the columns before it
        for row in np.flatnonzero(near.any(axis=1)).tolist():
            better[ordered[start + row].look] = ordered[int(near[row].argmax())].key
    return better


@dataclass(eq=False)
class MarkNearDuplicates(beam.PTransform):
    """Fill `better` of candidates that look like a better one: PCollection[Candidate] -> PCollection[Candidate].

    A candidate is a near duplicate of a better one (of higher quality; of equal quality, with the smaller key) if
    their looks differ in at most `distance` bits, in [0, 63]. Where A is better than B and B than C, and only
    neighbours look the same, B and C both are near duplicates: what becomes of the better one does not matter.

    Candidates meet in groups that agree in a band of bits. Equal looks are settled in a pass over the group,
    different ones are compared pair by pair.
    """

    distance: int = 3

    def expand(self, candidates: beam.PCollection[Candidate]) -> beam.PCollection[Candidate]:
        """Group by one band after the other: all at once would hold every candidate as often as there are bands."""
        for number, band in enumerate(bands(self.distance)):
            candidates |= f"band {number}" >> _MarkInBand(band, self.distance)
        return candidates


@dataclass(eq=False)
class _MarkInBand(beam.PTransform):
    """Mark the near duplicates among candidates whose looks agree in the bits of `band`."""

    band: int
    distance: int

    def expand(self, candidates: beam.PCollection[Candidate]) -> beam.PCollection[Candidate]:
        # Bytes are the key: Beam's coder of integers ends at 63 bits.
        return (
            candidates
            | "bits" >> beam.Map(self._keyed).with_output_types(tuple[bytes, Candidate])
            | "group" >> beam.GroupByKey()
            | "mark" >> beam.FlatMapTuple(self._mark).with_output_types(Candidate)
        )

    def _keyed(self, candidate: Candidate) -> tuple[bytes, Candidate]:
        return (candidate.look & self.band).to_bytes(BITS // 8, "big"), candidate

    def _mark(self, _: bytes, group: Iterable[Candidate]) -> Iterator[Candidate]:
        return mark_near(group, self.distance)


@dataclass(eq=False)
class ChooseBest(beam.PTransform):
    """Choose the `best` of the candidates that look like no better one: PCollection[Candidate] -> the same.

    Of equal quality the smaller key goes first. No worker holds more than `best` candidates at a time, as Beam's `Top`
    keeps a heap of that size.
    """

    best: int

    def expand(self, candidates: beam.PCollection[Candidate]) -> beam.PCollection[Candidate]:
        """Take the top of those that are not marked."""
        return (
            candidates
            | "not marked" >> beam.Filter(lambda one: not one.better)
            | "top" >> beam.combiners.Top.Of(self.best, key=rank, reverse=True)
            | "one by one" >> beam.FlatMap(list).with_output_types(Candidate)
        )
