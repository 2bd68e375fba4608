"""What a BLIP-Diffusion sample is: the picture, the subject on another background, its matte, and a `Record`.

KEY.target.jpg    the picture as the source has it: what the model learns to make
KEY.input.jpg     its subject on another background, of the same size: what the model is shown
KEY.alpha.png     8 bits, the subject's alpha in the target
KEY.trimap.png    8 bits, 0 background, 128 unknown, 255 subject: what the alpha was solved from
KEY.json          a `Record`
"""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import AfterValidator, ValidationError

from schemas.dataset import Layout, Row, StrictModel
from schemas.errors import RecordError
from schemas.example import Example
from schemas.images import decode_grey, decode_image
from schemas.masks import BBox
from schemas.samples.base import SampleRecord, SourceField, row_problems, unreadable
from schemas.shards import Sample

Share = Annotated[float, AfterValidator(lambda share: round(share, 4))]
"""A share of the picture's area, with four decimals."""

TRIMAP = (0, 128, 255)
"""What a trimap's pixels may be: background, unknown, subject."""


class PlacementField(StrictModel):
    """How the subject was laid on its background.

    Mirrored first where `flip` says so, then enlarged by `scale` about the middle of its box, then moved by `shift`,
    (x, y) in pixels.
    """

    scale: float
    shift: tuple[int, int]
    flip: bool


class Record(SampleRecord):
    """The contents of `KEY.json`.

    `subject` says what the subject is, a class or a head noun; `phrase` holds the caption's words for it, "" where an
    annotation named it. `bbox` is [x, y, w, h], in pixels, around the pixels of the target that the subject fills by
    half or more. `foreground_fraction` is the mean of alpha, `unknown_fraction` the share of the trimap's unknown
    pixels. `caption_origin` is "source" or the captioner's name. `background` names the picture behind the input's
    subject ("painted" where there was none).
    """

    key: str
    caption: str
    caption_origin: str
    subject: str
    phrase: str
    origin: Literal["annotation", "caption"]
    width: int
    height: int
    bbox: BBox
    foreground_fraction: Share
    unknown_fraction: Share
    background: str
    placement: PlacementField
    source: SourceField

    @classmethod
    def from_example(cls, example: Example) -> Self:
        """Keep what the dataset states of an example that went through the whole recipe."""
        subject, placement = example.subject, example.placement
        assert subject is not None
        assert placement is not None
        alpha, trimap = decode_grey(example.alpha), decode_grey(example.trimap)
        return cls(
            key=example.key,
            caption=example.caption,
            caption_origin=example.caption_origin,
            subject=subject.text,
            phrase=subject.phrase,
            origin="caption" if subject.phrase else "annotation",
            width=example.width,
            height=example.height,
            bbox=bbox_of(alpha),
            foreground_fraction=float(alpha.mean()) / 255,
            unknown_fraction=float((trimap == 128).mean()),
            background=placement.background,
            placement=PlacementField(scale=placement.scale, shift=placement.shift, flip=placement.flip),
            source=SourceField(uri=example.source.uri, license=example.source.license),
        )


def bbox_of(alpha: NDArray[np.uint8]) -> BBox:
    """The smallest box [x, y, w, h] around alphas of one half or more; all zeros where there are none."""
    rows, columns = (np.flatnonzero((alpha >= 128).any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)


def to_sample(example: Example) -> Sample:
    """Make the sample of an example; its picture's bytes are kept as they are."""
    members = {
        "target.jpg": example.image,
        "input.jpg": example.composite,
        "alpha.png": example.alpha,
        "trimap.png": example.trimap,
        "json": Record.from_example(example).to_json(),
    }
    return Sample(example.key, members)


def to_row(example: Example) -> Row:
    """Fill the recipe's columns of the index."""
    record = Record.from_example(example)
    return {name: getattr(record, name) for name in COLUMNS.names}


COLUMNS = pa.schema(
    [
        ("subject", pa.string()),
        ("phrase", pa.string()),
        ("foreground_fraction", pa.float64()),
        ("unknown_fraction", pa.float64()),
        ("background", pa.string()),
    ]
)


def problems_of(sample: Sample, row: Row) -> list[str]:
    """Say what is wrong with a sample whose row of the index is `row`; nothing where all is right."""
    try:
        record = Record.from_sample(sample)
    except ValidationError as error:
        return [unreadable(sample.key, "BLIP-Diffusion", error)]
    return [*_picture_problems(sample, record), *row_problems(_columns_of(record), row)]


def _picture_problems(sample: Sample, record: Record) -> Iterator[str]:
    sizes = {}
    greys = {}
    for name, content in sample.members.items():
        if name == "json":
            continue
        try:
            pixels = decode_grey(content) if name.endswith(".png") else decode_image(content)
        except RecordError as error:
            yield f"{sample.key}.{name} cannot be decoded: {error.detail}"
            continue
        sizes[name] = pixels.shape[1], pixels.shape[0]
        greys[name] = pixels
    for name, (width, height) in sizes.items():
        if (width, height) != (record.width, record.height):
            yield f"{sample.key}.{name} is {width} x {height} pixels, its JSON says {record.width} x {record.height}"
    alpha, trimap = greys.get("alpha.png"), greys.get("trimap.png")
    if alpha is not None and trimap is not None and alpha.shape == trimap.shape:
        yield from _matte_problems(alpha, trimap, record)


def _matte_problems(alpha: NDArray[np.uint8], trimap: NDArray[np.uint8], record: Record) -> Iterator[str]:
    strange = np.setdiff1d(trimap, TRIMAP)
    if strange.size:
        yield f"the trimap holds {strange[0]}: its values are 0, 128 and 255"
    sure = trimap != 128
    if (alpha[sure] != trimap[sure]).any():
        yield "alpha differs from the trimap where that is sure"
    if record.bbox != bbox_of(alpha):
        yield f"the JSON says bbox {list(record.bbox)}, alpha {list(bbox_of(alpha))}"
    fractions = {"foreground": float(alpha.mean()) / 255, "unknown": float((trimap == 128).mean())}
    for name, share in fractions.items():
        stated = getattr(record, f"{name}_fraction")
        if abs(stated - share) > 1e-4:
            yield f"the JSON says {name}_fraction {stated}, the matte {share:.4f}"


def _columns_of(record: Record) -> Row:
    """The index's columns that the record tells."""
    return {
        "caption": record.caption,
        "width": record.width,
        "height": record.height,
        "source": record.source.uri,
        "license": record.source.license,
        **{name: getattr(record, name) for name in COLUMNS.names},
    }


LAYOUT = Layout(
    recipe="blip-diffusion",
    members=frozenset({"target.jpg", "input.jpg", "alpha.png", "trimap.png", "json"}),
    columns=COLUMNS,
    sample_of=to_sample,
    row_of=to_row,
    problems_of=problems_of,
)
