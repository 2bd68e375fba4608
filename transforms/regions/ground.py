"""Where in a picture its phrases are: objects, each with a box and a mask.

With a detector, Grounding DINO frames the phrases and SAM fills the frames; where the source has masks of its own,
as SA-1B has, the one whose box is most like the frame is taken. Without one, the masks come first, from the source or
from SAM, and each phrase takes the one that CLIP finds most like it (`transforms.regions.similarity`,
`transforms.regions.match`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference.base import RunInference
from segment_anything.modeling import Sam

from schemas.example import Example, Object
from schemas.masks import BBox, Mask
from transforms.batch import Batch, advance, each
from transforms.models.detector import Detections, Detector, detect_phrases, load_detector
from transforms.models.handler import StepHandler
from transforms.models.sam import load_sam, segment_boxes
from transforms.regions.match import greedy_match

STAGE = "grounding"
ALIKE = 0.7
"""IoU of a detected box and a source's mask's box, from which they are the same thing (SAM's own bound for twins)."""


def choose_boxes(found: Detections, threshold: float) -> list[tuple[int, BBox, float]]:
    """Give each phrase the box that fits it best, no box to two: (phrase, [x, y, w, h] in whole pixels, score).

    Pairs are taken from the highest score down, equal ones in the order of phrase, then box; none below `threshold`,
    none with a box of less than a pixel.
    """
    left, top = np.floor(found.corners[:, 0]).astype(int), np.floor(found.corners[:, 1]).astype(int)
    right, bottom = np.ceil(found.corners[:, 2]).astype(int), np.ceil(found.corners[:, 3]).astype(int)
    real = (right > left) & (bottom > top)
    matches = greedy_match(np.where(real, found.scores, -np.inf), threshold)
    return [
        (m.phrase, (int(left[b]), int(top[b]), int(right[b] - left[b]), int(bottom[b] - top[b])), m.score)
        for m in matches
        for b in [m.segment]
    ]


def add_objects(
    detector: Detector, sam: Callable[[], Sam], examples: Sequence[Example], threshold: float
) -> list[Example]:
    """Detect the phrases of the examples together; fill their boxes from their own segments, else by SAM."""
    texts = [[phrase.text for phrase in example.phrases] for example in examples]
    found = detect_phrases(detector, [example.pixels() for example in examples], texts)
    return [
        _with_objects(example, choose_boxes(one, threshold), sam) for example, one in zip(examples, found, strict=True)
    ]


def _with_objects(example: Example, boxes: Sequence[tuple[int, BBox, float]], sam: Callable[[], Sam]) -> Example:
    frames = [box for _, box, _ in boxes]
    masks = _from_segments(example, frames) if example.segments else _from_sam(example, frames, sam)
    objects = tuple(
        Object(phrase, box, round(score, 4), mask)
        for (phrase, box, score), mask in zip(boxes, masks, strict=True)
        if mask is not None
    )
    return replace(example, objects=objects)


def _from_sam(example: Example, boxes: Sequence[BBox], sam: Callable[[], Sam]) -> list[Mask | None]:
    if not boxes:
        return []
    masks = segment_boxes(sam(), example.pixels(), boxes)
    return [Mask.from_array(mask) if mask.any() else None for mask in masks]


def _from_segments(example: Example, boxes: Sequence[BBox]) -> list[Mask | None]:
    frames = [segment.bbox for segment in example.segments]
    chosen: list[Mask | None] = []
    for box in boxes:
        likeness = [box_iou(box, frame) for frame in frames]
        best = int(np.argmax(likeness))
        chosen.append(example.segments[best].mask if likeness[best] >= ALIKE else None)
    return chosen


def box_iou(a: BBox, b: BBox) -> float:
    """Shared area over joint area of two boxes [x, y, w, h], in [0, 1]."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared) if shared else 0.0


def objects_of_matches(example: Example) -> Example:
    """Make the objects of an example whose phrases were matched with its segments; the box is the mask's own."""
    objects = tuple(
        Object(match.phrase, segment.bbox, max(0.0, min(1.0, match.score)), segment.mask)
        for match in example.matches
        for segment in [example.segments[match.segment]]
    )
    return replace(example, objects=objects)


@dataclass(eq=False)
class GroundPhrases(beam.PTransform):
    """Fill `objects` by a detector: PCollection[Batch] -> PCollection[Batch].

    `detector` and `sam` name checkpoints; SAM is loaded when a picture without segments comes.
    """

    detector: str
    sam: str
    threshold: float

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Run the detector over the batches."""
        load = partial(_load, self.detector, self.sam)
        return batches | "ground" >> RunInference(StepHandler(STAGE, load, partial(_ground, threshold=self.threshold)))


@dataclass(eq=False)
class _Grounder:
    detector: Detector
    sam: Callable[[], Sam]


def _load(detector: str, sam: str) -> _Grounder:
    return _Grounder(load_detector(detector), cache(partial(load_sam, sam)))


def _ground(models: _Grounder, examples: Sequence[Example], threshold: float) -> list[Example]:
    return add_objects(models.detector, models.sam, examples, threshold)


@dataclass(eq=False)
class TakeMatches(beam.PTransform):
    """Fill `objects` from `matches`: PCollection[Batch] -> PCollection[Batch]."""

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Take each example by itself."""
        return batches | "take" >> beam.Map(_take)


def _take(batch: Batch) -> Batch:
    return advance(batch, STAGE, each(objects_of_matches))
