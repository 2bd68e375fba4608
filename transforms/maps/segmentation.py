"""Segments as one map of numbers."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.example import Segment
from schemas.masks import MAX_LABELS, label_map


def number_segments(segments: Sequence[Segment], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Draw segments into one map, smaller ones in front of larger ones.

    Args:
        segments: of which those beyond `MAX_LABELS` are left out.
        size: (height, width) of the map.

    Returns:
        [H, W] uint8: at each pixel the number of its segment, from 1, or 0 for none.
    """
    if not segments:
        return np.zeros(size, np.uint8)
    return label_map([segment.mask.to_array() for segment in segments[:MAX_LABELS]])
