"""The segments of each picture: from a panoptic model, from SAM's automatic masks, or from the source's annotations."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import apache_beam as beam
from apache_beam.ml.inference.base import RunInference
from segment_anything.modeling import Sam

from schemas.errors import RecordError
from schemas.example import Example, Segment
from schemas.masks import Mask
from schemas.rejects import Reason
from transforms.batch import Batch, advance, each
from transforms.models.handler import StepHandler
from transforms.models.sam import Everything, load_sam, segment_everything
from transforms.models.segmenter import Segmenter, load_segmenter, segment_images

STAGE = "segments"


def keep_segments(example: Example, segments: Sequence[Segment], min_area: float) -> Example:
    """Give the example those of `segments` that cover at least `min_area` of the picture, a share in [0, 1].

    Raises:
        RecordError: NO_SEGMENT, none is left.
    """
    smallest = max(1, min_area * example.width * example.height)
    kept = tuple(segment for segment in segments if segment.area >= smallest)
    if not kept:
        found = f"{len(segments)} found, all smaller than {min_area:.2%} of the picture" if segments else "none found"
        raise RecordError(Reason.NO_SEGMENT, found)
    return replace(example, segments=kept)


def add_segments(segmenter: Segmenter, examples: Sequence[Example], min_area: float) -> list[Example]:
    """Segment the examples' pictures together; what fails in one of them is raised for all."""
    found = segment_images(segmenter, [example.pixels() for example in examples])
    return [keep_segments(e, segments, min_area) for e, segments in zip(examples, found, strict=True)]


@dataclass(eq=False)
class SegmentPictures(beam.PTransform):
    """Fill `segments`: PCollection[Batch] -> PCollection[Batch].

    `checkpoint` names the segmenter; None keeps the segments that the source's annotations gave.
    """

    checkpoint: str | None
    min_area: float = 0.0

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Run the segmenter over the batches, or none where the source is annotated."""
        if self.checkpoint is None:
            return batches | "keep annotated" >> beam.Map(self._keep)
        handler = StepHandler(
            STAGE, partial(load_segmenter, self.checkpoint), partial(add_segments, min_area=self.min_area)
        )
        return batches | "segment" >> RunInference(handler)

    def _keep(self, batch: Batch) -> Batch:
        return advance(batch, STAGE, each(lambda e: keep_segments(e, e.segments, self.min_area)))


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
