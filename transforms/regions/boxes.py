"""Boxes with texts, as GLIGEN is trained on: of a caption's phrases, or of annotated classes; and their embeddings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import apache_beam as beam
import numpy as np

from schemas.boxes import BBox
from schemas.errors import RecordError
from schemas.example import Example, Grounded
from schemas.rejects import Reason
from transforms.batch import Batch, each
from transforms.models.settings import HOSTING, Hosting, Precision
from transforms.step import Step, map_batches, run_model
from transforms.text.synonyms import plain_label

if TYPE_CHECKING:
    from transforms.models.clip import Clip

STAGE = "boxes"
EMBEDDING = "box embeddings"

Rows = Literal["phrases", "classes"]
"""What names a box: a phrase of the caption, or the class that an annotation states, without a caption."""


def ground_phrases(example: Example) -> Example:
    """Fill `grounded` with the boxes of the phrases that are tied to segments or objects, in the order of the caption.

    A phrase for several things has a box for each of them.

    Raises:
        RecordError: NO_MATCH, no phrase is.
    """
    found = sorted(_phrase_boxes(example), key=lambda grounded: (grounded.spans, -grounded.score))
    if not found:
        raise RecordError(Reason.NO_MATCH, "no phrase of the caption has a box")
    return replace(example, grounded=tuple(found))


def _phrase_boxes(example: Example) -> Iterator[Grounded]:
    for thing in example.objects:
        phrase = example.phrases[thing.phrase]
        yield Grounded(phrase.text, ((phrase.start, phrase.end),), _inside(thing.bbox, example), thing.score)
    for match in () if example.objects else example.matches:
        phrase = example.phrases[match.phrase]
        for index in (match.segment, *match.others):
            box = example.segments[index].bbox
            yield Grounded(phrase.text, ((phrase.start, phrase.end),), box, max(0.0, min(1.0, match.score)))


def ground_classes(example: Example) -> Example:
    """Fill `grounded` with the annotated boxes and segments of things, named by their classes; empty the caption.

    Boxes around a group are left out.

    Raises:
        RecordError: NO_SEGMENT, there are none.
    """
    boxes = [(box.label, box.bbox, 1.0) for box in example.boxes if box.is_single]
    boxes += [(segment.label, segment.bbox, segment.score) for segment in example.segments if segment.is_thing]
    found = tuple(Grounded(plain_label(label), (), _inside(box, example), score) for label, box, score in boxes)
    if not found:
        raise RecordError(Reason.NO_SEGMENT, "no thing in the picture is annotated by a box")
    return replace(example, caption="", source_caption="", other_captions=(), grounded=found)


def take_boxes(example: Example, min_area: float, max_area: float) -> Example:
    """Fill `grounded` with the annotated boxes and segments of things, of at least and at most a share of the picture.

    Raises:
        RecordError: NO_SEGMENT, there are none; NO_SUBJECT, none is of such a size.
    """
    found = ground_classes(example).grounded
    whole = example.width * example.height
    kept = tuple(thing for thing in found if min_area <= thing.bbox[2] * thing.bbox[3] / whole <= max_area)
    if not kept:
        raise RecordError(
            Reason.NO_SUBJECT, f"none of {len(found)} boxes covers {min_area:.1%} to {max_area:.1%} of the picture"
        )
    return replace(example, grounded=kept)


def _inside(box: BBox, example: Example) -> BBox:
    """The part of a box inside the picture; detectors' boxes may reach beyond."""
    x, y, w, h = box
    left, top = min(max(x, 0), example.width - 1), min(max(y, 0), example.height - 1)
    right, bottom = min(max(x + w, left + 1), example.width), min(max(y + h, top + 1), example.height)
    return left, top, right - left, bottom - top


def add_embeddings(clip: "Clip", examples: Sequence[Example], norm: float) -> list[Example]:
    """Fill `embeddings` with CLIP's of the texts and crops of `grounded`; all go through the model in one batch.

    `text_before`, `text_after`, `image_after` and `image_reprojected`, [N, D] float32 for the N boxes of an example:
    see `transforms.models.clip_features`.
    """
    from transforms.models.clip_features import embed_crops, embed_phrases, reproject, text_projection

    texts = list(dict.fromkeys(grounded.text for example in examples for grounded in example.grounded))
    place = {text: i for i, text in enumerate(texts)}
    before, after = embed_phrases(clip, texts)
    boxes = [[grounded.bbox for grounded in example.grounded] for example in examples]
    images = embed_crops(clip, [example.pixels() for example in examples], boxes)
    mapped = reproject(images, text_projection(clip), norm)
    embedded, start = [], 0
    for example in examples:
        rows = [place[grounded.text] for grounded in example.grounded]
        own = np.s_[start : start + len(rows)]
        values = {
            "text_before": before[rows],
            "text_after": after[rows],
            "image_after": images[own],
            "image_reprojected": mapped[own],
        }
        embedded.append(replace(example, embeddings=values))
        start += len(rows)
    return embedded


@dataclass(eq=False)
class GroundBoxes(Step):
    """Fill `grounded` from phrases, or from classes."""

    rows: Rows

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Convert each example by itself."""
        return map_batches(batches, STAGE, each(ground_phrases if self.rows == "phrases" else ground_classes))


@dataclass(eq=False)
class TakeBoxes(Step):
    """Fill `grounded` from annotated boxes and segments whose share of the picture lies within two bounds."""

    min_area: float
    max_area: float

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Choose for each example by itself."""
        step = partial(take_boxes, min_area=self.min_area, max_area=self.max_area)
        return map_batches(batches, STAGE, each(step))


@dataclass(eq=False)
class EmbedBoxes(Step):
    """Fill `embeddings`; `checkpoint` names the CLIP, `norm` is the length of a reprojected embedding."""

    checkpoint: str
    norm: float
    hosting: Hosting = HOSTING

    def checkpoints(self) -> Mapping[str, str]:
        """CLIP."""
        return {"clip": self.checkpoint}

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Run CLIP over the batches."""
        load = partial(_load, self.checkpoint, self.hosting.precision)
        return run_model(batches, EMBEDDING, load, partial(add_embeddings, norm=self.norm), self.hosting)


def _load(checkpoint: str, precision: Precision) -> "Clip":
    from transforms.models.clip import load_clip

    return load_clip(checkpoint, precision)
