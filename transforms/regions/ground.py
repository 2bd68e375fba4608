"""Where in a picture its phrases are: objects, each with a box and a mask.

With a detector, Grounding DINO finds a box for each phrase and SAM a mask in each box; if the source has masks, as
SA-1B has, the mask whose own box is most like the detected one is taken instead. Without a detector, the masks come
first, from the source or from SAM, and each phrase takes the mask that CLIP finds most similar
(`transforms.regions.similarity`, `transforms.regions.match`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import apache_beam as beam
import numpy as np

from schemas.boxes import BBox, from_corners, iou
from schemas.example import Example, Object
from schemas.masks import Mask
from transforms.batch import Batch, each
from transforms.models.settings import HOSTING, Hosting, Precision
from transforms.regions.match import greedy_match
from transforms.step import Step, map_batches, run_model

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

    from transforms.models.detector import Detections, Detector

STAGE = "grounding"
ALIKE = 0.7
"""IoU of a detected box and a mask's box from which they are the same thing (SAM's own bound for duplicates)."""


def choose_boxes(found: "Detections", threshold: float) -> list[tuple[int, BBox, float]]:
    """Assign boxes to phrases one to one, highest score first: (phrase, box in whole pixels, score).

    Equal scores are taken in the order of phrase, then box. Scores below `threshold` and boxes of less than a pixel
    are never taken.
    """
    left, top = np.floor(found.corners[:, 0]).astype(int), np.floor(found.corners[:, 1]).astype(int)
    right, bottom = np.ceil(found.corners[:, 2]).astype(int), np.ceil(found.corners[:, 3]).astype(int)
    real = (right > left) & (bottom > top)
    matches = greedy_match(np.where(real, found.scores, -np.inf), threshold)
    return [
        (match.phrase, from_corners((int(left[b]), int(top[b]), int(right[b]), int(bottom[b]))), match.score)
        for match in matches
        for b in [match.segment]
    ]


def add_objects(
    detector: "Detector", sam: "Callable[[], Sam] | None", examples: Sequence[Example], threshold: float
) -> list[Example]:
    """Detect the phrases of the examples in one batch; the masks are the examples' own segments, or SAM's."""
    from transforms.models.detector import detect_phrases

    texts = [[phrase.text for phrase in example.phrases] for example in examples]
    detected = detect_phrases(detector, [example.pixels() for example in examples], texts)
    chosen = [choose_boxes(detections, threshold) for detections in detected]
    boxes = [[box for _, box, _ in own] for own in chosen]
    found = zip(examples, chosen, _masks(examples, boxes, sam), strict=True)
    return [replace(example, objects=_objects(own, masks)) for example, own, masks in found]


def _objects(chosen: Sequence[tuple[int, BBox, float]], masks: Sequence[Mask | None]) -> tuple[Object, ...]:
    return tuple(
        Object(phrase, box, round(score, 4), mask)
        for (phrase, box, score), mask in zip(chosen, masks, strict=True)
        if mask is not None
    )


def _masks(
    examples: Sequence[Example], boxes: Sequence[Sequence[BBox]], sam: "Callable[[], Sam] | None"
) -> list[list[Mask | None]]:
    """The mask in each box: one of the example's own segments, SAM's where it has none; None if there is no mask."""
    masks: list[list[Mask | None]] = [
        _from_segments(example, own) if example.segments else [None] * len(own)
        for example, own in zip(examples, boxes, strict=True)
    ]
    bare = [i for i, example in enumerate(examples) if boxes[i] and not example.segments]
    if bare and sam is not None:
        from transforms.models.sam import segment_boxes

        found = segment_boxes(sam(), [examples[i].pixels() for i in bare], [boxes[i] for i in bare])
        for i, own in zip(bare, found, strict=True):
            masks[i] = [mask if mask.area else None for mask in own]
    return masks


def _from_segments(example: Example, boxes: Sequence[BBox]) -> list[Mask | None]:
    own = [segment.bbox for segment in example.segments]
    chosen: list[Mask | None] = []
    for box in boxes:
        likeness = [iou(box, other) for other in own]
        best = int(np.argmax(likeness))
        chosen.append(example.segments[best].mask if likeness[best] >= ALIKE else None)
    return chosen


def objects_of_matches(example: Example) -> Example:
    """Make an object of each match of a phrase with a segment; its box is the box of the mask."""
    objects = tuple(
        Object(match.phrase, segment.bbox, max(0.0, min(1.0, match.score)), segment.mask)
        for match in example.matches
        for segment in [example.segments[match.segment]]
    )
    return replace(example, objects=objects)


@dataclass(eq=False)
class GroundPhrases(Step):
    """Fill `objects` with a detector.

    `detector` and `sam` name checkpoints; SAM is loaded when the first picture without segments comes. Without `sam`
    (None), as for sources that bring segments, such a picture gets no objects.
    """

    detector: str
    sam: str | None
    threshold: float
    hosting: Hosting = HOSTING

    def checkpoints(self) -> Mapping[str, str]:
        """The detector, and SAM if it is given."""
        return {"detector": self.detector} | ({} if self.sam is None else {"sam": self.sam})

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Run the detector over the batches."""
        load = partial(_load, self.detector, self.sam, self.hosting.precision)
        return run_model(batches, STAGE, load, partial(_ground, threshold=self.threshold), self.hosting)


@dataclass(eq=False)
class _Grounder:
    detector: "Detector"
    sam: "Callable[[], Sam] | None"


def _load(detector: str, sam: str | None, precision: Precision) -> _Grounder:
    from transforms.models.checkpoints import load_once
    from transforms.models.detector import load_detector

    return _Grounder(
        load_detector(detector, precision), None if sam is None else load_once(partial(_load_sam, sam, precision))
    )


def _load_sam(checkpoint: str, precision: Precision) -> "Sam":
    from transforms.models.sam import load_sam

    return load_sam(checkpoint, precision)


def _ground(models: _Grounder, examples: Sequence[Example], threshold: float) -> list[Example]:
    return add_objects(models.detector, models.sam, examples, threshold)


@dataclass(eq=False)
class TakeMatches(Step):
    """Fill `objects` from `matches`."""

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Convert each example by itself."""
        return map_batches(batches, STAGE, each(objects_of_matches))
