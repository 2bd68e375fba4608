"""What the samples of every recipe have in common: the record in `KEY.json`, the members, the columns of the index.

A recipe states what is different about it: a `SampleRecord` with its own fields, and a `SampleFormat` that names the
members of a sample. Writing, indexing and verifying samples is written once, here.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol, Self

import pyarrow as pa
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from schemas.dataset import INDEX_COLUMNS, Row
from schemas.errors import RecordError
from schemas.example import Example
from schemas.images import decode_grey, decode_image
from schemas.masks import BBox, Mask
from schemas.shards import Sample
from schemas.strict import StrictModel

Score = Annotated[float, AfterValidator(lambda score: round(score, 4))]
"""A similarity, a confidence or a share, rounded to four decimals: short text, the same on every machine."""

SCORES = pa.field("axes", pa.map_(pa.string(), pa.list_(pa.float64())))
"""The last column of every index: by axis the score of the picture, or those of its subjects, refused ones included.
The index of a dataset that an earlier version wrote lacks it."""

PHASH = pa.field("phash", pa.uint64())
"""Perceptual hash of the picture, 0 where it was not hashed; also a column that earlier versions did not write."""

LATER_COLUMNS = frozenset({PHASH.name, SCORES.name})

Pictures = Mapping[str, NDArray[Any]]
"""The decoded pictures of a sample by member: [H, W, 3] uint8 RGB of a .jpg, [H, W] uint8 grey of a .png unless the
record's `decoders` say otherwise."""

Decoder = Callable[[bytes], NDArray[Any] | None]
"""Decodes a member that is a picture; checks any other one and returns None. Raises a RecordError if it is broken."""


class SourceField(StrictModel):
    """Address of the picture at its source, and the licence stated there ("" if none)."""

    uri: str
    license: str


class Segmentation(StrictModel):
    """A mask as COCO's compressed run lengths; `size` is [height, width]."""

    size: tuple[int, int]
    counts: str

    @classmethod
    def of(cls, mask: Mask) -> Self:
        """Return the field for `mask`."""
        return cls(size=mask.size, counts=mask.counts)

    def to_mask(self) -> Mask:
        """Return the mask as a value."""
        return Mask(self.size, self.counts)


class Scored(StrictModel):
    """A subject with its scores by axis (`transforms.selection.scores`); JSON leaves out the field if it is empty."""

    scores: dict[str, float] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        return fields if self.scores else {name: value for name, value in fields.items() if name != "scores"}


class Sized(Protocol):
    """What has the size of a picture, in pixels."""

    width: int
    height: int


class SampleRecord(StrictModel):
    """The contents of `KEY.json`: these fields, and those that a recipe adds.

    JSON lists the fields in the order in which the recipe's class declares them, inherited ones first. A recipe that
    declares an inherited field again moves it.

    `other_captions` are the source's other captions of the picture, `scores` the picture's by axis
    (`transforms.selection.scores`); a field is absent where it is empty.
    """

    key: str
    caption: str
    other_captions: tuple[str, ...] = ()
    width: int
    height: int
    source: SourceField
    scores: dict[str, float] = Field(default_factory=dict)

    @classmethod
    def from_example(cls, example: Example) -> Self:
        """Return the record of an example that went through all steps of the recipe.

        Raises:
            RecordError: the example lacks what a sample of this recipe must have.
        """
        return cls(**cls.common_fields(example))

    @staticmethod
    def common_fields(example: Example) -> dict[str, Any]:
        """Return the fields that the records of all recipes have."""
        return {
            "key": example.key,
            "caption": example.caption,
            "other_captions": example.other_captions,
            "width": example.width,
            "height": example.height,
            "source": SourceField(uri=example.source.uri, license=example.source.license),
            "scores": dict(example.scores),
        }

    @classmethod
    def from_sample(cls, sample: Sample) -> Self:
        """Read the record of a sample.

        Raises:
            pydantic.ValidationError: its JSON is not a record of this recipe.
        """
        return cls.model_validate_json(sample.members["json"])

    def absent_fields(self) -> frozenset[str]:
        """Return the fields that JSON leaves out."""
        return frozenset(name for name in ("other_captions", "scores") if not getattr(self, name))

    def to_json(self) -> bytes:
        """Encode as compact JSON in UTF-8: the same record gives the same bytes."""
        own = type(self).__annotations__
        names = [*(name for name in type(self).model_fields if name not in own), *own]
        fields = self.model_dump(mode="json")
        absent = self.absent_fields()
        ordered = {name: fields[name] for name in names if name not in absent}
        return json.dumps(ordered, ensure_ascii=False, separators=(",", ":")).encode()

    def with_caption(self, caption: str) -> Self:
        """Return the record under another caption, with the spans of what the caption names; the rest is left out.

        Raises:
            ValueError: the caption names nothing that the record must have.
        """
        return self.model_copy(update={"caption": caption})

    def columns(self) -> Row:
        """Return the recipe's own columns of the index."""
        return {}

    def size_of(self, member: str) -> tuple[int, int]:  # noqa: ARG002 - for recipes with pictures of several sizes
        """Width and height of the member of that name, in pixels, if it is a picture."""
        return self.width, self.height

    def decoders(self) -> Mapping[str, Decoder]:
        """Return the members that this sample has beside those of its format, and how each is decoded."""
        return {}

    def problems(self, pictures: Pictures) -> Iterator[str]:  # noqa: ARG002 - for recipes that look at them
        """Yield what is wrong with the record's own fields; `pictures` are those that could be decoded."""
        yield from ()


@dataclass(frozen=True)
class SampleFormat:
    """What a recipe writes for an example.

    `recipe` is also the prefix of the shards' names. A sample has the members `members`, each made by a function of
    the example, and "json", the record; `more` makes those that depend on what a dataset was built with, which the
    record's `decoders` name. `columns` are the recipe's own columns of the index: those that
    `record.columns()` returns, and those of `index_only`, which are in the index and not in the record, each made by a
    function of the example. The index of a dataset that an earlier version wrote may lack these.
    """

    recipe: str
    record: type[SampleRecord]
    members: Mapping[str, Callable[[Example], bytes]]
    columns: pa.Schema
    index_only: Mapping[str, Callable[[Example], Any]] = field(default_factory=dict)
    more: Callable[[Example], Mapping[str, bytes]] = lambda _: {}

    @property
    def index_columns(self) -> pa.Schema:
        """The schema of the recipe's `index.parquet`."""
        hashed = [] if PHASH.name in self.columns.names else [PHASH]
        return pa.schema([*INDEX_COLUMNS, *self.columns, *hashed, SCORES])

    @property
    def member_names(self) -> frozenset[str]:
        """The members that every sample of the recipe has."""
        return frozenset({*self.members, "json"})

    def pack(self, example: Example) -> tuple[Sample, Row]:
        """Return the sample of an example, and its row of the index without the sample's place in a shard.

        Raises:
            RecordError: the example lacks what a sample of this recipe must have.
        """
        record = self.record.from_example(example)
        members = {name: content(example) for name, content in self.members.items()} | dict(self.more(example))
        row = row_of(record) | {name: value(example) for name, value in self.index_only.items()}
        row.setdefault(PHASH.name, example.phash)
        row[SCORES.name] = [(axis, list(values)) for axis, values in example.measured.items()]
        return Sample(example.key, members | {"json": record.to_json()}), row

    def problems_of(self, sample: Sample, row: Row) -> list[str]:
        """Return what is wrong with a sample whose row of the index is `row`; an empty list if it is right."""
        if not self.member_names <= set(sample.members):
            return [_other_members(sample, self.member_names)]
        try:
            record = self.record.from_sample(sample)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            problem = f"{place}: {first['msg']}" if place else first["msg"]
            return [f"{sample.key}.json is not a {self.recipe} record: {problem}"]
        decoders = record.decoders()
        if set(sample.members) != self.member_names | decoders.keys():
            return [_other_members(sample, self.member_names | decoders.keys())]
        pictures, problems = _decode(sample, decoders)
        for name, picture in pictures.items():
            height, width = picture.shape[:2]
            if (width, height) != record.size_of(name):
                stated = "{} x {}".format(*record.size_of(name))
                problems.append(f"{sample.key}.{name} is {width} x {height} pixels, its JSON says {stated}")
        for column, value in row_of(record).items():
            if row[column] != value:
                problems.append(f"the index says {column} {row[column]!r}, the record {value!r}")
        return [*problems, *record.problems(pictures)]


def row_of(record: SampleRecord) -> Row:
    """Return the row of the index that a record gives, without the sample's place in a shard."""
    return {
        "key": record.key,
        "caption": record.caption,
        "width": record.width,
        "height": record.height,
        "source": record.source.uri,
        "license": record.source.license,
        **record.columns(),
    }


def _other_members(sample: Sample, expected: Collection[str]) -> str:
    return f"has members {', '.join(sorted(sample.members))}, not {', '.join(sorted(expected))}"


def _decode(sample: Sample, decoders: Mapping[str, Decoder]) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Decode a sample's pictures, by member, and describe those that cannot be decoded."""
    pictures, problems = {}, []
    for name, content in sample.members.items():
        decode = decoders.get(name) or (decode_grey if name.endswith("png") else decode_image)
        if name not in decoders and not name.endswith(("jpg", "png")):
            continue
        try:
            pixels = decode(content)
        except RecordError as error:
            problems.append(f"{sample.key}.{name} cannot be decoded: {error.detail}")
        else:
            if pixels is not None:
                pictures[name] = pixels
    return pictures, problems


def subject_scores(example: Example, count: int) -> Sequence[Mapping[str, float]]:
    """Return the scores of an example's `count` subjects; {} for each if they were not measured."""
    return example.subject_scores or ({},) * count


def span_problems(text: str, start: int, end: int, caption: str) -> Iterator[str]:
    """Yield a problem where a phrase is not what its span [start, end) of the caption holds."""
    if caption[start:end] != text:
        yield f"is {text!r}, but its span holds {caption[start:end]!r}"


def mask_problems(segmentation: Segmentation, area: int, record: Sized, bbox: BBox | None = None) -> Iterator[str]:
    """Yield what is wrong with a mask: its size, its pixels, its area and, where `bbox` is given, its box."""
    height, width = segmentation.size
    if (width, height) != (record.width, record.height):
        yield f"has a mask of {width} x {height} pixels, the picture has {record.width} x {record.height}"
        return
    mask = segmentation.to_mask()
    try:
        pixels = int(mask.to_array().sum())
    except ValueError as error:
        yield f"has a mask that cannot be decoded: {error}"
        return
    if area != pixels:
        yield f"has area {area}, its mask {pixels} pixels"
    if bbox is not None and bbox != mask.bbox:
        yield f"has bbox {list(bbox)}, its mask {list(mask.bbox)}"


def find_spans(texts: Sequence[str], caption: str) -> list[tuple[int, int] | None]:
    """Find texts as whole words in a caption, in any case: the span [start, end) of each, or None.

    Of equal texts the first is the first in the caption, the second the second, and so on.
    """
    spans: list[tuple[int, int] | None] = []
    ends: dict[str, int] = {}
    for text in texts:
        pattern = re.compile(rf"(?<!\w){re.escape(text)}(?!\w)", re.IGNORECASE)
        match = pattern.search(caption, ends.get(text.lower(), 0))
        spans.append(match.span() if match else None)
        if match:
            ends[text.lower()] = match.end()
    return spans
