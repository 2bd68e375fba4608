"""How well each phrase names each segment: by CLIP on the segment's crop, by class label, or by both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import apache_beam as beam
import numpy as np
from numpy.typing import NDArray

from schemas.boxes import box_of, window
from schemas.example import Example, Segment
from transforms.batch import Batch, each
from transforms.models.settings import FILL, HOSTING, Hosting, Precision
from transforms.step import Step, map_batches, run_model
from transforms.text.labels import label_similarity
from transforms.text.synonyms import plain_label

if TYPE_CHECKING:
    from transforms.models.clip import Clip

STAGE = "similarity"

Similarity = Literal["clip", "clip-label", "label"]


def masked_crop(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Cut a segment out of `image` [H, W, 3] uint8: a square around `mask` [H, W] bool, filled with `FILL` outside it.

    In a square, the segment keeps its proportions when CLIP's preprocessing resizes it. CLIP's crops are made on its
    device, by `transforms.models.clip.embed_segments`; this is what they are.

    Raises:
        ValueError: the mask is empty.
    """
    box = box_of(mask)
    _, _, width, height = box
    if not width:
        raise ValueError("an empty mask has no crop")
    side = max(height, width)
    crop = np.full((side, side, 3), FILL, np.uint8)
    y, x = (side - height) // 2, (side - width) // 2
    inside = mask[window(box)]
    crop[y : y + height, x : x + width][inside] = image[window(box)][inside]
    return crop


def add_clip_similarity(clip: "Clip", examples: Sequence[Example], with_labels: bool) -> list[Example]:
    """Fill `similarity` with the cosine of each phrase and each segment's crop.

    With `with_labels` it is multiplied by the cosine of phrase and class name, as FastComposer does (section 5.1; there
    with a sentence encoder, here with CLIP's own text tower). Negative cosines count as 0 in the product, so that two
    of them do not make a positive one. All crops, and all texts, go through the model in one batch.
    """
    from transforms.models.clip import embed_segments, embed_texts

    phrases = [phrase.text for e in examples for phrase in e.phrases]
    labels = [_label_text(segment) for e in examples for segment in e.segments] if with_labels else []
    names = list(dict.fromkeys([*phrases, *labels]))
    place = {name: i for i, name in enumerate(names)}
    masks = [[segment.mask for segment in e.segments] for e in examples]
    images, texts = embed_segments(clip, [e.pixels() for e in examples], masks), embed_texts(clip, names)
    scored = []
    start = 0
    for example in examples:
        stop = start + len(example.segments)
        text = texts[[place[phrase.text] for phrase in example.phrases]]
        scores = text @ images[start:stop].T
        if with_labels:
            label = texts[[place[_label_text(segment)] for segment in example.segments]]
            scores = np.maximum(scores, 0) * np.maximum(text @ label.T, 0)
        scored.append(_with_similarity(example, scores))
        start = stop
    return scored


def _label_text(segment: Segment) -> str:
    """The class of a segment as a caption would name it."""
    return f"a {plain_label(segment.label)}"


def add_label_similarity(example: Example) -> Example:
    """Fill `similarity` from head nouns and class names alone."""
    return _with_similarity(example, label_similarity(example.phrases, example.segments))


def _with_similarity(example: Example, scores: NDArray[np.floating]) -> Example:
    rows = tuple(tuple(round(float(score), 4) for score in row) for row in scores)
    return replace(example, similarity=rows)


def _load(checkpoint: str, precision: Precision) -> "Clip":
    from transforms.models.clip import load_clip

    return load_clip(checkpoint, precision)


@dataclass(eq=False)
class ScoreSimilarity(Step):
    """Fill `similarity` from phrases and segments.

    `checkpoint` names the CLIP model; the similarity "label" needs none.
    """

    similarity: Similarity
    checkpoint: str
    hosting: Hosting = HOSTING

    def checkpoints(self) -> Mapping[str, str]:
        """CLIP, unless labels are compared."""
        return {} if self.similarity == "label" else {"clip": self.checkpoint}

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Run CLIP over the batches, or compare labels."""
        if self.similarity == "label":
            return map_batches(batches, STAGE, each(add_label_similarity))
        step = partial(add_clip_similarity, with_labels=self.similarity == "clip-label")
        return run_model(batches, STAGE, partial(_load, self.checkpoint, self.hosting.precision), step, self.hosting)
