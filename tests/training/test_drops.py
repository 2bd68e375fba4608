import numpy as np
import pytest

from training.drops import Drop, Drops, DropTable, draw, drop_all, keep_all

CONDITIONS = ("caption", "sketch", "depth")


def shares(table: DropTable, count: int = 20_000) -> dict[frozenset[str], float]:
    """The share of draws that drop each set of conditions."""
    rng = np.random.default_rng(0)
    drawn = [draw(table, "sample", rng) for _ in range(count)]
    return {dropped: drawn.count(dropped) / count for dropped in set(drawn)}


def test_at_most_one_exclusive_drop_happens() -> None:
    table: DropTable = {"sample": Drops(exclusive=(Drop(0.1, frozenset("a")), Drop(0.3, frozenset("bc"))))}
    expected = {frozenset("a"): 0.1, frozenset("bc"): 0.3, frozenset[str](): 0.6}
    assert shares(table) == pytest.approx(expected, abs=0.01)


def test_a_single_random_number_selects_the_exclusive_drop() -> None:
    """The first drop happens below 0.1, the second below 0.1 + 0.3, otherwise none."""
    table: DropTable = {"sample": Drops(exclusive=(Drop(0.1, frozenset("a")), Drop(0.3, frozenset("b"))))}
    for seed in range(50):
        rng, reference = np.random.default_rng(seed), np.random.default_rng(seed)
        number = reference.random()
        assert draw(table, "sample", rng) == frozenset("a" if number < 0.1 else "b" if number < 0.4 else "")
        assert rng.random() == reference.random()  # no second number is drawn


def test_independent_drops_can_happen_together() -> None:
    table: DropTable = {"sample": Drops(independent=(Drop(0.5, frozenset("a")), Drop(0.2, frozenset("b"))))}
    expected = {frozenset("a"): 0.4, frozenset("b"): 0.1, frozenset("ab"): 0.1, frozenset[str](): 0.4}
    assert shares(table) == pytest.approx(expected, abs=0.012)


def test_drop_all_and_keep_all_exclude_independent_drops() -> None:
    """Composer's policy: drop all with probability 0.1, nothing with 0.1, otherwise each with 0.5."""
    half = tuple(Drop(0.5, frozenset({name})) for name in CONDITIONS)
    table: DropTable = {"sample": Drops((drop_all(0.1, CONDITIONS), keep_all(0.1)), half)}
    found = shares(table)
    assert len(found) == 8
    assert found[frozenset(CONDITIONS)] == pytest.approx(0.1 + 0.8 / 8, abs=0.012)
    assert found[frozenset()] == pytest.approx(0.1 + 0.8 / 8, abs=0.012)
    assert found[frozenset({"depth"})] == pytest.approx(0.8 / 8, abs=0.012)


def test_a_granularity_without_drops_uses_no_random_numbers() -> None:
    rng = np.random.default_rng(0)
    assert draw({"sample": Drops((drop_all(1.0, CONDITIONS),))}, "object", rng) == frozenset()
    assert rng.random() == np.random.default_rng(0).random()


@pytest.mark.parametrize(("p", "dropped"), [(0.0, frozenset[str]()), (1.0, frozenset("a"))])
def test_probabilities_of_zero_and_one(p: float, dropped: frozenset[str]) -> None:
    for drops in (Drops(exclusive=(Drop(p, frozenset("a")),)), Drops(independent=(Drop(p, frozenset("a")),))):
        assert shares({"sample": drops}, 500) == {dropped: 1.0}


class Zeros:
    """A stand-in for a generator that always draws the smallest number."""

    def random(self) -> float:
        return 0.0


def test_a_drop_with_probability_0_never_happens() -> None:
    for drops in (Drops(exclusive=(Drop(0.0, frozenset("a")),)), Drops(independent=(Drop(0.0, frozenset("a")),))):
        assert draw({"sample": drops}, "sample", Zeros()) == frozenset()  # type: ignore[arg-type]
