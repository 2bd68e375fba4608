"""Everything in a picture as segments without names: SAM's automatic masks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import apache_beam as beam
from apache_beam.ml.inference.base import RunInference
from segment_anything.modeling import Sam

from schemas.example import Example, Segment
from schemas.masks import Mask
from transforms.batch import Batch
from transforms.models.handler import StepHandler
from transforms.models.sam import Everything, load_sam, segment_everything
from transforms.segment import STAGE, SegmentPictures


def add_everything(sam: Sam, examples: Sequence[Example], settings: Everything) -> list[Example]:
    """Segment each picture; masks may lie within one another, as a wheel in a car."""
    return [
        replace(
            example,
            segments=tuple(
                Segment("", score, Mask.from_array(mask))
                for mask, score in segment_everything(sam, example.pixels(), settings)
            ),
        )
        for example in examples
    ]


@dataclass(eq=False)
class SegmentEverything(beam.PTransform):
    """Fill `segments` with SAM's automatic masks: PCollection[Batch] -> PCollection[Batch].

    `checkpoint` names the SAM. The segments have no labels: only CLIP can tell which phrase is whose.
    """

    checkpoint: str
    settings: Everything
    min_area: float = 0.0

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Run SAM over the batches, then leave out what is too small."""
        step = partial(add_everything, settings=self.settings)
        found = batches | "segment" >> RunInference(StepHandler(STAGE, partial(load_sam, self.checkpoint), step))
        return found | "keep" >> SegmentPictures(None, self.min_area)
