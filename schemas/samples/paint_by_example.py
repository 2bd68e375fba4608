"""What a Paint by Example sample is: `KEY.jpg`, and `KEY.json` as a `Record` with the boxes to be painted."""

from collections.abc import Iterator
from typing import Annotated, Self

import pyarrow as pa
from pydantic import Field

from schemas.dataset import Row
from schemas.example import Example
from schemas.masks import BBox
from schemas.samples.base import Pictures, SampleFormat, SampleRecord, Score
from schemas.strict import StrictModel


class BoxField(StrictModel):
    """A box [x, y, w, h] in pixels of the stored image, with its class ("" if it has none) and the confidence."""

    text: str
    bbox: BBox
    score: Score


class Record(SampleRecord):
    """The contents of `KEY.json`. The caption may be empty: training does not use it."""

    boxes: Annotated[list[BoxField], Field(min_length=1)]

    @classmethod
    def from_example(cls, example: Example) -> Self:
        """Return the record of an example whose boxes were chosen."""
        boxes = [BoxField(text=thing.text, bbox=thing.bbox, score=thing.score) for thing in example.grounded]
        return cls(**cls.common_fields(example), boxes=boxes)

    def columns(self) -> Row:
        """Return the number, the classes and the areas of the boxes."""
        area = self.width * self.height
        return {
            "boxes": len(self.boxes),
            "labels": [box.text for box in self.boxes],
            "areas": [round(box.bbox[2] * box.bbox[3] / area, 4) for box in self.boxes],
        }

    def problems(self, pictures: Pictures) -> Iterator[str]:  # noqa: ARG002 - the picture's size is checked for all
        """Yield where boxes lie outside the picture."""
        for index, box in enumerate(self.boxes):
            x, y, w, h = box.bbox
            if min(x, y) < 0 or min(w, h) < 1 or x + w > self.width or y + h > self.height:
                stated = f"{self.width} x {self.height}"
                yield f"boxes[{index}] has bbox {list(box.bbox)} in a picture of {stated} pixels"


FORMAT = SampleFormat(
    recipe="paint-by-example",
    record=Record,
    members={"jpg": lambda example: example.image},
    columns=pa.schema(
        [
            ("boxes", pa.int32()),
            ("labels", pa.list_(pa.string())),  # of each box
            ("areas", pa.list_(pa.float64())),  # shares of the picture
        ]
    ),
)
