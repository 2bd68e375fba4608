"""Segments as one map of numbers."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.example import Segment
from schemas.maps import MAX_SEGMENTS


def number_segments(segments: Sequence[Segment], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Draw segments into one map, smaller ones in front of larger ones.

    Args:
        segments: of which those beyond `MAX_SEGMENTS` are left out.
        size: (height, width) of the map.

    Returns:
        [H, W] uint8: at each pixel the number of its segment, from 1, or 0 for none.
    """
    numbers = np.zeros(size, np.uint8)
    some = segments[:MAX_SEGMENTS]
    for index in sorted(range(len(some)), key=lambda i: (-some[i].area, i)):
        numbers[some[index].mask.to_array()] = index + 1
    return numbers
