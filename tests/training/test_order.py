import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.order import BLOCK, Group, Order, epoch_order, slots_of

SIZES = st.lists(st.integers(0, 100), min_size=1, max_size=6).filter(any)


def displacement(order: NDArray[np.int64]) -> float:
    return float(np.abs(order - np.arange(len(order))).mean())


@given(SIZES, st.integers(1, 300), st.integers(0, 9))
def test_an_epoch_is_a_permutation(sizes: list[int], buffer: int, seed: int) -> None:
    order = epoch_order(sizes, buffer, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(sum(sizes)))


@given(
    groups=st.lists(st.tuples(SIZES, st.integers(1, 4)), min_size=1, max_size=3),
    buffer=st.integers(1, 50),
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=12),
)
def test_the_order_does_not_depend_on_how_it_is_divided(
    groups: list[tuple[list[int], int]], buffer: int, cuts: list[int]
) -> None:
    made = tuple(Group(tuple(sizes), slots) for sizes, slots in groups)
    whole = Order(made, 3, buffer).places(0, sum(cuts))
    parts = [Order(made, 3, buffer).places(sum(cuts[:i]), count) for i, count in enumerate(cuts)]
    assert [place for part in parts for place in part] == whole


@settings(max_examples=25)
@given(SIZES, st.integers(1, 50))
def test_every_sample_comes_once_in_each_epoch(sizes: list[int], buffer: int) -> None:
    total = sum(sizes)
    places = Order((Group(tuple(sizes)),), 0, buffer).places(0, 3 * total)
    for epoch in range(3):
        assert sorted(places[epoch * total : (epoch + 1) * total]) == [(epoch, sample) for sample in range(total)]


def test_each_epoch_and_seed_has_its_own_order() -> None:
    orders = [Order((Group((50,)),), seed, 10).places(first, 50) for seed in (0, 1) for first in (0, 50)]
    assert len({tuple(place.sample for place in places) for places in orders}) == 4


@pytest.mark.parametrize("buffer", [1, 500, 10_000])
def test_samples_of_one_sorted_tar_are_moved_far(buffer: int) -> None:
    """A uniform permutation of n moves a sample by n / 3 on average."""
    order = epoch_order([10_000], buffer, np.random.default_rng(0))
    assert displacement(order) == pytest.approx(10_000 / 3, rel=0.05)


def test_the_tars_of_a_dataset_are_interleaved() -> None:
    """The first tenth of an epoch comes from all of ten tars, in about equal parts."""
    order = epoch_order([1000] * 10, 500, np.random.default_rng(0))
    assert np.bincount(order[:1000] // 1000, minlength=10).min() >= 30


def test_a_buffer_reads_from_few_places() -> None:
    order = epoch_order([1000] * 10, 4 * BLOCK, np.random.default_rng(0))
    shards = [len(set(chunk // BLOCK)) for chunk in np.split(order[: 16 * 4 * BLOCK], 16)]
    assert max(shards) <= 10  # blocks do not end where buffers do, and the last one of a tar is short


def test_a_larger_buffer_mixes_neighbours_further_apart() -> None:
    """Neighbours in a tar, of blocks of 32, are about a third of the buffer apart."""
    for buffer in (320, 3200):
        order = epoch_order([10_000], buffer, np.random.default_rng(0))
        place = np.argsort(order)
        within = np.arange(9999) % BLOCK != BLOCK - 1
        apart = float(np.abs(np.diff(place))[within].mean())
        assert apart == pytest.approx(buffer / 3, rel=0.15)


def test_datasets_are_mixed_by_weight_in_every_cycle() -> None:
    order = Order((Group((5, 2), 7), Group((1000,), 3)), 0, 100)
    places = order.places(0, 200)
    for cycle in range(20):
        samples = [place.sample for place in places[cycle * 10 : cycle * 10 + 10]]
        assert sum(sample < 7 for sample in samples) == 7
    small = [place for place in places if place.sample < 7]
    assert sorted(small[:14]) == [(epoch, sample) for epoch in range(2) for sample in range(7)]
    large = [place.sample for place in places if place.sample >= 7]
    assert len(set(large)) == 60
    assert max(large) < 1007
    patterns = {tuple(place.sample < 7 for place in places[i : i + 10]) for i in range(0, 200, 10)}
    assert len(patterns) > 10  # not in one fixed pattern


@pytest.mark.parametrize(
    ("weights", "slots"),
    [
        ((0.7, 0.3), (7, 3)),
        ((2, 2), (1, 1)),
        ((5,), (1,)),
        ((1, 1, 1), (334, 333, 333)),
        ((1, 2, 1), (1, 2, 1)),
        ((1, 1e-5), (1, 0)),
    ],
)
def test_weights_are_rounded_to_parts_of_a_cycle(weights: tuple[float, ...], slots: tuple[int, ...]) -> None:
    assert slots_of(weights) == slots
