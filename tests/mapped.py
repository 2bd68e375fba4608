"""Examples with condition maps, made without a model."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from schemas.example import Example, Segment
from schemas.images import encode_jpeg
from schemas.maps import Person, encode_png, to_pixels
from schemas.masks import Mask
from tests.datasets import example
from transforms.maps.draw import Drawing, draw_maps

STANDING = [
    (32, 8), (34, 6), (30, 6), (37, 7), (27, 7), (40, 16), (24, 16), (44, 24), (20, 24), (46, 32), (18, 32), (37, 32),
    (27, 32), (37, 40), (27, 40), (37, 46), (27, 46),
]  # fmt: skip
"""A person's key points in a picture of 64 x 48 pixels, seen from the front: the left is on the right."""


def person(score: float = 1.0) -> Person:
    """Someone whose points are all seen with one score."""
    return Person(tuple((float(x), float(y), score) for x, y in STANDING))


def picture(seed: int = 0) -> bytes:
    """A JPEG of 64 x 48 pixels: a bright rectangle on a dark ground."""
    pixels = np.full((48, 64, 3), 60 + seed % 20, np.uint8)
    pixels[10:40, 16:50] = (200, 120, 40)
    return encode_jpeg(pixels)


def bare(key: str = "k") -> Example:
    """An example before its maps: two segments, a person, a depth map from the source."""
    made = example(key, (("a dog", (4, 6, 20, 16)), ("a cat", (30, 10, 20, 20))))
    depth = to_pixels("depth", np.mgrid[0:48, 0:64][0] / 48, (0.0, 1.0))
    return replace(
        made,
        image=picture(sum(key.encode())),
        matches=(),
        people=(person(),),
        given={"depth": encode_png(depth)},
        _pixels=None,
    )


def mapped(key: str = "k", maps: Sequence[str] = ("canny", "depth", "pose", "segmentation")) -> Example:
    """An example with maps, a palette and an embedding."""
    made = draw_maps(bare(key), maps, Drawing())
    palette = np.arange(1, 181, dtype=np.float32)
    embedding = np.ones(8, np.float32) / np.sqrt(np.float32(8))
    return replace(made, palette=palette / palette.sum(), embedding=embedding)


def box_segment(label: str, box: tuple[int, int, int, int], size: tuple[int, int] = (48, 64)) -> Segment:
    """A segment that fills a box [x, y, w, h] in a picture of `size` (height, width)."""
    pixels = np.zeros(size, bool)
    x, y, w, h = box
    pixels[y : y + h, x : x + w] = True
    return Segment(label, 0.9, Mask.from_array(pixels))
