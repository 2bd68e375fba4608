"""What the cards of several recipes are made of: thumbnails, outlines of masks, captions cut at their phrases.

The templates' counterpart is `templates/parts.html.j2`.
"""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import contourpy
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from schemas.masks import BBox, Mask
from schemas.samples.base import SampleRecord

THUMBNAIL = 640
"""Longest side of a thumbnail, in pixels."""

COLOURS = 8
"""Number of hues in the style sheet (classes c0 to c7). A ninth region reuses the first hue; its number differs."""

_QUALITY = 78  # of thumbnails, JPEG
_GRID = 400  # longest side of the grid on which an outline is traced: finer than a screen shows, a third of the bytes
_DRAWING = 1280  # longest side of a drawing, units: whole numbers are then half pixels of the thumbnail

Size = tuple[int, int]
"""(width, height) in pixels, or in units of a drawing."""

Span = tuple[int, int]
"""[start, end) in characters of a caption."""


def common_fields(record: SampleRecord) -> dict[str, Any]:
    """Return what every card shows of a record: its key, source and licence, and its pictures' size as stored."""
    return {
        "key": record.key,
        "stored": (record.width, record.height),
        "source": record.source.uri,
        "license": record.source.license,
    }


def region(index: int, *, text: str, bbox: BBox, area: int, mask: Mask, drawing: Size) -> dict[str, Any]:
    """Return what a card shows of the region that a phrase names.

    Args:
        index: Position among the regions of its sample; chooses number and colour.
        text: The phrase.
        bbox: [x, y, w, h] in pixels.
        area: Number of pixels of the mask.
        mask: The region's pixels, of the picture's size.
        drawing: (width, height) of the drawing, as `drawing_size` returns it.
    """
    height, width = mask.size
    path, centre = outline(mask, drawing)
    return {
        "index": index,
        "number": index + 1,
        "colour": f"c{index % COLOURS}",
        "text": text,
        "bbox": ", ".join(map(str, bbox)),
        "area": area,
        "share": f"{area / (height * width):.1%}",
        "outline": path,
        "at": centre,
    }


def thumbnail(picture: bytes, side: int = THUMBNAIL) -> tuple[str, Size]:
    """Return a picture file as a JPEG in a data address, and the JPEG's size; a small picture keeps its size.

    Args:
        picture: A JPEG or PNG file.
        side: Longest side of the thumbnail, in pixels.
    """
    with Image.open(io.BytesIO(picture)) as opened:
        opened.draft("RGB", (side, side))  # a JPEG decoder halves a large picture at almost no cost
        small = opened.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return data_address(small, "JPEG", quality=_QUALITY, optimize=True, progressive=True), small.size


def data_address(picture: Image.Image, encoding: str, **options: Any) -> str:  # noqa: ANN401 - Pillow's options
    """Encode a picture as "JPEG" or "PNG" and return it as a data address, which a page holds in place of a link."""
    stored = io.BytesIO()
    picture.save(stored, encoding, **options)
    return f"data:image/{encoding.lower()};base64,{base64.b64encode(stored.getvalue()).decode('ascii')}"


def outline(mask: Mask, drawing: Size) -> tuple[str, tuple[float, float]]:
    """Trace the border of a mask as an SVG path; filled by the even-odd rule, holes stay open.

    Args:
        mask: A mask of any size.
        drawing: (width, height) of the drawing. The path's coordinates are whole numbers in its units.

    Returns:
        The path's data ("" for an empty mask), and a point well inside the mask, (x, y) in per cent of the picture.
    """
    cover = _coverage(mask)
    if not cover.any():
        return "", (50.0, 50.0)
    level = min(0.5, float(cover.max()) / 2)  # so that a part thinner than a cell of the grid is drawn, too
    padded = np.pad(cover, 1)  # zeros around the mask close every line
    height, width = cover.shape
    scale = np.array([drawing[0] / width, drawing[1] / height])
    # With "Separate" lines, the generator's default, they are arrays of points; its type allows for others.
    lines = cast("list[NDArray[np.float64]]", contourpy.contour_generator(z=padded, name="serial").lines(level))
    # Node i of the padded grid is the centre of cell i - 1, which lies at i - 0.5.
    rings = [np.rint(np.clip((line - 0.5) * scale, 0, drawing)).astype(int) for line in lines]
    x, y = _deepest(np.argwhere(padded >= level)[:, ::-1], np.concatenate(lines))
    centre = (round(100 * (float(x) - 0.5) / width, 1), round(100 * (float(y) - 0.5) / height, 1))
    return "".join(map(_ring, rings)), centre


def _deepest(inside: NDArray[np.int_], border: NDArray[np.float64]) -> tuple[int, int]:
    """Return the point (x, y) of `inside` [N, 2] that is farthest from all points of `border` [M, 2].

    A label needs no more than the best of some hundred points.
    """
    points, edges = (values[:: -(-len(values) // most)] for values, most in ((inside, 500), (border, 200)))
    distances = ((points[:, None, :] - edges[None]) ** 2).sum(axis=2).min(axis=1)
    x, y = points[int(distances.argmax())]
    return int(x), int(y)


def _coverage(mask: Mask) -> NDArray[np.float32]:
    """Return the share of each cell that the mask covers, 0 to 1, on a grid of at most `_GRID` cells per side."""
    picture = Image.fromarray(mask.to_array().astype(np.uint8) * 255)
    size = _scale_to(picture.size, min(_GRID, max(picture.size)))
    return (np.asarray(picture.resize(size, Image.Resampling.BOX)) / np.float32(255)).astype(np.float32)


def _ring(line: NDArray[np.int_]) -> str:
    """Write a closed line, [N + 1, 2] int (x, y), as an SVG path of relative steps, leaving out collinear points."""
    ring = line[:-1]
    ring = ring[(ring != np.roll(ring, 1, axis=0)).any(axis=1)]
    before = ring - np.roll(ring, 1, axis=0)
    after = np.roll(before, -1, axis=0)
    ring = ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
    if len(ring) < 3:
        return ""
    steps = " ".join(f"{x} {y}" for x, y in np.diff(ring, axis=0).tolist())
    return f"M{ring[0][0]} {ring[0][1]}l{steps}z".replace(" -", "-")


def caption_pieces(caption: str, spans: Sequence[Span], owners: Mapping[int, int]) -> Iterator[dict[str, Any]]:
    """Cut a caption at the spans of its phrases; the pieces' texts joined are the caption.

    Each piece has `text`, `phrase` (bool) and `region` (an index, or None); a region's piece also has its `number` and
    `colour`. Where phrases overlap, the one that starts first is marked.

    Args:
        caption: The caption.
        spans: [start, end) of each phrase.
        owners: Index of the region that a phrase names, by index of the phrase. Phrases without a region are left out.
    """
    at = 0
    for index, (start, end) in sorted(enumerate(spans), key=lambda item: (item[1][0], item[0])):
        if not at <= start < end <= len(caption):
            continue
        yield {"text": caption[at:start], "phrase": False, "region": None}
        owner = owners.get(index)
        piece = {"text": caption[start:end], "phrase": True, "region": owner}
        yield piece if owner is None else piece | {"number": owner + 1, "colour": f"c{owner % COLOURS}"}
        at = end
    yield {"text": caption[at:], "phrase": False, "region": None}


def drawing_size(picture: Size) -> Size:
    """Return the (width, height) of the drawing that lies over a picture of that size, in units of the drawing."""
    return _scale_to(picture, _DRAWING)


def _scale_to(size: Size, longest: int) -> Size:
    """Scale (width, height) so that the longer side is `longest`; the other is at least 1."""
    scale = longest / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
