"""The record that travels through a pipeline: each step returns a new one with one more field filled."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.boxes import BBox
from schemas.images import decode_image
from schemas.maps import Map, Person
from schemas.masks import Mask


@dataclass(frozen=True)
class Source:
    """Origin of a record: the address of its picture and the licence that the source states ("" if none)."""

    uri: str
    license: str = ""


@dataclass(frozen=True)
class Phrase:
    """A noun phrase of `Example.caption`.

    `start` and `end` are characters, end exclusive; `text == caption[start:end]`. `root` is the lemma of
    its head noun. `origin` is the span in `Example.source_caption` that it comes from: the same span
    unless a numbered plural was expanded, in which case several phrases share an origin. `things` is how many things
    it names at most: 1 for "a dog", 5 for "five dogs", None for "some dogs" and "a group of people".
    """

    text: str
    start: int
    end: int
    root: str
    origin: tuple[int, int]
    things: int | None = 1


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
    """Phrase `phrase` names segment `segment` (both indices), with similarity `score`.

    A phrase that names several things also names the segments `others`.
    """

    phrase: int
    segment: int
    score: float
    others: tuple[int, ...] = ()


@dataclass(frozen=True)
class Box:
    """A thing that is annotated by a box, without a mask.

    `bbox` is [x, y, w, h] in pixels of the stored image. `is_single` is False where the box holds a group of them.
    """

    label: str
    bbox: BBox
    is_single: bool = True


@dataclass(frozen=True)
class Salience:
    """How much a mask stands out as the subject of its picture.

    Attributes:
        area: share of the picture's pixels, in [0, 1].
        centrality: 1 where its center of mass is the picture's center, falling linearly to 0 in the corners.
        wholeness: share of its pixels that are in its largest connected piece, in [0, 1].
        border: its pixels on the picture's border, as a share of the width and height of its box: 0 where it does not
            touch the border, about 1 where a whole side of it is cut off.
    """

    area: float
    centrality: float
    wholeness: float
    border: float


@dataclass(frozen=True)
class Subject:
    """The single thing that the picture is about.

    `text` is its class or the head noun of its phrase; `phrase` holds the caption's words for it, "" if an annotation
    named it. Its pixels are `mask`, or if that is None, those where `heatmap` is high: [h, w] float32 in [0, 1], a grid
    over the whole picture. `salience` is set for the mask of an annotation.
    """

    text: str
    phrase: str = ""
    mask: Mask | None = None
    salience: Salience | None = None
    heatmap: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Object:
    """A thing of the picture that phrase `phrase` (an index) names.

    `bbox` is [x, y, w, h] in pixels of the stored image, `score` the detector's confidence in [0, 1]; `mask` holds
    the pixels of the thing. `similarity` is the cosine of the phrase's and the masked crop's embeddings, which are the
    rows of `embeddings`, [2, D] float32.
    """

    phrase: int
    bbox: BBox
    score: float
    mask: Mask
    similarity: float = 0.0
    embeddings: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Grounded:
    """A thing in a box, with the text that names it.

    `spans` are those of the text in the caption, [start, end); none for a class name. `bbox` is [x, y, w, h] in pixels
    of the stored image, `score` the confidence in [0, 1].
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    bbox: BBox
    score: float


@dataclass(frozen=True)
class Quality:
    """How well the objects fit their phrases (`single`), how much they differ (`pair`), and both together (`total`)."""

    single: float
    pair: float
    total: float


@dataclass(frozen=True)
class Placement:
    """How the subject was placed on its background.

    It is mirrored first if `flip` is true, then scaled by `scale` about the middle of its box, then moved by `shift`,
    (x, y) in pixels. `background` is the name of the background picture.
    """

    background: str
    scale: float = 1.0
    shift: tuple[int, int] = (0, 0)
    flip: bool = False


@dataclass(frozen=True)
class Example:
    """A captioned picture and what is known about it so far.

    `image` is an upright 8-bit JPEG of `width` x `height` pixels. `caption` is the text that the phrases'
    spans point into, `source_caption` the text as the source gave it; they differ only where numbered
    plurals were expanded. `other_captions` are the other texts that the source has for the picture, in its order.
    `similarity[p][s]` compares phrase p with segment s. `caption_origin` is "source", or the captioner that wrote the
    caption.

    `heatmaps`, [N, h, w] float32 in [0, 1], holds for each of the `phrases` the confidence that it is visible there, on
    a grid over the picture; in a picture with `boxes`, for each label of a box. `trimap` (0, 128, 255) and `alpha` are
    8-bit PNGs of the picture's size, `composite` is a JPEG of the subject on another background, as `placement` states.

    `left_out` annotations of the picture could not be used.

    `embeddings`, [N, D] float32 by name, are those of the N `grounded`.
    `stated` are the probabilities that the source states of the picture, "pwatermark" and "nsfw". `ratings` are those
    of the picture and of its subjects by the aesthetic predictor. `scores` are the picture's by axis, `subject_scores`
    those of the subjects that were kept, `measured` those of the picture and of all its subjects, by axis
    (`transforms.selection.scores`).

    `objects` are in the order of their phrases; `phash` is the picture's perceptual hash, 64 bits.

    `given` holds the encoded maps that the source has, by kind; `people` their key points, from the source or a model
    (None: not looked for). `maps` are the condition maps, by kind. `palette`, [N] float32, is the picture's colour
    histogram, `embedding`, [D] float32, its CLIP embedding.
    """

    key: str
    image: bytes = field(repr=False)
    width: int
    height: int
    caption: str
    source: Source
    source_caption: str
    other_captions: tuple[str, ...] = ()
    phrases: tuple[Phrase, ...] = ()
    segments: tuple[Segment, ...] = ()
    similarity: tuple[tuple[float, ...], ...] = ()
    matches: tuple[Match, ...] = ()
    caption_origin: str = "source"
    boxes: tuple[Box, ...] = ()
    heatmaps: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)
    subject: Subject | None = None
    trimap: bytes = field(default=b"", repr=False)
    alpha: bytes = field(default=b"", repr=False)
    composite: bytes = field(default=b"", repr=False)
    placement: Placement | None = None
    objects: tuple[Object, ...] = ()
    quality: Quality | None = None
    grounded: tuple[Grounded, ...] = ()
    embeddings: Mapping[str, NDArray[np.float32]] = field(default_factory=dict, repr=False, compare=False)
    phash: int = 0
    left_out: int = 0
    stated: Mapping[str, float] = field(default_factory=dict)
    ratings: tuple[float | None, tuple[float, ...]] = (None, ())
    scores: Mapping[str, float] = field(default_factory=dict)
    subject_scores: tuple[Mapping[str, float], ...] = ()
    measured: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    given: Mapping[str, bytes] = field(default_factory=dict, repr=False, hash=False)
    people: tuple[Person, ...] | None = None
    maps: Mapping[str, Map] = field(default_factory=dict, hash=False)
    palette: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)
    embedding: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)
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
