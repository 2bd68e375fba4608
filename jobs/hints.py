"""Stored maps as pictures that people and trainers look at, with the thresholds that their authors use."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.maps import STROKE, canny_edges, color_segments, decode_map, min_max
from schemas.samples.mapped import Record
from schemas.shards import Sample

CANNY = (100, 200)
"""Thresholds of ControlNet's annotator."""
LINE = 0.02
"""Shortest straight line that is shown, as a share of the diagonal (our choice)."""


def hint_of(kind: str, sample: Sample, record: Record) -> NDArray[np.uint8]:
    """Return what a trainer is shown of a stored map, [H, W, 3] uint8 RGB.

    Canny maps and scribbles are thresholded, depth is stretched to its range, segments have the colours of their
    classes; normals and other maps are as they are stored.

    Raises:
        RecordError: the map cannot be decoded.
    """
    pixels: NDArray[Any] = decode_map(kind, sample.members[f"{kind}.png"])
    if kind == "canny":
        pixels = canny_edges(pixels, *CANNY) * np.uint8(255)
    elif kind == "scribble":
        pixels = (pixels >= STROKE * 255) * np.uint8(255)
    elif kind == "lines":
        pixels = (pixels >= LINE * 255) * np.uint8(255)
    elif kind == "depth":
        pixels = np.rint(min_max(pixels) * 255).astype(np.uint8)
    elif kind == "segmentation":
        pixels = color_segments(pixels, _colors(record))
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def _colors(record: Record) -> list[tuple[int, int, int]]:
    """The colours of the segments by number; of numbers that no segment has, black."""
    colors: Mapping[int, tuple[int, int, int]] = {segment.id: segment.color for segment in record.segments or ()}
    return [colors.get(number, (0, 0, 0)) for number in range(1, max(colors, default=0) + 1)]
