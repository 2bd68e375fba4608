"""Panoptic segments of each picture, from a model or from the source's own annotations."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import apache_beam as beam
from apache_beam.ml.inference.base import RunInference

from schemas.errors import RecordError
from schemas.example import Example, Segment
from schemas.rejects import Reason
from transforms.batch import Batch, advance, each
from transforms.models.handler import StepHandler
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
