from collections import Counter
from itertools import product

import numpy as np
import pytest

from training.configs import composer, controlnet, t2i_adapter
from training.drops import Drop, Drops, DropTable, draw, drop_all, keep_all
from training.recipes import composer as composer_recipe
from training.recipes import controlnet as controlnet_recipe
from training.recipes import t2i_adapter as adapter_recipe

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


def distribution(drops: Drops) -> dict[frozenset[str], float]:
    """The exact probability of each set of dropped conditions: every outcome of every draw is enumerated."""
    found: Counter[frozenset[str]] = Counter()
    for alternative in drops.exclusive:
        found[alternative.conditions] += alternative.p  # type: ignore[assignment]
    rest = 1 - sum(alternative.p for alternative in drops.exclusive)
    for happened in product((False, True), repeat=len(drops.independent)):
        pairs = list(zip(drops.independent, happened, strict=True))
        p = rest * float(np.prod([drop.p if yes else 1 - drop.p for drop, yes in pairs]))
        found[frozenset[str]().union(*(drop.conditions for drop, yes in pairs if yes))] += p  # type: ignore[assignment]
    return {dropped: p for dropped, p in found.items() if p}


def kept(shares: dict[frozenset[str], float], condition: str) -> float:
    return sum(share for dropped, share in shares.items() if condition not in dropped)


def test_composer_s_rates_are_those_of_the_paper() -> None:
    """Kept: .1 + .8 x .5; intensity .1 + .8 x .3; all eight dropped .1 + .8 x .5^7 x .7. VideoComposer's constants."""
    table = composer_recipe.drop_table(composer.Config())
    exact, count = distribution(table["sample"]), 20_000
    assert sum(exact.values()) == pytest.approx(1)
    everything = frozenset(composer.CONDITIONS)
    expected = {name: 0.34 if name == "intensity" else 0.5 for name in composer.CONDITIONS}
    assert {name: kept(exact, name) for name in composer.CONDITIONS} == pytest.approx(expected)
    assert exact[everything] == pytest.approx(0.1 + 0.8 * 0.5**7 * 0.7)
    assert exact[everything] == pytest.approx(0.104, abs=5e-4)
    assert exact[frozenset()] == pytest.approx(0.1 + 0.8 * 0.5**7 * 0.3)
    drawn = shares(table, count)
    for name, share in expected.items():
        assert abs(kept(drawn, name) - share) < 3 * (share * (1 - share) / count) ** 0.5
    assert abs(drawn[everything] - 0.104375) < 3 * (0.104 * 0.896 / count) ** 0.5
    assert set(composer_recipe.drop_table(composer.Config().plain())["sample"].independent) == {
        Drop(0.0, frozenset({name})) for name in composer.CONDITIONS
    }


def test_coadapter_drops_maps_by_batch_and_captions_by_sample() -> None:
    """Each of three maps is kept in .1 + .8 x .5 of the batches, none in .1 + .8 / 8."""
    maps = ("canny", "sketch", "depth")
    table, count = adapter_recipe.drop_table(t2i_adapter.Config(maps=maps, empty_prompts=0.5)), 20_000
    exact = distribution(table["batch"])
    assert {name: kept(exact, name) for name in maps} == pytest.approx(dict.fromkeys(maps, 0.5))
    assert exact[frozenset(maps)] == exact[frozenset()] == pytest.approx(0.2)
    rng = np.random.default_rng(0)
    drawn = Counter(draw(table, "batch", rng) for _ in range(count))
    assert len(drawn) == 8
    for dropped, p in exact.items():
        assert abs(drawn[dropped] / count - p) < 3 * (p * (1 - p) / count) ** 0.5
    assert distribution(table["sample"]) == {frozenset({"caption"}): 0.5, frozenset(): 0.5}
    assert "batch" not in adapter_recipe.drop_table(t2i_adapter.Config())  # a single adapter always has its map


def test_half_of_controlnet_s_captions_are_dropped() -> None:
    half = distribution(controlnet_recipe.drop_table(controlnet.Config())["sample"])
    assert half == {frozenset({"caption"}): 0.5, frozenset(): 0.5}
    none = distribution(controlnet_recipe.drop_table(controlnet.Config(empty_prompts=0.0))["sample"])
    assert none == {frozenset(): 1.0}
