from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from schemas.errors import RecordError
from schemas.example import Example
from schemas.rejects import Reason, Reject
from tests.beam import apply
from tests.examples import make_example, phrase, segment, with_similarity
from transforms.batch import Batch
from transforms.regions.match import MatchPhrases, Names, Plurals, greedy_match, match_phrases

MATRICES = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=5),
    elements=st.sampled_from([-1, 0, 0.3, 0.5, 0.7, 1, np.nan]),
)


def brute_force(similarity: np.ndarray, threshold: float) -> dict[int, int]:
    """Take the best remaining pair until none is left, by looking at every pair each time."""
    pairs = {(p, s): similarity[p, s] for p in range(similarity.shape[0]) for s in range(similarity.shape[1])}
    pairs = {pair: score for pair, score in pairs.items() if score >= threshold}
    chosen = {}
    while pairs:
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        chosen[best[0]] = best[1]
        pairs = {pair: score for pair, score in pairs.items() if pair[0] != best[0] and pair[1] != best[1]}
    return chosen


@given(MATRICES, st.sampled_from([0.0, 0.3, 0.6, 2.0]))
def test_greedy_matching_is_the_brute_force_one(similarity: np.ndarray, threshold: float) -> None:
    matches = greedy_match(similarity, threshold)
    assert {m.phrase: m.segment for m in matches} == brute_force(similarity, threshold)
    assert [m.phrase for m in matches] == sorted(m.phrase for m in matches)
    assert all(m.score == similarity[m.phrase, m.segment] for m in matches)


@given(st.permutations(range(4)), st.permutations(range(5)), st.integers(0, 1000))
def test_without_ties_the_order_of_phrases_and_segments_does_not_matter(
    rows: list[int], columns: list[int], seed: int
) -> None:
    similarity = np.random.default_rng(seed).permutation(20).reshape(4, 5) / 20
    plain = {(m.phrase, m.segment) for m in greedy_match(similarity, 0.2)}
    shuffled = greedy_match(similarity[rows][:, columns], 0.2)
    assert {(rows[m.phrase], columns[m.segment]) for m in shuffled} == plain


@given(MATRICES, st.integers(0, 3))
def test_phrases_that_name_nothing_change_nothing(similarity: np.ndarray, more: int) -> None:
    low = np.full((more, similarity.shape[1]), 0.2)
    assert greedy_match(np.vstack([similarity, low]), 0.3) == greedy_match(similarity, 0.3)


def test_by_hand() -> None:
    similarity = np.array([[0.9, 0.8], [0.85, 0.1]])
    # The best pair is taken first, though another assignment would sum to more.
    assert [(m.phrase, m.segment) for m in greedy_match(similarity, 0.5)] == [(0, 0)]
    assert [(m.phrase, m.segment) for m in greedy_match(similarity, 0.1)] == [(0, 0), (1, 1)]


def test_ties_go_to_the_first_phrase_then_the_first_segment() -> None:
    assert [(m.phrase, m.segment) for m in greedy_match(np.ones((2, 3)), 0.5)] == [(0, 0), (1, 1)]


def test_a_score_at_the_threshold_matches() -> None:
    assert greedy_match(np.array([[0.5]]), 0.5)
    assert not greedy_match(np.array([[0.4999]]), 0.5)


def test_no_match_says_how_near_it_came() -> None:
    with pytest.raises(RecordError, match=r"no-match: the best similarity is 0\.300, the threshold 0\.500"):
        match_phrases(with_similarity([[0.1, 0.3]]), 0.5)


def test_matches_are_filled_in() -> None:
    matched = match_phrases(with_similarity([[0.1, 0.9], [0.8, 0.2]]), 0.5)
    assert [(m.phrase, m.segment, m.score) for m in matched.matches] == [(0, 1, 0.9), (1, 0, 0.8)]


def test_a_phrase_without_segments_is_no_match() -> None:
    with pytest.raises(RecordError) as caught:
        match_phrases(with_similarity([[]]), 0.5)
    assert caught.value.reason == Reason.NO_MATCH


def test_a_similarity_that_is_no_number_is_no_match() -> None:
    with pytest.raises(RecordError, match="no-match: the best similarity is"):
        match_phrases(with_similarity([[float("nan")]]), 0.5)


def crowd(things: int | None, scores: list[list[float]], labels: str = "person person person dog") -> Example:
    """Phrases of which the first names `things` things, and four segments."""
    first, *rest = (phrase(f"thing {p}") for p in range(len(scores)))
    segments = tuple(segment(label) for label in labels.split())
    similarity = tuple(map(tuple, scores))
    phrases = (replace(first, things=things), *rest)
    return replace(make_example(), phrases=phrases, segments=segments, similarity=similarity)


@pytest.mark.parametrize(
    ("things", "plurals", "expected"),
    [
        (None, "union", [(0, 0, (1, 2))]),
        (2, "union", [(0, 0, (2,))]),
        (1, "union", [(0, 0, ())]),
        (None, "one", [(0, 0, ())]),
        (1, "leave-out", [(0, 0, ())]),
    ],
)
def test_a_plural_phrase_names_all_segments_of_its_class(
    things: int | None, plurals: Plurals, expected: list[tuple[int, int, tuple[int, ...]]]
) -> None:
    example = match_phrases(crowd(things, [[0.9, 0.2, 0.3, 0.8]]), 0.5, plurals)
    assert [(m.phrase, m.segment, m.others) for m in example.matches] == expected
    assert example.matches[0].score == 0.9


def test_a_segment_that_another_phrase_names_is_not_taken() -> None:
    example = match_phrases(crowd(None, [[0.9, 0.6, 0.6, 0], [0, 0.7, 0, 0], [0, 0, 0, 0.8]]), 0.5, "union")
    assert [(m.segment, m.others) for m in example.matches] == [(0, (2,)), (1, ()), (3, ())]


def test_of_two_plural_phrases_the_nearer_takes_a_segment() -> None:
    example = crowd(None, [[0.9, 0.1, 0.3, 0.2], [0.1, 0.9, 0.2, 0.3]], "person person person person")
    example = replace(example, phrases=tuple(replace(p, things=None) for p in example.phrases))
    matches = match_phrases(example, 0.5, "union").matches
    assert [(m.segment, m.others) for m in matches] == [(0, (2,)), (1, (3,))]


def test_plural_phrases_may_be_left_out() -> None:
    with pytest.raises(RecordError, match="no-match"):
        match_phrases(crowd(None, [[0.9, 0.2, 0.3, 0.8]]), 0.5, "leave-out")


def test_the_transform_matches_each_example_by_itself() -> None:
    good, bad = with_similarity([[0.1, 0.9]]), with_similarity([[0.1, 0.2]])
    (batch,) = apply(MatchPhrases(0.5), [Batch(3, (good, bad))])
    assert batch.shard == 3
    assert batch.records[0] == match_phrases(good, 0.5)
    reject = batch.records[1]
    assert isinstance(reject, Reject)
    assert (reject.stage, reject.reason) == ("matches", Reason.NO_MATCH)
    assert reject.detail == "the best similarity is 0.200, the threshold 0.500 ('thing 0' with a 'thing')"


@pytest.mark.parametrize(
    ("things", "plurals", "min_area", "expected"),
    [
        (1, "union", 0.01, None),
        (1, "union", 0.006, [(0, ())]),
        (None, "union", 0.01, [(0, (1,))]),
        (None, "union", 0.012, None),
        (2, "union", 0.01, [(0, (1,))]),
        (None, "one", 0.01, None),
    ],
)
def test_small_segments_are_matched_only_where_together_they_are_large_enough(
    things: int | None, plurals: Plurals, min_area: float, expected: list[tuple[int, tuple[int, ...]]] | None
) -> None:
    herd = replace(
        make_example(size=(100, 10)),
        phrases=(replace(phrase("the cows", "cow"), things=things),),
        segments=(segment("cow", 6), segment("cow", 5)),
        similarity=((0.9, 0.8),),
    )
    if expected is None:
        with pytest.raises(RecordError):
            match_phrases(herd, 0.5, plurals, min_area)
    else:
        assert [(m.segment, m.others) for m in match_phrases(herd, 0.5, plurals, min_area).matches] == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (Names(), ["dog", "grass-merged"]),
        (Names(only=frozenset(["things"])), ["dog"]),
        (Names(only=frozenset(["things", "grass"])), ["dog", "grass-merged"]),
        (Names(only=frozenset(["puppy"])), ["dog"]),
        (Names(only=frozenset(["dog"]), never=frozenset(["puppy"])), []),
        (Names(never=frozenset(["grass-merged"])), ["dog"]),
    ],
)
def test_a_dataset_may_be_about_some_classes_and_nouns_only(names: Names, expected: list[str]) -> None:
    example = replace(
        make_example(size=(100, 10)),
        phrases=(phrase("A puppy"), phrase("the lawn")),
        segments=(segment("dog", 50), segment("grass-merged", 500, thing=False)),
        similarity=((0.9, 0.1), (0.1, 0.8)),
    )
    if expected:
        matches = match_phrases(example, 0.5, names=names).matches
        assert [example.segments[match.segment].label for match in matches] == expected
    else:
        with pytest.raises(RecordError):
            match_phrases(example, 0.5, names=names)
