"""GLIGEN's examples with embeddings that no model made."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from schemas.boxes import BBox
from schemas.example import Example, Grounded
from tests.datasets import example

WIDTH = 8
"""Of the embeddings."""
NORM = 2.0


def grounded_example(
    key: str,
    boxes: Sequence[tuple[str, BBox]] = (("a dog", (4, 6, 20, 16)), ("a cat", (40, 10, 20, 30))),
    size: tuple[int, int] = (64, 48),
    *,
    detection: bool = False,
) -> Example:
    """An example with a box for each text; with `detection`, texts are class names and there is no caption."""
    plain = example(key, boxes, size)
    rng = np.random.default_rng(sum(key.encode()))
    values = {name: rng.standard_normal((len(boxes), WIDTH)).astype(np.float32) for name in ("text_before", "y", "z")}
    unit = {name: values[name] / np.linalg.norm(values[name], axis=1, keepdims=True) for name in ("y", "z")}
    grounded = tuple(
        Grounded(phrase.text, () if detection else ((phrase.start, phrase.end),), box, 0.5 + 0.1 * i)
        for i, (phrase, (_, box)) in enumerate(zip(plain.phrases, boxes, strict=True))
    )
    return replace(
        plain,
        caption="" if detection else plain.caption,
        grounded=grounded,
        embeddings={
            "text_before": values["text_before"],
            "text_after": unit["y"],
            "image_after": unit["z"],
            "image_reprojected": np.float32(NORM) * unit["z"],
        },
    )
