"""Examples that hold only what a test needs."""

import io
from dataclasses import replace

import numpy as np
from PIL import Image

from schemas.example import Example, Phrase, Segment, Source
from schemas.masks import Mask


def make_example(key: str = "k", caption: str = "a dog", size: tuple[int, int] = (16, 12)) -> Example:
    """An example of a grey picture, `size` (width, height) pixels, without annotations."""
    stream = io.BytesIO()
    Image.new("RGB", size, (90, 90, 90)).save(stream, "JPEG")
    return Example(key, stream.getvalue(), *size, caption, Source(f"mem://{key}"), source_caption=caption)


def phrase(text: str, root: str | None = None, start: int = 0) -> Phrase:
    """A phrase whose head noun is its last word unless `root` is given."""
    return Phrase(text, start, start + len(text), root or text.rsplit(maxsplit=1)[-1], (start, start + len(text)))


def segment(label: str, area: int = 4, *, thing: bool = True) -> Segment:
    """A segment of `area` pixels in a picture of 10 x 100."""
    mask = np.zeros((10, 100), bool)
    mask.flat[:area] = True
    return Segment(label, 1.0, Mask.from_array(mask), thing)


def with_similarity(rows: list[list[float]]) -> Example:
    """An example of as many phrases and segments as the matrix has rows and columns."""
    similarity = tuple(map(tuple, rows))
    phrases = tuple(phrase(f"thing {p}") for p in range(len(rows)))
    segments = tuple(segment("thing") for _ in (rows[0] if rows else ()))
    return replace(make_example(), phrases=phrases, segments=segments, similarity=similarity)
