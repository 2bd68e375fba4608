"""The record that travels through a pipeline: each step returns a new one with one more field filled."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.images import decode_image
from schemas.masks import BBox, Mask


@dataclass(frozen=True)
class Source:
    """Where a record came from: the address of its picture and the licence the source states ("" if none)."""

    uri: str
    license: str = ""


@dataclass(frozen=True)
class Phrase:
    """A noun phrase of `Example.caption`.

    `start` and `end` are characters, end exclusive; `text == caption[start:end]`. `root` is the lemma of
    its head noun. `origin` is the span in `Example.source_caption` that it was made from: the same span
    unless a numbered plural was expanded, when several phrases share one origin.
    """

    text: str
    start: int
    end: int
    root: str
    origin: tuple[int, int]


@dataclass(frozen=True)
class Segment:
    """A region of the picture: its class name, the confidence in [0, 1] and the mask."""

    label: str
    score: float
    mask: Mask
    is_thing: bool = True

    @property
    def bbox(self) -> BBox:
        """The smallest box around the mask, [x, y, w, h] in pixels of the stored image."""
        return self.mask.bbox

    @property
    def area(self) -> int:
        """Pixels inside the mask."""
        return self.mask.area


@dataclass(frozen=True)
class Match:
    """Phrase `phrase` names segment `segment` (both indices), with similarity `score`."""

    phrase: int
    segment: int
    score: float


@dataclass(frozen=True)
class Example:
    """A captioned picture and what is known of it so far.

    `image` is an upright 8-bit JPEG of `width` x `height` pixels. `caption` is the text that the phrases'
    spans point into, `source_caption` the text as the source gave it; they differ only where numbered
    plurals were expanded. `similarity[p][s]` compares phrase p with segment s.
    """

    key: str
    image: bytes = field(repr=False)
    width: int
    height: int
    caption: str
    source: Source
    source_caption: str
    phrases: tuple[Phrase, ...] = ()
    segments: tuple[Segment, ...] = ()
    similarity: tuple[tuple[float, ...], ...] = ()
    matches: tuple[Match, ...] = ()
    _pixels: NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)

    def pixels(self) -> NDArray[np.uint8]:
        """The decoded picture, [H, W, 3] uint8 RGB; decoded once, carried along by `dataclasses.replace`."""
        if self._pixels is None:
            object.__setattr__(self, "_pixels", decode_image(self.image))
        assert self._pixels is not None
        return self._pixels

    def __getstate__(self) -> dict[str, Any]:
        """Pickle everything but the decoded pixels: they are twenty times the size of the JPEG."""
        return {**self.__dict__, "_pixels": None}
