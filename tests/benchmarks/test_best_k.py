from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.best_k import COPIED, PER_SHARD, candidates_of, choose, measure
from transforms.selection.top_k import Candidate, rank


def candidates_up_to(count: int) -> list[Candidate]:
    return [candidate for shard in range(count // PER_SHARD) for candidate in candidates_of(shard)]


def test_every_tenth_candidate_is_a_near_copy_of_the_one_before() -> None:
    candidates = candidates_up_to(2 * PER_SHARD)
    assert len({candidate.key for candidate in candidates}) == 2 * PER_SHARD
    near = [(a.phash ^ b.phash).bit_count() <= 3 for a, b in pairwise(candidates)]
    assert [i + 2 for i, is_near in enumerate(near) if is_near] == list(range(COPIED, 2 * PER_SHARD + 1, COPIED))


@pytest.mark.parametrize("distance", [None, 3])
def test_the_measured_choice_is_correct(tmp_path: Path, distance: int | None) -> None:
    candidates = candidates_up_to(3 * PER_SHARD)
    if distance is not None:
        worse = {
            max(pair, key=rank).key
            for pair in zip(candidates[COPIED - 2 :: COPIED], candidates[COPIED - 1 :: COPIED], strict=True)
        }
        candidates = [candidate for candidate in candidates if candidate.key not in worse]
    expected = [candidate.key for candidate in sorted(candidates, key=rank)[:100]]
    cost = choose(3 * PER_SHARD, 100, distance, str(tmp_path / "chosen"))
    assert cost.chosen == 100
    assert sorted((tmp_path / "chosen").read_text().split()) == sorted(expected)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_candidates() -> None:
    cost = measure(200_000, 1000, None)
    assert cost.chosen == 1000
    assert cost.peak < cost.before + 30
    assert measure(200_000, 1000, 3).peak < 500
