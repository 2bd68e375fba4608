"""Where each phrase, or the label of each box, is seen in its picture: CLIPSeg's maps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import apache_beam as beam
from apache_beam.ml.inference.base import RunInference

from schemas.example import Example
from transforms.batch import Batch
from transforms.models.clipseg import ClipSeg, find_texts, load_clipseg
from transforms.models.handler import StepHandler
from transforms.text.synonyms import plain_label

STAGE = "confidence"


def texts_of(example: Example) -> list[str]:
    """What is looked for in a picture: the labels of its boxes, else the phrases of its caption."""
    if example.boxes:
        return [f"a {plain_label(box.label)}" for box in example.boxes]
    return [phrase.text for phrase in example.phrases]


def add_confidences(clipseg: ClipSeg, examples: Sequence[Example]) -> list[Example]:
    """Look for each example's texts in its picture, all examples together."""
    found = find_texts(clipseg, [e.pixels() for e in examples], [texts_of(e) for e in examples])
    return [replace(example, confidences=maps) for example, maps in zip(examples, found, strict=True)]


@dataclass(eq=False)
class FindTexts(beam.PTransform):
    """Fill `confidences`: PCollection[Batch] -> PCollection[Batch]. `checkpoint` names the CLIPSeg model."""

    checkpoint: str

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Run CLIPSeg over the batches."""
        handler = StepHandler(STAGE, partial(load_clipseg, self.checkpoint), add_confidences)
        return batches | "find texts" >> RunInference(handler)
