"""What a pair is: two pictures of one subject, the target and a reference, and a `Record`.

KEY.target.jpg      the picture that a model learns to draw
KEY.reference.jpg   another picture of its subject, which the model is shown
KEY.json            a `Record`
"""

from collections.abc import Iterator
from typing import Self

import pyarrow as pa

from schemas.dataset import Row
from schemas.example import Example
from schemas.masks import BBox
from schemas.samples.base import Pictures, SampleFormat, SampleRecord, Score, Segmentation, SourceField, mask_problems
from schemas.strict import StrictModel


class ShownField(StrictModel):
    """A subject in a picture: the caption's words for it, its class, its box in pixels, and its mask."""

    text: str
    label: str
    bbox: BBox
    area: int
    segmentation: Segmentation


class ReferenceField(StrictModel):
    """The reference: the key, caption, size and origin of its picture, and the subject in it."""

    key: str
    caption: str
    width: int
    height: int
    source: SourceField
    subject: ShownField


class Record(SampleRecord):
    """The contents of `KEY.json`; the inherited fields are those of the target.

    `group` is what target and reference have in common: a folder, an id or, for pictures grouped by their likeness, "".
    `similarity` is the cosine of the embeddings of the two subjects.
    """

    group: str
    similarity: Score
    subject: ShownField
    reference: ReferenceField

    @classmethod
    def from_example(cls, example: Example) -> Self:
        """Pairs are made of two samples, not of an example."""
        raise TypeError(f"{example.key}: pairs are made by jobs.pairs")

    def columns(self) -> Row:
        """Return what the pair has in common and how similar its subjects are."""
        return {
            "group": self.group,
            "similarity": self.similarity,
            "subject": self.subject.text,
            "reference": self.reference.key,
        }

    def size_of(self, member: str) -> tuple[int, int]:
        """Width and height of a member that is a picture: the reference has its own."""
        if member == "reference.jpg":
            return self.reference.width, self.reference.height
        return self.width, self.height

    def problems(self, pictures: Pictures) -> Iterator[str]:  # noqa: ARG002 - the pictures' sizes are checked for all
        """Yield where masks do not fit their pictures, and where a picture is its own reference."""
        if self.reference.source == self.source and self.reference.key == self.key:
            yield "is its own reference"
        for name, record, shown in (
            ("subject", self, self.subject),
            ("reference", self.reference, self.reference.subject),
        ):
            for problem in mask_problems(shown.segmentation, shown.area, record):
                yield f"{name} {problem}"


def _no_member(example: Example) -> bytes:
    raise TypeError(f"{example.key}: pairs are made by jobs.pairs")


FORMAT = SampleFormat(
    recipe="pairs",
    record=Record,
    members={"target.jpg": _no_member, "reference.jpg": _no_member},
    columns=pa.schema(
        [
            ("group", pa.string()),
            ("similarity", pa.float64()),
            ("subject", pa.string()),
            ("reference", pa.string()),
        ]
    ),
)
