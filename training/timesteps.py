"""How the timesteps of a training step are drawn."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

TimeSampling = Literal["uniform", "cubic"]
"""All timesteps alike, or noisy ones more often."""


def draw_timesteps(sampling: TimeSampling, count: int, timesteps: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw `count` timesteps of a schedule of `timesteps`: [count] int64 in [0, timesteps).

    Cubic: (1 - u^3) of all timesteps for u uniform in [0, 1), rounded down. Mou et al. (2023), "T2I-Adapter", on
    non-uniform sampling: where things are is decided at the noisy timesteps. Of 1000, the last one is drawn with
    probability 0.1, the first 500 together with 0.21.
    """
    if sampling == "uniform":
        return rng.integers(0, timesteps, count)
    drawn = np.floor((1 - rng.random(count) ** 3) * timesteps).astype(np.int64)
    return np.minimum(drawn, timesteps - 1)
