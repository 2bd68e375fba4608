"""Pairs of subjects: bounds, groups, buckets, against brute force."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import transforms.selection.pairs as pairs_module
from schemas.errors import RecordError
from tests.beam import apply
from transforms.selection.pairs import (
    NONE,
    Bounds,
    ChoosePairs,
    Pair,
    Subject,
    best_of,
    buckets,
    choose_pairs,
    group_of,
)


def subject(key: str, embedding: list[float], number: int = 0, group: str = "g") -> Subject:
    vector = np.array(embedding, np.float32)
    return Subject(key, number, 0, 0, 0, group, (vector / np.linalg.norm(vector)).tobytes())


def at_angle(key: str, degrees: float, number: int = 0, group: str = "g") -> Subject:
    radians = np.deg2rad(degrees)
    return subject(key, [float(np.cos(radians)), float(np.sin(radians))], number, group)


def chosen(pairs: list[Pair]) -> dict[tuple[str, int], str | None]:
    return {(p.target.key, p.target.number): p.reference.key if p.reference else None for p in pairs}


def test_the_most_similar_other_picture_within_the_bounds_is_the_reference() -> None:
    # Cosines of 0, 2, 30 and 80 degrees to a: b is a near copy of a, d is another thing.
    group = [at_angle("a", 0), at_angle("b", 2), at_angle("c", 30), at_angle("d", 100)]
    pairs = list(choose_pairs(group, Bounds(0.6, 0.99)))
    assert chosen(pairs) == {("a", 0): "c", ("b", 0): "c", ("c", 0): "b", ("d", 0): None}
    assert pairs[0].similarity == round(float(np.cos(np.deg2rad(30))), 4)
    assert pairs[3].similarity == round(float(np.cos(np.deg2rad(70))), 4)
    assert chosen(list(choose_pairs(group, Bounds(0.6, 1))))["a", 0] == "b"


def test_a_picture_is_never_its_own_reference() -> None:
    group = [at_angle("a", 0, 0), at_angle("a", 5, 1)]
    pairs = list(choose_pairs(group, Bounds(-1, 1)))
    assert chosen(pairs) == {("a", 0): None, ("a", 1): None}
    assert pairs[0].similarity == NONE
    assert list(choose_pairs([], Bounds(0, 1))) == []


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 359)), min_size=1, max_size=12, unique=True),
    st.floats(-1, 1), st.floats(-1, 1), st.sampled_from([1, 5, 256]),
)  # fmt: skip
def test_pairs_are_those_of_brute_force(angles: list[tuple[int, int]], a: float, b: float, block: int) -> None:
    group = [at_angle(f"k{key}", angle, number) for number, (key, angle) in enumerate(angles)]
    bounds = Bounds(min(a, b), max(a, b))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs_module, "BLOCK", block)
        pairs = list(choose_pairs(reversed(group), bounds))
    assert [pair.target for pair in pairs] == sorted(group)

    def cosine(one: Subject, other: Subject) -> float:
        x, y = (np.frombuffer(s.embedding, np.float32).astype(float) for s in (one, other))
        return round(float(x @ y), 4)

    for pair in pairs:
        others = [cosine(pair.target, s) for s in group if s.key != pair.target.key]
        within = [value for value in others if bounds.lower <= value <= bounds.upper]
        assert (pair.reference is None) == (not within)
        assert pair.similarity == pytest.approx(max(within or others, default=NONE), abs=1e-4)
        if pair.reference:
            assert pair.reference.key != pair.target.key


def test_groups_are_folders_ids_or_nothing() -> None:
    assert group_of("pets/can/03.jpg", "folder") == "can"
    assert group_of("s3://bucket/pets/vase/1.jpg", "folder") == "vase"
    assert group_of("videos/clip17-0004.jpg", "pattern", r"(clip\d+)-\d+") == "clip17"
    assert group_of("videos/clip17-0004.jpg", "pattern", r"clip\d+") == "clip17"
    assert group_of("a.jpg", "clusters") == ""
    with pytest.raises(RecordError, match=r"no-partner: a.jpg lies in no folder"):
        group_of("a.jpg", "folder")
    with pytest.raises(RecordError, match=r"the pattern 'id' is not found in a.jpg"):
        group_of("a.jpg", "pattern", "id")


def test_similar_embeddings_share_a_bucket_and_few_subjects_are_one_bucket() -> None:
    rng = np.random.default_rng(0)
    assert buckets(np.ones(8, np.float32), 2_000, seed=0) == ["0"]
    hits = {0.02: 0, 3.0: 0}
    for noise in hits:
        for _ in range(200):
            vector = rng.standard_normal(64).astype(np.float32)
            near = vector + noise * rng.standard_normal(64).astype(np.float32)
            mine, other = (buckets(v, 16_000, seed=3) for v in (vector, near))
            assert len(mine) == 4
            assert all(len(bucket) == len("0-") + 3 for bucket in mine)
            hits[noise] += bool(set(mine) & set(other))
    assert hits[0.02] > 195
    assert hits[3.0] < 150
    assert buckets(vector, 16_000, seed=3) == mine


def test_of_several_choices_one_within_the_bounds_wins() -> None:
    a, b, c = (at_angle(key, angle) for key, angle in (("a", 0), ("b", 1), ("c", 40)))
    assert best_of([Pair(a, None, 0.99), Pair(a, c, 0.7)]) == Pair(a, c, 0.7)
    assert best_of([Pair(a, c, 0.7), Pair(a, b, 0.9)]) == Pair(a, b, 0.9)


def test_the_transform_pairs_within_groups_only_in_any_order() -> None:
    subjects = [at_angle(f"{g}{i}", 10 * i, group=g) for g, i in product("xy", range(3))]
    pairs = apply(ChoosePairs(Bounds(0, 0.99), len(subjects), 0), subjects[::-1])
    assert len(pairs) == 6
    for pair in pairs:
        assert pair.reference is not None
        assert pair.reference.group == pair.target.group
    unnamed = [s._replace(group="") for s in subjects]
    across = apply(ChoosePairs(Bounds(0.995, 1), len(subjects), 0), unnamed)
    assert {(p.target.key, p.reference.key if p.reference else "") for p in across} == {
        (f"{g}{i}", f"{'yx'['xy'.index(g)]}{i}") for g, i in product("xy", range(3))
    }
