"""Timesteps: uniform as ever, cubic by its distribution."""

import numpy as np

from training.timesteps import draw_timesteps


def test_uniform_timesteps_are_the_generator_s_own_integers() -> None:
    drawn = draw_timesteps("uniform", 50, 1000, np.random.default_rng(3))
    np.testing.assert_array_equal(drawn, np.random.default_rng(3).integers(0, 1000, 50))


def test_cubic_timesteps_have_the_distribution_of_one_minus_u_cubed() -> None:
    """P(t < n) = 1 - (1 - n / T)^(1/3), by hand for T = 1000: .0345 below 100, .2063 below 500, .5358 below 900."""
    count = 100_000
    drawn = draw_timesteps("cubic", count, 1000, np.random.default_rng(0))
    assert drawn.dtype == np.int64
    assert (drawn.min() >= 0, drawn.max()) == (True, 999)
    for below, share in ((100, 0.0345), (500, 0.2063), (900, 0.5358), (999, 0.9)):
        assert abs((drawn < below).mean() - share) < 3 * (share * (1 - share) / count) ** 0.5 + 5e-5


class Zeros:
    """A stand-in for a generator that always draws 0, for which (1 - u^3) is all timesteps."""

    def random(self, count: int) -> np.ndarray:
        return np.zeros(count)


def test_the_largest_timestep_is_within_the_schedule() -> None:
    assert draw_timesteps("cubic", 2, 1000, Zeros()).tolist() == [999, 999]  # type: ignore[arg-type]
