"""What a MIP-Adapter sample is: `KEY.jpg`, and `KEY.json` as a `Record`: objects with boxes and masks, a quality."""

from collections.abc import Iterator
from typing import Annotated, Self

import pyarrow as pa
from pydantic import Field, ValidationError

from schemas.dataset import Layout, Row, StrictModel
from schemas.example import Example, Object
from schemas.masks import BBox
from schemas.samples.base import (
    SampleRecord,
    Score,
    Segmentation,
    SourceField,
    picture_problems,
    row_problems,
    unreadable,
)
from schemas.shards import Sample


class ObjectField(StrictModel):
    """A thing that the caption names: `text == caption[start:end]`, `name` is its head noun's lemma.

    `bbox` is [x, y, w, h] in pixels of the stored image, as the detector gave it; `score` is how sure it was. The
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
    width: int
    height: int
    source: SourceField
    objects: Annotated[list[ObjectField], Field(min_length=1)]
    quality: QualityField

    @classmethod
    def from_example(cls, example: Example) -> Self:
        """Keep what the dataset states of an example whose objects were scored."""
        assert example.quality is not None
        quality = example.quality
        return cls(
            key=example.key,
            caption=example.caption,
            caption_origin=example.caption_origin,
            width=example.width,
            height=example.height,
            source=SourceField(uri=example.source.uri, license=example.source.license),
            objects=[_object(example, one) for one in sorted(example.objects, key=lambda one: one.phrase)],
            quality=QualityField(single=quality.single, pair=quality.pair, total=quality.total),
        )


def _object(example: Example, one: Object) -> ObjectField:
    phrase = example.phrases[one.phrase]
    return ObjectField(
        text=phrase.text,
        start=phrase.start,
        end=phrase.end,
        name=phrase.root,
        bbox=one.bbox,
        score=one.score,
        area=one.mask.area,
        segmentation=Segmentation(size=one.mask.size, counts=one.mask.counts),
        text_image_similarity=one.similarity,
    )


def to_sample(example: Example) -> Sample:
    """Make the sample of an example; its picture's bytes are kept as they are."""
    return Sample(example.key, {"jpg": example.image, "json": Record.from_example(example).to_json()})


def to_row(example: Example) -> Row:
    """Fill the recipe's columns of the index."""
    record = Record.from_example(example)
    return {
        "objects": len(record.objects),
        "names": [one.name for one in record.objects],
        "scores": [one.score for one in record.objects],
        "single": record.quality.single,
        "pair": record.quality.pair,
        "quality": record.quality.total,
        "look": example.phash,
    }


COLUMNS = pa.schema(
    [
        ("objects", pa.int32()),
        ("names", pa.list_(pa.string())),  # of each object, its head noun's lemma
        ("scores", pa.list_(pa.float64())),  # of each object, the detector's
        ("single", pa.float64()),
        ("pair", pa.float64()),
        ("quality", pa.float64()),  # single + pair: what the best are chosen by
        ("look", pa.uint64()),  # perceptual hash: what near-identical pictures are found by
    ]
)


def problems_of(sample: Sample, row: Row) -> list[str]:
    """Say what is wrong with a sample whose row of the index is `row`; nothing where all is right."""
    try:
        record = Record.from_sample(sample)
    except ValidationError as error:
        return [unreadable(sample.key, "MIP-Adapter", error)]
    return [
        *picture_problems(sample, record.width, record.height),
        *_record_problems(record),
        *row_problems(_columns_of(record), row),
    ]


def _record_problems(record: Record) -> Iterator[str]:
    for index, one in enumerate(record.objects):
        yield from (f"objects[{index}] {problem}" for problem in _object_problems(one, record))
    quality = record.quality
    # The three numbers were rounded each by itself.
    if abs(quality.single + quality.pair - quality.total) > 2e-4:
        yield f"quality is {quality.total}, its parts are {quality.single} and {quality.pair}"
    single = sum(one.text_image_similarity for one in record.objects) / len(record.objects)
    if abs(single - quality.single) > 1e-4 + 1e-9:
        yield f"the quality's single part is {quality.single}, the objects' mean similarity {single:.4f}"


def _object_problems(one: ObjectField, record: Record) -> Iterator[str]:
    if record.caption[one.start : one.end] != one.text:
        yield f"is {one.text!r}, but its span holds {record.caption[one.start : one.end]!r}"
    x, y, w, h = one.bbox
    if min(x, y) < 0 or min(w, h) < 1 or x + w > record.width or y + h > record.height:
        yield f"has bbox {list(one.bbox)} in a picture of {record.width} x {record.height} pixels"
    height, width = one.segmentation.size
    if (width, height) != (record.width, record.height):
        yield f"has a mask of {width} x {height} pixels, the picture has {record.width} x {record.height}"
        return
    try:
        pixels = one.segmentation.to_mask().to_array()
    except ValueError as error:
        yield f"has a mask that cannot be decoded: {error}"
        return
    if one.area != int(pixels.sum()):
        yield f"has area {one.area}, its mask {int(pixels.sum())} pixels"
    if not one.area:
        yield "has an empty mask"


def _columns_of(record: Record) -> Row:
    """The index's columns that the record tells."""
    return {
        "caption": record.caption,
        "width": record.width,
        "height": record.height,
        "source": record.source.uri,
        "license": record.source.license,
        "objects": len(record.objects),
        "names": [one.name for one in record.objects],
        "scores": [one.score for one in record.objects],
        "single": record.quality.single,
        "pair": record.quality.pair,
        "quality": record.quality.total,
    }


LAYOUT = Layout(
    recipe="mip-adapter",
    members=frozenset({"jpg", "json"}),
    columns=COLUMNS,
    sample_of=to_sample,
    row_of=to_row,
    problems_of=problems_of,
)
