"""Examples of MIP-Adapter: pictures whose objects have boxes, masks and a quality."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.example import Example, Object, Phrase, Quality, Source
from schemas.masks import BBox, Mask
from tests.datasets import jpeg

TWO = (("a red dog", (20, 20, 60, 70)), ("a cat", (90, 30, 50, 60)))
"""Two objects that fit together in a square of 120 pixels."""


def disc_mask(width: int, height: int, box: BBox) -> NDArray[np.bool_]:
    """[height, width] bool: the ellipse that touches the four sides of `box`, [x, y, w, h] in pixels."""
    x, y, w, h = box
    rows, columns = np.mgrid[:height, :width] + 0.5
    return np.asarray(((columns - x - w / 2) / (w / 2)) ** 2 + ((rows - y - h / 2) / (h / 2)) ** 2 <= 1)


def example_of_objects(
    key: str,
    objects: Sequence[tuple[str, BBox]] = TWO,
    size: tuple[int, int] = (160, 120),
    masks: Sequence[NDArray[np.bool_]] | None = None,
    scores: Sequence[float] = (),
    similarity: float = 0.5,
    license: str = "CC0",  # noqa: A002
) -> Example:
    """An example of `size` (width, height) whose objects are ellipses in their boxes, unless `masks` are given.

    The caption joins the phrases with " and ". Each object has the score 0.9, unless `scores` are given, and the
    similarity `similarity`.
    """
    width, height = size
    phrases: list[Phrase] = []
    annotated: list[Object] = []
    start = 0
    for index, (text, box) in enumerate(objects):
        end = start + len(text)
        phrases.append(Phrase(text, start, end, text.split()[-1], (start, end)))
        mask = disc_mask(width, height, box) if masks is None else masks[index]
        score = scores[index] if scores else 0.9
        annotated.append(Object(index, box, score, Mask.from_array(mask), similarity))
        start = end + len(" and ")
    caption = " and ".join(text for text, _ in objects)
    pair = -0.25 if len(annotated) > 1 else 0.0
    return Example(
        key=key,
        image=jpeg(width, height, seed=sum(key.encode())),
        width=width,
        height=height,
        caption=caption,
        source=Source(f"pictures/{key}.jpg", license),
        source_caption=caption,
        phrases=tuple(phrases),
        objects=tuple(annotated),
        quality=Quality(similarity, pair, similarity + pair),
        phash=sum(key.encode()),
    )
