"""Condition maps: what kinds there are, how each is stored, and what is drawn from the stored values.

A map is stored soft, before any threshold, as a PNG of the picture's size: what is random at training time, such as the
thresholds of an edge map, is drawn there. A pixel `p` of a map with the range (low, high) has the value
`low + p / largest * (high - low)`, where `largest` is 255 or 65,535.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from schemas.errors import RecordError
from schemas.images import decode_png
from schemas.masks import MAX_LABELS
from schemas.rejects import Reason

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
"""A stored map: [H, W] uint8, [H, W] uint16 or [H, W, 3] uint8."""
Parameter = str | int | float


@dataclass(frozen=True)
class MapKind:
    """A kind of map.

    Attributes:
        meaning: what its values are, for people.
        bits: per channel, 8 or 16.
        channels: 1 or 3.
        range: values of the smallest and the largest pixel; None where it differs from map to map.
    """

    meaning: str
    bits: int = 8
    channels: int = 1
    range: tuple[float, float] | None = (0.0, 1.0)

    @property
    def largest(self) -> int:
        """The largest pixel."""
        return (1 << self.bits) - 1


MAPS: Mapping[str, MapKind] = {
    "canny": MapKind(
        "gradient where it is largest across an edge, else 0; edges by `canny_edges`", 16, 1, (0.0, 65535.0)
    ),
    "sketch": MapKind("strength of a drawn line, from extended differences of Gaussians (XDoG)"),
    "edges": MapKind("probability of an edge, from an edge network"),
    "scribble": MapKind("strength of a thick stroke, along the ridges of a sketch or an edge map"),
    "lines": MapKind("length of the straight line through the pixel, as a share of the picture's diagonal"),
    "depth": MapKind("nearness: larger is nearer, linear in 1 / distance up to scale and shift", 16, 1, None),
    "normal": MapKind("unit normals (x to the right, y up, z to the viewer)", 8, 3, (-1.0, 1.0)),
    "pose": MapKind("key points and limbs of people, drawn in OpenPose's colours", 8, 3),
    "segmentation": MapKind("number of the segment, from 1, or 0", 8, 1, (0.0, 255.0)),
}
"""The kinds of map, by the names of fields and members: KEY.canny.png."""

GIVEN = ("canny", "sketch", "edges", "scribble", "lines", "depth", "normal")
"""The kinds that a source may bring as files; what the others show stands in its annotations."""
MAP_FILES = {f"{kind}.png": kind for kind in GIVEN}
"""The kind of map in a file beside a picture, by what follows the picture's name: depth of dog.depth.png."""


@dataclass(frozen=True)
class Map:
    """A map of a picture.

    Attributes:
        kind: a key of `MAPS`.
        png: the map, encoded.
        operator: what made it, such as "opencv canny"; "source" for a map that came with the picture.
        version: of the operator's library, or the checkpoint of its model.
        parameters: of the operator, by name.
        range: values of the smallest and the largest pixel.
        mean: mean pixel, as a share of the largest one.
        is_flat: whether all pixels are equal.
    """

    kind: str
    png: bytes = field(repr=False)
    operator: str
    version: str
    parameters: Mapping[str, Parameter]
    range: tuple[float, float]
    mean: float
    is_flat: bool


@dataclass(frozen=True)
class Person:
    """Key points of a person in COCO's order (`COCO_POINTS`): (x, y, score), [17] each.

    x and y are pixels of the stored image, the score is in [0, 1]; 0 where the point is not known.
    """

    points: tuple[tuple[float, float, float], ...]

    @classmethod
    def of(cls, points: NDArray[np.floating]) -> Self:
        """Take [17, 3]; rounded to hundredths of a pixel, as they are stored: a drawing of them can be made again."""
        return cls(tuple((round(float(x), 2), round(float(y), 2), round(float(s), 4)) for x, y, s in points))


def make_map(
    kind: str,
    pixels: Pixels,
    operator: str,
    version: str,
    parameters: Mapping[str, Parameter],
    bounds: tuple[float, float] | None = None,
) -> Map:
    """Encode a map, [H, W] or [H, W, 3] of the kind's type; `bounds` are its range where the kind leaves it open."""
    limits = bounds or MAPS[kind].range
    assert limits is not None
    assert pixels.dtype == (np.uint16 if MAPS[kind].bits == 16 else np.uint8)
    is_flat = bool((pixels == pixels[:1, :1]).all())
    mean = float(pixels.mean(dtype=np.float64)) / MAPS[kind].largest
    return Map(kind, encode_png(pixels), operator, version, dict(parameters), limits, mean, is_flat)


def encode_png(pixels: Pixels) -> bytes:
    """Encode a map as a PNG, without loss."""
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, "PNG")
    return stored.getvalue()


def decode_map(kind: str, png: bytes) -> Pixels:
    """Decode a map of one of `MAPS`: [H, W] uint8, [H, W] uint16 or [H, W, 3] uint8.

    Raises:
        RecordError: UNDECODABLE_IMAGE, it is no PNG, or one of other bits or channels.
    """
    pixels = decode_png(png)
    stated, found = MAPS[kind], (pixels.dtype.itemsize * 8, 1 if pixels.ndim == 2 else pixels.shape[2])
    if found != (stated.bits, stated.channels):
        raise RecordError(
            Reason.UNDECODABLE_IMAGE,
            f"{found[1]} channels of {found[0]} bits, a {kind} map has {stated.channels} of {stated.bits}",
        )
    return pixels


def to_pixels(kind: str, values: NDArray[np.floating], bounds: tuple[float, float] | None = None) -> Pixels:
    """Round values to pixels; `bounds` are the range where the kind leaves it open. Values beyond it are clipped."""
    limits = bounds or MAPS[kind].range
    assert limits is not None
    span = limits[1] - limits[0] or 1.0
    scaled = (np.asarray(values, np.float64) - limits[0]) / span * MAPS[kind].largest
    rounded: NDArray[np.float64] = np.rint(scaled.clip(0, MAPS[kind].largest))
    return rounded.astype(np.uint16) if MAPS[kind].bits == 16 else rounded.astype(np.uint8)


def to_values(kind: str, pixels: Pixels, bounds: tuple[float, float]) -> NDArray[np.float32]:
    """The values of pixels, float32, for the range `bounds` of the map."""
    share = pixels.astype(np.float32) / np.float32(MAPS[kind].largest)
    values: NDArray[np.float32] = (bounds[0] + share * (bounds[1] - bounds[0])).astype(np.float32)
    return values


def canny_edges(gradient: Pixels, low: float, high: float) -> NDArray[np.bool_]:
    """Edges of a stored canny map for two thresholds, [H, W] bool: what `cv2.Canny(picture, low, high)` finds.

    Pixels above `low` that are connected, in eight directions, with one above `high` (Canny 1986, hysteresis).
    """
    from scipy import ndimage  # noqa: PLC0415 - a tenth of a second, which commands without maps do not wait for

    low, high = sorted((low, high))
    weak = gradient > np.floor(low)
    labels, count = ndimage.label(weak, np.ones((3, 3)))
    is_edge = np.zeros(count + 1, bool)
    is_edge[labels[gradient > np.floor(high)]] = True
    is_edge[0] = False
    edges: NDArray[np.bool_] = is_edge[labels]
    return edges


def min_max(pixels: Pixels) -> NDArray[np.float32]:
    """Stretch a map to [0, 1], as depth maps are shown to models; zeros if all its pixels are equal."""
    low, high = float(pixels.min()), float(pixels.max())
    stretched: NDArray[np.float32] = (pixels.astype(np.float32) - np.float32(low)) / np.float32(max(high - low, 1))
    return stretched


COCO_POINTS = (
    "nose", "left eye", "right eye", "left ear", "right ear", "left shoulder", "right shoulder", "left elbow",
    "right elbow", "left wrist", "right wrist", "left hip", "right hip", "left knee", "right knee", "left ankle",
    "right ankle",
)  # fmt: skip
"""The key points of a `Person`."""
MIRRORED = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)
"""The point that each of `COCO_POINTS` becomes when the picture is mirrored."""
OPENPOSE = (0, -1, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
"""The COCO point that each of OpenPose's 18 points is; -1 for the neck, the middle of the shoulders."""
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0),
    (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
"""The limbs that are drawn, as pairs of OpenPose's points."""
STROKE = 0.5
"""Strength from which on a scribble is a stroke: 127 of 255 in ControlNet's fake scribbles."""
SEEN = 0.3
"""Lowest score of a key point that is drawn."""


def openpose_points(points: NDArray[np.floating]) -> NDArray[np.float64]:
    """Turn COCO's key points [17, 3] into OpenPose's [18, 3]: the neck is the middle of the shoulders."""
    coco = np.asarray(points, np.float64)
    shoulders = coco[[5, 6]]
    neck = shoulders.mean(axis=0)
    neck[2] = shoulders[:, 2].min()
    return np.concatenate([coco, neck[None]])[list(OPENPOSE)]


def draw_people(people: Sequence[NDArray[np.floating]], width: int, height: int) -> NDArray[np.uint8]:
    """Draw key points as ControlNet's pose maps show them, [height, width, 3] uint8 RGB on black.

    Points are discs of radius 4; limbs are ellipses of half-width 4 laid over what is there with opacity 0.6. Points
    whose score is below `SEEN` are left out, and so are their limbs.

    Args:
        people: COCO's key points of each person, [17, 3] of x, y in pixels and score.
        width: of the map, in pixels.
        height: of the map, in pixels.
    """
    canvas = Image.new("RGB", (width, height))
    bodies = [openpose_points(points) for points in people]
    pen = ImageDraw.Draw(canvas)
    for part, color in enumerate(_COLORS):
        for body in bodies:
            x, y, score = body[part]
            if score >= SEEN:
                pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=color)
    for (first, last), color in zip(LIMBS, _COLORS, strict=False):
        for body in bodies:
            if min(body[first, 2], body[last, 2]) >= SEEN:
                _lay(canvas, _limb(body[first, :2], body[last, :2]), color)
    return np.asarray(canvas)


_COLORS = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0), (0, 255, 85),
    (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255),
    (255, 0, 170), (255, 0, 85),
)  # fmt: skip
"""Colour of each of OpenPose's points, and of each limb: 18 hues in order."""


def _lay(canvas: Image.Image, corners: NDArray[np.float64], color: tuple[int, int, int]) -> None:
    """Lay a polygon over a picture with opacity 0.6."""
    low = np.floor(corners.min(axis=0)).clip(0, canvas.size).astype(int)
    high = np.ceil(corners.max(axis=0) + 1).clip(0, canvas.size).astype(int)
    if (high > low).all():
        layer = Image.new("L", tuple((high - low).tolist()))
        ImageDraw.Draw(layer).polygon([tuple(corner) for corner in (corners - low).tolist()], fill=153)  # 0.6 of 255
        canvas.paste(color, tuple(low.tolist()), layer)


def _limb(start: NDArray[np.float64], end: NDArray[np.float64]) -> NDArray[np.float64]:
    """The corners of the ellipse from one point to another, [N, 2]."""
    along = (end - start) / 2
    length = float(np.hypot(*along))
    across = np.array([-along[1], along[0]]) / max(length, 1e-9) * 4
    angles = np.radians(np.arange(0, 360, 6))[:, None]
    corners: NDArray[np.float64] = (start + end) / 2 + np.cos(angles) * along + np.sin(angles) * across
    return corners


def color_segments(numbers: NDArray[np.uint8], colors: Sequence[tuple[int, int, int]]) -> NDArray[np.uint8]:
    """Colour a segmentation map [H, W] with a colour per segment, in order: [H, W, 3] uint8; no segment is black."""
    table = np.zeros((MAX_LABELS + 1, 3), np.uint8)
    table[1 : len(colors) + 1] = np.asarray(colors, np.uint8).reshape(-1, 3)
    return table[numbers]
