"""Which samples are kept: the best ones, without near duplicates.

Both steps compare small records, a `Candidate` per sample, not pictures, and run on many workers: near duplicates meet
in groups of equal bits, and no worker passes on more than k candidates for the best k.

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
"""Bits of a perceptual hash."""

BLOCK = 64
"""Rows of a group that are compared with all others at once: a group of 100,000 takes 50 MB."""


class Candidate(NamedTuple):
    """What decides whether a sample is kept: its quality and its perceptual hash (`phash`, 64 bits).

    `shard` is the number of its shard. `better` is the key of a better sample that it nearly duplicates, "" if none is
    known.
    """

    shard: int
    key: str
    quality: float
    phash: int
    better: str = ""


class CandidateCoder(beam.coders.Coder):
    """Candidates in about 35 bytes; pickles, Beam's default, are twice as large and slower."""

    _HEAD = struct.Struct(">IdQI")

    def encode(self, value: Candidate) -> bytes:
        """Write the numbers, the length of the key, and the two keys."""
        key = value.key.encode()
        head = self._HEAD.pack(value.shard, value.quality, value.phash, len(key))
        return head + key + value.better.encode()

    def decode(self, encoded: bytes) -> Candidate:
        """Read what `encode` wrote."""
        shard, quality, phash, length = self._HEAD.unpack_from(encoded)
        end = self._HEAD.size + length
        return Candidate(shard, encoded[self._HEAD.size : end].decode(), quality, phash, encoded[end:].decode())

    def is_deterministic(self) -> bool:
        """Equal candidates have equal bytes."""
        return True


beam.coders.registry.register_coder(Candidate, CandidateCoder)


def rank(candidate: Candidate) -> tuple[float, str, int]:
    """Sort key of candidates, the best first: by quality, equal ones by key, so that the order is always the same."""
    return -candidate.quality, candidate.key, candidate.shard


def bands(distance: int) -> list[int]:
    """Split the bits of a hash into `distance` + 1 bands; each is a mask of 64 bits.

    Two hashes that differ in at most `distance` bits agree in at least one whole band, as these bits cannot lie in all
    of them. Neighbouring bits are in different bands, so that each band has some of the low frequencies, which
    distinguish pictures best.
    """
    return [sum(1 << bit for bit in range(band, BITS, distance + 1)) for band in range(distance + 1)]


def mark_near(group: Iterable[Candidate], distance: int) -> Iterator[Candidate]:
    """For each candidate, set `better` to the key of a better candidate within `distance` bits, if there is one.

    That is the best candidate with the same hash; for the best one itself, the best of those with a hash near its own.
    A candidate whose `better` is already set keeps it, and still counts as better than others.

    Args:
        group: candidates; read twice. One candidate per different hash is held in memory.
        distance: bits, in [0, 63].
    """
    best: dict[int, Candidate] = {}
    for candidate in group:
        phash = candidate.phash
        if phash not in best or rank(candidate) < rank(best[phash]):
            best[phash] = candidate
    better = _better_by_phash(sorted(best.values(), key=rank), distance)
    for candidate in group:
        first = best[candidate.phash]
        found = first.key if rank(first) < rank(candidate) else better.get(candidate.phash, "")
        yield candidate._replace(better=candidate.better or found)


def _better_by_phash(ordered: Sequence[Candidate], distance: int) -> dict[int, str]:
    """For the hash of each candidate in `ordered`, the key of the first earlier one within `distance` bits."""
    hashes = np.array([candidate.phash for candidate in ordered], np.uint64)
    better = {}
    for start in range(0, len(ordered), BLOCK):
        differing = np.bitwise_count(hashes[start : start + BLOCK, None] ^ hashes[None, : start + BLOCK])
        near = np.tril(differing <= distance, start - 1)  # of each row, the columns before it
        for row in np.flatnonzero(near.any(axis=1)).tolist():
            better[ordered[start + row].phash] = ordered[int(near[row].argmax())].key
    return better


@dataclass(eq=False)
class MarkNearDuplicates(beam.PTransform):
    """Fill `better` of near duplicates: PCollection[Candidate] -> PCollection[Candidate].

    A candidate is a near duplicate of a better one (of higher quality, or of equal quality with the smaller key) if
    their hashes differ in at most `distance` bits, in [0, 63]. If A is better than B and B better than C, and only
    A and B and B and C are near each other, both B and C are near duplicates: it does not matter that B is not kept.

    Candidates meet in groups that agree in a band of bits. Equal hashes are handled in one pass over the group,
    different ones are compared pair by pair.
    """

    distance: int = 3

    def expand(self, candidates: beam.PCollection[Candidate]) -> beam.PCollection[Candidate]:
        """Group by one band after the other: grouping by all at once would hold a copy of every candidate per band."""
        for number, band in enumerate(bands(self.distance)):
            candidates |= f"band {number}" >> _MarkInBand(band, self.distance)
        return candidates


@dataclass(eq=False)
class _MarkInBand(beam.PTransform):
    """Mark the near duplicates among candidates whose hashes agree in the bits of `band`."""

    band: int
    distance: int

    def expand(self, candidates: beam.PCollection[Candidate]) -> beam.PCollection[Candidate]:
        # The keys are bytes, as Beam's coder for integers has 63 bits.
        return (
            candidates
            | "bits" >> beam.Map(self._keyed).with_output_types(tuple[bytes, Candidate])
            | "group" >> beam.GroupByKey()
            | "mark" >> beam.FlatMapTuple(self._mark).with_output_types(Candidate)
        )

    def _keyed(self, candidate: Candidate) -> tuple[bytes, Candidate]:
        return (candidate.phash & self.band).to_bytes(BITS // 8, "big"), candidate

    def _mark(self, _: bytes, group: Iterable[Candidate]) -> Iterator[Candidate]:
        return mark_near(group, self.distance)


@dataclass(eq=False)
class ChooseBest(beam.PTransform):
    """Keep the `best` candidates that are no near duplicates: PCollection[Candidate] -> PCollection[Candidate].

    Of equal quality, the one with the smaller key comes first. No worker holds more than `best` candidates at a time,
    as Beam's `Top` keeps a heap of that size.
    """

    best: int

    def expand(self, candidates: beam.PCollection[Candidate]) -> beam.PCollection[Candidate]:
        """Take the top of those that are not marked."""
        return (
            candidates
            | "not marked" >> beam.Filter(lambda candidate: not candidate.better)
            | "top" >> beam.combiners.Top.Of(self.best, key=rank, reverse=True)
            | "flatten" >> beam.FlatMap(list).with_output_types(Candidate)
        )
