"""What the JSON of every recipe's sample has in common: how it is read and written, and what can be wrong with it."""

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, ValidationError

from schemas.dataset import Row, StrictModel
from schemas.errors import RecordError
from schemas.images import decode_image
from schemas.masks import Mask
from schemas.shards import Sample

Score = Annotated[float, AfterValidator(lambda score: round(score, 4))]
"""A similarity or a confidence; four decimals, so that the text is short and the same everywhere."""


class SourceField(StrictModel):
    """Address of the picture at its source, and the licence stated there ("" if none)."""

    uri: str
    license: str


class Segmentation(StrictModel):
    """A mask as COCO's compressed run lengths; `size` is [height, width]."""

    size: tuple[int, int]
    counts: str

    def to_mask(self) -> Mask:
        """Return the mask as a value."""
        return Mask(self.size, self.counts)


class SampleRecord(StrictModel):
    """The contents of `KEY.json`: a recipe adds the fields."""

    @classmethod
    def from_sample(cls, sample: Sample) -> Self:
        """Read the record of a sample.

        Raises:
            pydantic.ValidationError: its JSON is not that of this recipe's samples.
        """
        return cls.model_validate_json(sample.members["json"])

    def to_json(self) -> bytes:
        """Encode as compact JSON in UTF-8, fields in the order of the class: the same record, the same bytes."""
        return json.dumps(self.model_dump(mode="json"), ensure_ascii=False, separators=(",", ":")).encode()


def unreadable(key: str, what: str, error: ValidationError) -> str:
    """Say that the JSON of a sample is no record of `what`, and where it first goes wrong."""
    first = error.errors()[0]
    where = ".".join(str(step) for step in first["loc"])
    return f"{key}.json is not a {what} record: {where}: {first['msg']}".replace(": : ", ": ")


def picture_problems(sample: Sample, width: int, height: int) -> Iterator[str]:
    """Say what is wrong with KEY.jpg, of which the JSON says that it has `width` x `height` pixels."""
    try:
        found = decode_image(sample.members["jpg"]).shape
    except RecordError as error:
        yield f"{sample.key}.jpg cannot be decoded: {error.detail}"
        return
    if (width, height) != (found[1], found[0]):
        yield f"{sample.key}.jpg is {found[1]} x {found[0]} pixels, its JSON says {width} x {height}"


def row_problems(truth: Mapping[str, Any], row: Row) -> Iterator[str]:
    """Say where a row of the index tells another thing than its record, whose columns are `truth`."""
    for column, value in truth.items():
        if row[column] != value:
            yield f"the index says {column} {row[column]!r}, the record {value!r}"
