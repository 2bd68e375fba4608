"""An evaluation that needs no model, for tests of what is written of one."""

import numpy as np

from jobs.evaluate import Drawn, Evaluation
from jobs.evaluate_measures import Judged, Real, Score


def fake_evaluation() -> Evaluation:
    """Three drawn pictures; identity lies halfway between its ends, and the second picture has none."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(3)]
    scores = [
        Score("identity", "another", -0.1, -0.2, 0.0),
        Score("identity", "same", 0.9, 0.8, 1.0),
        Score("identity", "drawn", 0.4, 0.3, 0.5),
        Score("clip-t", "drawn", -0.02, -0.05, 0.01),
    ]
    drawn = [
        Drawn(
            Judged(f"key{i}", picture, f"a <b>ball</b> {i}", Real([pictures[0]], [[]])),
            [pictures[1]],
            {"identity": value},
        )
        for i, (picture, value) in enumerate(zip(pictures, (0.25, float("nan"), -0.5), strict=True))
    ]
    return Evaluation("mip-adapter", scores, drawn)
