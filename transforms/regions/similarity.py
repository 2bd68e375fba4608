"""How well each phrase names each segment: by CLIP on the segment's crop, by class label, or by both."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference.base import RunInference
from numpy.typing import NDArray

from schemas.example import Example, Segment
from transforms.batch import Batch, advance, each
from transforms.models.clip import Clip, embed_images, embed_texts, load_clip
from transforms.models.handler import StepHandler
from transforms.text.labels import label_similarity
from transforms.text.synonyms import plain_label

STAGE = "similarity"

FILL = (122, 116, 104)
"""RGB outside the mask: the mean that OpenAI's CLIP subtracts, so that the model sees zeros there."""

Similarity = Literal["clip", "clip-label", "label"]


def masked_crop(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Cut a segment out of `image` [H, W, 3]: a square around `mask` [H, W] bool, all else filled with `FILL`.

    The square keeps the segment's proportions when CLIP's own preprocessing makes it its input size.

    Raises:
        ValueError: the mask is empty.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        raise ValueError("an empty mask has no crop")
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    height, width = rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
    side = max(height, width)
    crop = np.full((side, side, 3), FILL, np.uint8)
    y, x = (side - height) // 2, (side - width) // 2
    inside = mask[window]
    crop[y : y + height, x : x + width][inside] = image[window][inside]
    return crop


def add_clip_similarity(clip: Clip, examples: Sequence[Example], with_labels: bool) -> list[Example]:
    """Compare phrases and segments of the examples: cosine of phrase and crop, each example its own matrix.

    `with_labels` multiplies it with the cosine of phrase and class name, as FastComposer does (section 5.1;
    there with a sentence encoder, here with CLIP's own text tower). Negative cosines count as 0 in the
    product: two wrongs must not make a right. All crops, and all texts, go through the model together.
    """
    crops = [masked_crop(e.pixels(), segment.mask.to_array()) for e in examples for segment in e.segments]
    phrases = [phrase.text for e in examples for phrase in e.phrases]
    labels = [_label_text(segment) for e in examples for segment in e.segments] if with_labels else []
    names = list(dict.fromkeys([*phrases, *labels]))
    place = {name: i for i, name in enumerate(names)}
    images, texts = embed_images(clip, crops), embed_texts(clip, names)
    compared = []
    start = 0
    for example in examples:
        stop = start + len(example.segments)
        text = texts[[place[phrase.text] for phrase in example.phrases]]
        scores = text @ images[start:stop].T
        if with_labels:
            label = texts[[place[_label_text(segment)] for segment in example.segments]]
            scores = np.maximum(scores, 0) * np.maximum(text @ label.T, 0)
        compared.append(_with_similarity(example, scores))
        start = stop
    return compared


def _label_text(segment: Segment) -> str:
    """Name a segment's class as a caption would."""
    return f"a {plain_label(segment.label)}"


def add_label_similarity(example: Example) -> Example:
    """Compare phrases and segments by head noun and class name alone."""
    return _with_similarity(example, label_similarity(example.phrases, example.segments))


def _with_similarity(example: Example, scores: NDArray[np.floating]) -> Example:
    rows = tuple(tuple(round(float(score), 4) for score in row) for row in scores)
    return replace(example, similarity=rows)


@dataclass(eq=False)
class ScoreSimilarity(beam.PTransform):
    """Fill `similarity` from phrases and segments: PCollection[Batch] -> PCollection[Batch].

    `checkpoint` names the CLIP model; `label` needs none.
    """

    similarity: Similarity
    checkpoint: str

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Run CLIP over the batches, or compare labels."""
        if self.similarity == "label":
            return batches | "compare labels" >> beam.Map(_compare_labels)
        step = partial(add_clip_similarity, with_labels=self.similarity == "clip-label")
        return batches | "compare with CLIP" >> RunInference(
            StepHandler(STAGE, partial(load_clip, self.checkpoint), step)
        )


def _compare_labels(batch: Batch) -> Batch:
    return advance(batch, STAGE, each(add_label_similarity))
