"""What a GLIGEN sample is: `KEY.jpg`, `KEY.json` as a `Record`, and an `.npy` [N, D] float32 for each embedding.

The N rows of each embedding are those of the record's boxes.
"""

import io
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Annotated, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from schemas.dataset import Row
from schemas.example import Example, Grounded
from schemas.masks import BBox
from schemas.samples.base import Pictures, SampleFormat, SampleRecord, Score, find_spans, span_problems
from schemas.strict import StrictModel

EMBEDDINGS = ("text_before", "text_after", "image_after", "image_reprojected")
"""CLIP's embeddings of a box: its text before and after the projection, its crop, and the crop's mapped to where texts
are before the projection. Those after the projection are unit vectors."""


class BoxField(StrictModel):
    """A box and the text that names it.

    `spans` are those of the text in the caption, [start, end); none for a class name. `bbox` is [x, y, w, h] in pixels
    of the stored image.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    bbox: BBox
    score: Score


class Record(SampleRecord):
    """The contents of `KEY.json`. Boxes named by a class (`is_detection`) have no spans, and their picture no caption.

    `norm` is the length of the rows of `image_reprojected`.
    """

    is_detection: bool
    norm: float
    boxes: Annotated[list[BoxField], Field(min_length=1)]

    @classmethod
    def from_example(cls, example: Example) -> Self:
        """Return the record of an example whose boxes were embedded."""
        lengths = np.linalg.norm(example.embeddings["image_reprojected"], axis=1)
        return cls(
            **cls.common_fields(example),
            is_detection=not example.caption,
            norm=round(float(lengths.max()), 4),
            boxes=[_box(grounded) for grounded in example.grounded],
        )

    def with_caption(self, caption: str) -> Self:
        """Return the record under another caption; boxes that it does not name keep their texts, without a span."""
        spans = find_spans([box.text for box in self.boxes], caption)
        boxes = [
            box.model_copy(update={"spans": (span,) if span else ()})
            for box, span in zip(self.boxes, spans, strict=True)
        ]
        return self.model_copy(update={"caption": caption, "boxes": boxes, "is_detection": False})

    def columns(self) -> Row:
        """Return the number, the texts, the scores and the areas of the boxes."""
        area = self.width * self.height
        return {
            "boxes": len(self.boxes),
            "texts": [box.text for box in self.boxes],
            "scores": [box.score for box in self.boxes],
            "areas": [round(box.bbox[2] * box.bbox[3] / area, 4) for box in self.boxes],
        }

    def problems(self, pictures: Pictures) -> Iterator[str]:  # noqa: ARG002 - the picture's size is checked for all
        """Yield where boxes lie outside the picture, and where texts are not what their spans hold."""
        for index, box in enumerate(self.boxes):
            x, y, w, h = box.bbox
            if min(x, y) < 0 or min(w, h) < 1 or x + w > self.width or y + h > self.height:
                stated = f"{self.width} x {self.height}"
                yield f"boxes[{index}] has bbox {list(box.bbox)} in a picture of {stated} pixels"
            if not box.spans and not self.is_detection:
                yield f"boxes[{index}] has no span in the caption"
            if len(box.spans) == 1:
                for problem in span_problems(box.text, *box.spans[0], self.caption):
                    yield f"boxes[{index}] {problem}"
        spans = sorted({span for box in self.boxes for span in box.spans})
        for first, second in pairwise(spans):
            if second[0] < first[1]:
                yield f"the spans {list(first)} and {list(second)} of two texts overlap"


def _box(grounded: Grounded) -> BoxField:
    return BoxField(text=grounded.text, spans=grounded.spans, bbox=grounded.bbox, score=grounded.score)


def write_array(values: NDArray[np.float32]) -> bytes:
    """Encode an array as an `.npy` file; the same array gives the same bytes."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(values), allow_pickle=False)
    return stream.getvalue()


def read_array(content: bytes, rows: int) -> NDArray[np.float32]:
    """Decode an embedding's `.npy` file: [rows, D] float32.

    Raises:
        ValueError: it is damaged, or of another shape or type.
    """
    try:
        values: NDArray[np.float32] = np.load(io.BytesIO(content), allow_pickle=False)
    except (EOFError, OSError) as error:
        raise ValueError(f"an embedding cannot be read: {error}") from error
    if values.ndim != 2 or len(values) != rows or values.dtype != np.float32:
        raise ValueError(f"an embedding is {list(values.shape)} {values.dtype}, and there are {rows} boxes")
    return values


def _encode(name: str, example: Example) -> bytes:
    return write_array(example.embeddings[name])


FORMAT = SampleFormat(
    recipe="gligen",
    record=Record,
    members={"jpg": lambda example: example.image} | {f"{name}.npy": partial(_encode, name) for name in EMBEDDINGS},
    columns=pa.schema(
        [
            ("boxes", pa.int32()),
            ("texts", pa.list_(pa.string())),  # of each box
            ("scores", pa.list_(pa.float64())),
            ("areas", pa.list_(pa.float64())),  # shares of the picture
        ]
    ),
)
