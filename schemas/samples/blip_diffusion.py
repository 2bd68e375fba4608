"""What a BLIP-Diffusion sample is: the picture, the subject on another background, its matte, and a `Record`.

KEY.target.jpg    the picture as the source has it: what the model learns to draw
KEY.input.jpg     its subject on another background, of the same size: what the model is shown
KEY.alpha.png     8 bits, the subject's alpha in the target
KEY.trimap.png    8 bits, 0 background, 128 unknown, 255 subject: what the alpha was solved from
KEY.json          a `Record`
"""

from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from typing import Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.boxes import BBox, box_of
from schemas.dataset import Row
from schemas.example import Example, Salience
from schemas.images import decode_grey
from schemas.samples.base import Pictures, SampleFormat, SampleRecord, Score, SourceField
from schemas.strict import StrictModel

TRIMAP = (0, 128, 255)
"""The values of a trimap's pixels: background, unknown, subject."""


class PlacementField(StrictModel):
    """How the subject was laid on its background.

    Mirrored first if `flip` is set, then scaled by `scale` about the middle of its box, then moved by `shift`,
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
    other_captions: tuple[str, ...] = ()
    subject: str
    phrase: str
    origin: Literal["annotation", "caption"]
    width: int
    height: int
    bbox: BBox
    foreground_fraction: Score
    unknown_fraction: Score
    background: str
    placement: PlacementField
    source: SourceField

    @classmethod
    def from_example(cls, example: Example) -> Self:
        """Return the record of an example that went through the whole recipe."""
        subject, placement = example.subject, example.placement
        assert subject is not None
        assert placement is not None
        alpha, trimap = decode_grey(example.alpha), decode_grey(example.trimap)
        return cls(
            **cls.common_fields(example),
            caption_origin=example.caption_origin,
            subject=subject.text,
            phrase=subject.phrase,
            origin="caption" if subject.phrase else "annotation",
            bbox=bbox_of(alpha),
            foreground_fraction=float(alpha.mean()) / 255,
            unknown_fraction=float((trimap == 128).mean()),
            background=placement.background,
            placement=PlacementField(scale=placement.scale, shift=placement.shift, flip=placement.flip),
        )

    def columns(self) -> Row:
        """Return the subject, its background and how much of the picture is subject and unknown."""
        return {name: getattr(self, name) for name in FORMAT.columns.names if name not in FORMAT.index_only}

    def problems(self, pictures: Pictures) -> Iterator[str]:
        """Yield where trimap, alpha and the numbers about them contradict each other."""
        alpha, trimap = pictures.get("alpha.png"), pictures.get("trimap.png")
        if alpha is None or trimap is None or alpha.shape != trimap.shape:
            return
        strange = np.setdiff1d(trimap, TRIMAP)
        if strange.size:
            yield f"the trimap holds {strange[0]}: its values are 0, 128 and 255"
        known = trimap != 128
        if (alpha[known] != trimap[known]).any():
            yield "alpha differs from the trimap where the trimap is known"
        if self.bbox != bbox_of(alpha):
            yield f"the JSON says bbox {list(self.bbox)}, alpha {list(bbox_of(alpha))}"
        fractions = {"foreground": float(alpha.mean()) / 255, "unknown": float((trimap == 128).mean())}
        for name, share in fractions.items():
            stated = getattr(self, f"{name}_fraction")
            if abs(stated - share) > 1e-4:
                yield f"the JSON says {name}_fraction {stated}, the matte {share:.4f}"


def bbox_of(alpha: NDArray[np.uint8]) -> BBox:
    """The smallest box [x, y, w, h] around alphas of one half or more, [H, W] uint8; all zeros where there are none."""
    return box_of(alpha >= 128)


_PARTS = tuple(part.name for part in fields(Salience))


def _salience(part: str, example: Example) -> float | None:
    """A part of the subject's salience; None where it was not found by a mask of the annotation."""
    salience = example.subject.salience if example.subject else None
    return None if salience is None else round(getattr(salience, part), 4)


FORMAT = SampleFormat(
    recipe="blip-diffusion",
    record=Record,
    members={
        "target.jpg": lambda example: example.image,
        "input.jpg": lambda example: example.composite,
        "alpha.png": lambda example: example.alpha,
        "trimap.png": lambda example: example.trimap,
    },
    columns=pa.schema(
        [
            ("subject", pa.string()),
            ("phrase", pa.string()),
            ("foreground_fraction", pa.float64()),
            ("unknown_fraction", pa.float64()),
            ("background", pa.string()),
            ("area", pa.float64()),
            ("centrality", pa.float64()),
            ("wholeness", pa.float64()),
            ("border", pa.float64()),
            ("annotations_left_out", pa.int32()),  # of the picture's: those that could not be used
        ]
    ),
    index_only={
        **{name: partial(_salience, name) for name in _PARTS},
        "annotations_left_out": lambda example: example.left_out,
    },
)
