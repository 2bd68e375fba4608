"""Measures of how far pictures obey their maps, by hand."""

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.map_measures import edge_f1, f1
from tests.training.maps import mapped_example


def column(*places: int, rows: int = 8) -> NDArray[np.bool_]:
    """Edges in the first `rows` of 8 rows, in these of 16 columns."""
    edges = np.zeros((8, 16), bool)
    edges[:rows, list(places)] = True
    return edges


@pytest.mark.parametrize(
    ("expected", "found", "value"),
    [
        (column(4), column(4), 1.0),
        (column(4), column(5), 1.0),  # a pixel aside
        (column(4), column(6), 0.0),
        (column(4), column(4, 10), 2 / 3),  # recall 1, precision 1/2
        (column(4), column(4, rows=3), 2 / 3),  # 3 of 8 and the next one beside: recall 1/2, precision 1
        (column(), column(), 1.0),
        (column(), column(4), 0.0),
    ],
)
def test_f1_of_edges(expected: NDArray[np.bool_], found: NDArray[np.bool_], value: float) -> None:
    assert f1(expected, found) == pytest.approx(value)


def test_pictures_have_their_own_edges() -> None:
    picture = mapped_example().pixels()
    given = type("Given", (), {"pictures": picture[None]})
    assert edge_f1(given, picture[None]) == 1  # type: ignore[arg-type]
    assert edge_f1(given, np.zeros_like(picture)[None]) == 0  # type: ignore[arg-type]
