"""The measures of `subjectloom evaluate`, by hand; tests/test_recipes.py runs it for every recipe."""

import numpy as np
import pytest

from jobs.evaluate import identity, interval

X, Y, Z = np.eye(3, dtype=np.float32)
BETWEEN = np.array([0.6, 0.8, 0], np.float32)


@pytest.mark.parametrize(
    ("references", "things", "expected"),
    [
        ([X], [Y, BETWEEN], 0.6),
        ([X, Y], [X, BETWEEN], 0.8),
        # X takes itself first, so that Y is left with Z.
        ([X, Y], [X, Z], 0.0),
        ([X, Y], [BETWEEN, Z, X], 0.8),
        ([X, Y], [X], 0.0),
        ([X], [-X], -1.0),
    ],
)
def test_identity_is_the_lowest_of_a_one_to_one_match(
    references: list[np.ndarray], things: list[np.ndarray], expected: float
) -> None:
    assert identity(np.array(references), np.array(things)) == pytest.approx(expected, abs=1e-6)


def test_without_references_there_is_no_identity() -> None:
    assert np.isnan(identity(np.zeros((0, 3), np.float32), np.array([X])))


def test_the_interval_is_that_of_the_mean() -> None:
    """For many normal values it is the mean and 1.96 standard errors on both sides."""
    values = np.random.default_rng(1).normal(3, 2, 400)
    mean, low, high = interval(np.append(values, np.nan))
    assert mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / 20
    assert [mean - low, high - mean] == pytest.approx([half, half], rel=0.1)
    assert interval(np.array([0.5, 0.5])) == (0.5, 0.5, 0.5)
