"""A sample of a dataset as a card of the report: per recipe, what its template draws."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import contourpy
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from schemas.masks import Mask
from schemas.samples.fastcomposer import Record, Subject
from schemas.samples.mip_adapter import ObjectField
from schemas.shards import Sample

THUMBNAIL = 640
"""Longest side of a picture in the report, pixels."""

COLOURS = 8
"""Hues of the style sheet, classes c0 to c7; a ninth subject starts again, told apart by its number."""

_QUALITY = 78
_GRID = 400  # longest side on which an outline is traced, pixels: finer than a screen shows, a third of the bytes
_VIEW = 1280  # longest side of the drawing, units: whole numbers are then half pixels of the thumbnail

Span = tuple[int, int]
"""[start, end) in characters."""


def fastcomposer_card(sample: Sample) -> dict[str, Any]:
    """Return what `fastcomposer.html.j2` draws of a sample: its picture, its subjects, its caption in pieces."""
    record = Record.from_sample(sample)
    picture, size = thumbnail(sample.members["jpg"])
    view = view_of((record.width, record.height))
    # Of several subjects of one phrase the first is marked.
    owners = {subject.phrase: index for index, subject in reversed(list(enumerate(record.subjects)))}
    return {
        "key": sample.key,
        "picture": picture,
        "width": size[0],
        "height": size[1],
        "stored": (record.width, record.height),
        "view": view,
        "subjects": [_subject(index, subject, view) for index, subject in enumerate(record.subjects)],
        "pieces": list(caption_pieces(record.caption, [(p.start, p.end) for p in record.phrases], owners)),
        "original": record.source_caption if record.source_caption != record.caption else "",
        "loose": sum(index not in owners for index in range(len(record.phrases))),
        "unmatched": record.segments_unmatched,
        "source": record.source.uri,
        "license": record.source.license,
        "labels": [subject.label for subject in record.subjects],
    }


def _subject(index: int, subject: Subject, view: tuple[int, int]) -> dict[str, Any]:
    return drawn(index, subject, view) | {"label": subject.label, "score": f"{subject.score:.2f}"}


def drawn(index: int, thing: Subject | ObjectField, view: tuple[int, int]) -> dict[str, Any]:
    """Return what is drawn and said of every subject or object; `view` is as in `outline`."""
    mask = thing.segmentation.to_mask()
    height, width = mask.size
    path, at = outline(mask, view)
    return {
        "index": index,
        "number": index + 1,
        "colour": f"c{index % COLOURS}",
        "text": thing.text,
        "bbox": ", ".join(map(str, thing.bbox)),
        "area": thing.area,
        "share": f"{thing.area / (height * width):.1%}",
        "outline": path,
        "at": at,
    }


def thumbnail(jpeg: bytes) -> tuple[str, tuple[int, int]]:
    """Encode a picture again at `THUMBNAIL` pixels or its own size; return a data address and (width, height)."""
    with Image.open(io.BytesIO(jpeg)) as opened:
        opened.draft("RGB", (THUMBNAIL, THUMBNAIL))  # the decoder halves a large picture almost for nothing
        picture = opened.convert("RGB")
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    stored = io.BytesIO()
    picture.save(stored, "JPEG", quality=_QUALITY, optimize=True, progressive=True)
    return "data:image/jpeg;base64," + base64.b64encode(stored.getvalue()).decode("ascii"), picture.size


def outline(mask: Mask, view: tuple[int, int]) -> tuple[str, tuple[float, float]]:
    """Trace a mask's border as the data of an SVG path; holes come out by the even-odd rule.

    Args:
        mask: of any size.
        view: (width, height) of the drawing; the path has its units, whole numbers.

    Returns:
        The path ("" for an empty mask) and a point well inside the mask, (x, y) in per cent of the picture.
    """
    cover = _coverage(mask)
    if not cover.any():
        return "", (50.0, 50.0)
    level = min(0.5, float(cover.max()) / 2)  # what is thinner than a cell of the grid is drawn all the same
    padded = np.pad(cover, 1)  # zeros around it close every line
    height, width = cover.shape
    scale = np.array([view[0] / width, view[1] / height])
    # With "Separate" lines, the generator's default, they are arrays of points; its type allows for others.
    lines = cast("list[NDArray[np.float64]]", contourpy.contour_generator(z=padded, name="serial").lines(level))
    # Node i of the padded grid is the centre of cell i - 1, which lies at i - 0.5.
    rings = [np.rint(np.clip((line - 0.5) * scale, 0, view)).astype(int) for line in lines]
    depth = ndimage.distance_transform_edt(padded >= level)
    y, x = np.unravel_index(int(np.argmax(depth)), depth.shape)
    centre = (round(100 * (float(x) - 0.5) / width, 1), round(100 * (float(y) - 0.5) / height, 1))
    return "".join(map(_ring, rings)), centre


def _coverage(mask: Mask) -> NDArray[np.float32]:
    """Return how much of each cell of a grid of at most `_GRID` cells a side the mask covers, 0 to 1."""
    picture = Image.fromarray(mask.to_array().astype(np.uint8) * 255)
    size = _fit(picture.size, min(_GRID, max(picture.size)))
    return (np.asarray(picture.resize(size, Image.Resampling.BOX)) / np.float32(255)).astype(np.float32)


def _ring(line: NDArray[np.int_]) -> str:
    """Write a closed line, [N + 1, 2] int (x, y), as an SVG path in steps, without the points that bend nothing."""
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
    """Cut a caption at the spans of its phrases: every character is in one piece, in order.

    A piece has `text`, `phrase` (bool), `subject` (its index, or None), and a subject's `number` and `colour`.
    Of phrases that overlap the one that starts first is marked.

    Args:
        caption: the caption.
        spans: [start, end) of each phrase.
        owners: the subject that a phrase names, by the phrase's index; others name none.
    """
    at = 0
    for index, (start, end) in sorted(enumerate(spans), key=lambda item: (item[1][0], item[0])):
        if not at <= start < end <= len(caption):
            continue
        yield {"text": caption[at:start], "phrase": False, "subject": None}
        subject = owners.get(index)
        piece = {"text": caption[start:end], "phrase": True, "subject": subject}
        yield piece if subject is None else piece | {"number": subject + 1, "colour": f"c{subject % COLOURS}"}
        at = end
    yield {"text": caption[at:], "phrase": False, "subject": None}


def view_of(size: tuple[int, int]) -> tuple[int, int]:
    """Return the (width, height) of the drawing over a picture of that size, in units of its own."""
    return _fit(size, _VIEW)


def _fit(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Scale (width, height) to a longest side; no side becomes zero."""
    scale = longest / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
