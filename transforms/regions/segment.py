"""The segments of each picture: from a panoptic model, from SAM's automatic masks, or from the source's annotations."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import apache_beam as beam

from schemas.errors import RecordError
from schemas.example import Example, Segment
from schemas.rejects import Reason
from transforms.batch import Batch, each
from transforms.models.settings import HOSTING, Everything, Hosting, Precision
from transforms.step import Step, map_batches, run_model

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

    from transforms.models.segmenter import Segmenter

STAGE = "segments"


def keep_segments(
    example: Example, segments: Sequence[Segment], min_area: float, *, join_plurals: bool = False
) -> Example:
    """Give the example those of `segments` that cover at least `min_area` of the picture, a share in [0, 1].

    With `join_plurals`, smaller segments are kept where all those of their class together cover as much: a phrase for
    several things ("a herd of cows") names them all.

    Raises:
        RecordError: NO_SEGMENT, none is left.
    """
    smallest = min_area * example.width * example.height
    areas = Counter[str]()
    for segment in segments if join_plurals else ():
        areas[segment.label] += segment.area
    kept = tuple(s for s in segments if s.area and max(s.area, areas[s.label]) >= smallest)
    if not kept:
        found = f"{len(segments)} found, all smaller than {min_area:.2%} of the picture" if segments else "none found"
        raise RecordError(Reason.NO_SEGMENT, found)
    return replace(example, segments=kept)


Keep = Callable[[Example, Sequence[Segment]], Example]
"""Gives an example those of its segments that are kept."""


def add_segments(segmenter: "Segmenter", examples: Sequence[Example], keep: Keep) -> list[Example]:
    """Segment the examples' pictures in one batch; an error of one picture is raised for all of them."""
    from transforms.models.segmenter import segment_images

    found = segment_images(segmenter, [example.pixels() for example in examples])
    return [keep(e, segments) for e, segments in zip(examples, found, strict=True)]


def _load_segmenter(checkpoint: str, precision: Precision) -> "Segmenter":
    from transforms.models.segmenter import load_segmenter

    return load_segmenter(checkpoint, precision)


def drop_small_segments(example: Example, min_area: float, *, join_plurals: bool = False) -> Example:
    """Leave out small segments, as `keep_segments` does, and their similarities.

    Raises:
        RecordError: NO_SEGMENT, none is left.
    """
    kept = keep_segments(example, example.segments, min_area, join_plurals=join_plurals)
    ids = {id(segment) for segment in kept.segments}
    columns = [number for number, segment in enumerate(example.segments) if id(segment) in ids]
    rows = tuple(tuple(row[number] for number in columns) for row in example.similarity)
    return replace(kept, similarity=rows)


@dataclass(eq=False)
class DropSmallSegments(Step):
    """Leave out segments that are too small, behind the models: another `min_area` needs none of them again."""

    min_area: float
    join_plurals: bool = False

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Take each example by itself."""
        step = partial(drop_small_segments, min_area=self.min_area, join_plurals=self.join_plurals)
        return map_batches(batches, STAGE, each(step))


@dataclass(eq=False)
class SegmentPictures(Step):
    """Fill `segments` with a panoptic model.

    `checkpoint` names the segmenter; None keeps the segments that the examples have. Segments that cover less than
    `min_area` of the picture, a share in [0, 1], are left out; for `join_plurals` see `keep_segments`.
    """

    checkpoint: str | None
    min_area: float = 0.0
    join_plurals: bool = False
    hosting: Hosting = HOSTING

    def checkpoints(self) -> Mapping[str, str]:
        """The segmenter, if there is one."""
        return {} if self.checkpoint is None else {"segmenter": self.checkpoint}

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Run the segmenter over the batches, or keep what the source's annotations gave."""
        keep = partial(keep_segments, min_area=self.min_area, join_plurals=self.join_plurals)
        if self.checkpoint is None:
            return map_batches(batches, STAGE, each(lambda e: keep(e, e.segments)))
        step = partial(add_segments, keep=keep)
        load = partial(_load_segmenter, self.checkpoint, self.hosting.precision)
        return run_model(batches, STAGE, load, step, self.hosting)


def add_everything(sam: "Sam", examples: Sequence[Example], settings: Everything) -> list[Example]:
    """Segment everything in each picture; masks may overlap, as those of a wheel and its car."""
    from transforms.models.sam import segment_everything

    found = segment_everything(sam, [example.pixels() for example in examples], settings)
    return [
        replace(example, segments=tuple(Segment("", score, mask) for mask, score in masks))
        for example, masks in zip(examples, found, strict=True)
    ]


def _load_sam(checkpoint: str, precision: Precision) -> "Sam":
    from transforms.models.sam import load_sam

    return load_sam(checkpoint, precision)


@dataclass(eq=False)
class SegmentEverything(Step):
    """Fill `segments` with SAM's automatic masks.

    `checkpoint` names the SAM, `min_area` is that of `SegmentPictures`. The segments have no labels: only CLIP can
    match them with phrases.
    """

    checkpoint: str
    settings: Everything
    min_area: float = 0.0
    hosting: Hosting = HOSTING

    def checkpoints(self) -> Mapping[str, str]:
        """SAM."""
        return {"sam": self.checkpoint}

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Run SAM over the batches, then leave out small segments."""
        step = partial(add_everything, settings=self.settings)
        load = partial(_load_sam, self.checkpoint, self.hosting.precision)
        found = run_model(batches, STAGE, load, step, self.hosting)
        return found | "keep" >> SegmentPictures(None, self.min_area)
