"""Where in its picture each phrase, or the label of each box, is found: heatmaps of CLIPSeg."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import apache_beam as beam

from schemas.example import Example
from transforms.batch import Batch
from transforms.models.settings import HOSTING, Hosting, Precision
from transforms.step import Step, run_model
from transforms.text.synonyms import plain_label

if TYPE_CHECKING:
    from transforms.models.clipseg import ClipSeg

STAGE = "confidence"
"""The step's name in rejects and in the seconds of `dataset.json`, where datasets already written have it."""


def texts_of(example: Example) -> list[str]:
    """The texts to look for in a picture: the labels of its boxes, or if it has none, the phrases of its caption."""
    if example.boxes:
        return [f"a {plain_label(box.label)}" for box in example.boxes]
    return [phrase.text for phrase in example.phrases]


def add_heatmaps(clipseg: "ClipSeg", examples: Sequence[Example]) -> list[Example]:
    """Find each example's texts in its picture, all examples in one batch."""
    from transforms.models.clipseg import find_heatmaps

    found = find_heatmaps(clipseg, [e.pixels() for e in examples], [texts_of(e) for e in examples])
    return [replace(example, heatmaps=maps) for example, maps in zip(examples, found, strict=True)]


def _load(checkpoint: str, precision: Precision) -> "ClipSeg":
    from transforms.models.clipseg import load_clipseg

    return load_clipseg(checkpoint, precision)


@dataclass(eq=False)
class FindHeatmaps(Step):
    """Fill `heatmaps`; `checkpoint` names the CLIPSeg model."""

    checkpoint: str
    hosting: Hosting = HOSTING

    def checkpoints(self) -> Mapping[str, str]:
        """CLIPSeg."""
        return {"clipseg": self.checkpoint}

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Run CLIPSeg over the batches."""
        load = partial(_load, self.checkpoint, self.hosting.precision)
        return run_model(batches, STAGE, load, add_heatmaps, self.hosting)
