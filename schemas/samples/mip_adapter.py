"""What a MIP-Adapter sample is: `KEY.jpg`, and `KEY.json` as a `Record`: objects with boxes and masks, a quality."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Self

import pyarrow as pa
from pydantic import Field

from schemas.dataset import Row
from schemas.example import Example, Object
from schemas.masks import BBox
from schemas.samples.base import (
    Pictures,
    SampleFormat,
    SampleRecord,
    Score,
    Scored,
    Segmentation,
    SourceField,
    find_spans,
    mask_problems,
    span_problems,
    subject_scores,
)
from schemas.strict import StrictModel


class ObjectField(Scored):
    """A thing that the caption names: `text == caption[start:end]`, `name` is its head noun's lemma.

    `bbox` is [x, y, w, h] in pixels of the stored image, as the detector gave it; `score` is the detector's. The
    mask may reach a little beyond. `text_image_similarity` is the cosine of phrase and masked crop.
    """

    text: str
    start: int
    end: int
    name: str
    bbox: BBox
    score: Score
    area: int
    segmentation: Segmentation
    text_image_similarity: Score


class QualityField(StrictModel):
    """MIP-Adapter's object quality: `total = single + pair`."""

    single: Score
    pair: Score
    total: Score


class Record(SampleRecord):
    """The contents of `KEY.json`; objects stand in the order of their phrases."""

    key: str
    caption: str
    caption_origin: str
    other_captions: tuple[str, ...] = ()
    width: int
    height: int
    source: SourceField
    objects: Annotated[list[ObjectField], Field(min_length=1)]
    quality: QualityField

    @classmethod
    def from_example(cls, example: Example) -> Self:
        """Return the record of an example whose objects were scored."""
        quality = example.quality
        assert quality is not None
        scored = zip(example.objects, subject_scores(example, len(example.objects)), strict=True)
        return cls(
            **cls.common_fields(example),
            caption_origin=example.caption_origin,
            objects=[_object(example, thing, s) for thing, s in sorted(scored, key=lambda pair: pair[0].phrase)],
            quality=QualityField(single=quality.single, pair=quality.pair, total=quality.total),
        )

    def with_caption(self, caption: str) -> Self:
        """Return the record under another caption, with the objects that it names.

        Raises:
            ValueError: it names none.
        """
        found = zip(self.objects, find_spans([thing.text for thing in self.objects], caption), strict=True)
        objects = [
            thing.model_copy(update={"text": caption[slice(*span)], "start": span[0], "end": span[1]})
            for thing, span in found
            if span
        ]
        if not objects:
            raise ValueError(f"{caption!r} names none of {', '.join(repr(thing.text) for thing in self.objects)}")
        return self.model_copy(update={"caption": caption, "objects": objects})

    def columns(self) -> Row:
        """Return names and scores of the objects, and the quality with its parts."""
        return {
            "objects": len(self.objects),
            "names": [thing.name for thing in self.objects],
            "scores": [thing.score for thing in self.objects],
            "single": self.quality.single,
            "pair": self.quality.pair,
            "quality": self.quality.total,
        }

    def problems(self, pictures: Pictures) -> Iterator[str]:  # noqa: ARG002 - the picture's size is checked for all
        """Yield where objects do not fit caption or picture, and where the quality is not the sum of its parts."""
        for index, thing in enumerate(self.objects):
            yield from (f"objects[{index}] {problem}" for problem in self._object_problems(thing))
        quality = self.quality
        # Each of the three numbers was rounded on its own.
        if abs(quality.single + quality.pair - quality.total) > 2e-4:
            yield f"quality is {quality.total}, its parts are {quality.single} and {quality.pair}"
        single = sum(thing.text_image_similarity for thing in self.objects) / len(self.objects)
        if abs(single - quality.single) > 1e-4 + 1e-9:
            yield f"the quality's single part is {quality.single}, the objects' mean similarity {single:.4f}"

    def _object_problems(self, thing: ObjectField) -> Iterator[str]:
        yield from span_problems(thing.text, thing.start, thing.end, self.caption)
        x, y, w, h = thing.bbox
        if min(x, y) < 0 or min(w, h) < 1 or x + w > self.width or y + h > self.height:
            yield f"has bbox {list(thing.bbox)} in a picture of {self.width} x {self.height} pixels"
        yield from mask_problems(thing.segmentation, thing.area, self)
        if not thing.area:
            yield "has an empty mask"


def _object(example: Example, thing: Object, scores: Mapping[str, float]) -> ObjectField:
    phrase = example.phrases[thing.phrase]
    return ObjectField(
        text=phrase.text,
        start=phrase.start,
        end=phrase.end,
        name=phrase.root,
        bbox=thing.bbox,
        score=thing.score,
        area=thing.mask.area,
        segmentation=Segmentation.of(thing.mask),
        text_image_similarity=thing.similarity,
        scores=dict(scores),
    )


FORMAT = SampleFormat(
    recipe="mip-adapter",
    record=Record,
    members={"jpg": lambda example: example.image},
    columns=pa.schema(
        [
            ("objects", pa.int32()),
            ("names", pa.list_(pa.string())),  # of each object, its head noun's lemma
            ("scores", pa.list_(pa.float64())),  # of each object, the detector's
            ("single", pa.float64()),
            ("pair", pa.float64()),
            ("quality", pa.float64()),  # single + pair: the best samples are those of highest quality
            ("phash", pa.uint64()),  # perceptual hash: near duplicates differ in few of its bits
            ("look", pa.uint64()),  # the old name of `phash`, for one release
        ]
    ),
    index_only={"phash": lambda example: example.phash, "look": lambda example: example.phash},
)
