"""BLIP-Diffusion's card: its four pictures, and below each the part of the subject's edge with most soft pixels."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from jobs.report import figures
from jobs.report.card import Section, counted, default_card, numbers
from jobs.report.parts import common_fields, data_address
from schemas.dataset import DatasetInfo
from schemas.images import decode_grey, decode_image
from schemas.samples.blip_diffusion import FORMAT, Record
from schemas.shards import Sample

THUMBNAIL = 400
"""Longest side of each picture, in pixels."""

CLOSE_UP = 48
"""Side of the enlarged part, in pixels; less in a picture that is smaller."""

_QUALITY = 80  # of thumbnails, JPEG

Window = tuple[int, int, int, int]
"""[x, y, w, h] in pixels."""


def fill(sample: Sample) -> dict[str, Any]:
    """Return what `blip_diffusion.html.j2` shows of a sample."""
    record = Record.from_sample(sample)
    alpha = decode_grey(sample.members["alpha.png"])
    window = softest_window(alpha)
    pictures = {
        "Picture": (decode_image(sample.members["target.jpg"]), window),
        "Trimap": (decode_grey(sample.members["trimap.png"]), window),
        "Alpha": (alpha, window),
        "Input": (decode_image(sample.members["input.jpg"]), placed_window(window, record, alpha.shape)),
    }
    return common_fields(record) | {
        "panels": [_panel(name, *shown) for name, shown in pictures.items()],
        "width": record.width,
        "height": record.height,
        "caption": record.caption,
        "caption_origin": record.caption_origin,
        "subject": record.subject,
        "phrase": record.phrase,
        "bbox": ", ".join(map(str, record.bbox)),
        "covers": f"{record.foreground_fraction:.1%}",
        "unknown": f"{record.unknown_fraction:.1%}",
        "background": record.background,
        "placement": _placement(record),
    }


def _placement(record: Record) -> str:
    placement = record.placement
    parts = [f"scaled by {placement.scale:g}"] if placement.scale != 1 else []
    parts += [f"moved by {placement.shift[0]}, {placement.shift[1]}"] if placement.shift != (0, 0) else []
    parts += ["mirrored"] if placement.flip else []
    return ", ".join(parts) or "in its place"


def softest_window(alpha: NDArray[np.uint8]) -> Window:
    """Return the square with most alphas that are neither 0 nor 255; of several, the first.

    Args:
        alpha: [H, W] uint8.
    """
    side = min(CLOSE_UP, *alpha.shape)
    # sums[y, x] counts the soft pixels above and to the left of (y, x); four of them give the count in a square.
    sums = np.pad(((alpha > 0) & (alpha < 255)).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    counts = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    y, x = np.unravel_index(int(np.argmax(counts)), counts.shape)
    return int(x), int(y), side, side


def placed_window(window: Window, record: Record, size: tuple[int, ...]) -> Window:
    """Return the window of the input that shows what a window of the target shows.

    The subject was mirrored, scaled about the middle of its box and moved; the window's centre follows, its side
    stays. `size` is the input's (height, width).
    """
    x, y, side, _ = window
    left, top, w, h = record.bbox
    placement = record.placement
    dx, dy = x + side / 2 - (left + w / 2), y + side / 2 - (top + h / 2)
    middle_x = left + w / 2
    if placement.flip:
        dx, middle_x = -dx, record.width - middle_x
    centre_x = middle_x + placement.scale * dx + placement.shift[0]
    centre_y = top + h / 2 + placement.scale * dy + placement.shift[1]
    return _inside(round(centre_x - side / 2), round(centre_y - side / 2), side, size)


def _inside(x: int, y: int, side: int, size: tuple[int, ...]) -> Window:
    return min(max(x, 0), size[1] - side), min(max(y, 0), size[0] - side), side, side


def _panel(name: str, pixels: NDArray[np.uint8], window: Window) -> dict[str, Any]:
    x, y, w, h = window
    height, width = pixels.shape[:2]
    at = [round(100 * part / whole, 2) for part, whole in ((x, width), (y, height), (w, width), (h, height))]
    close_up = Image.fromarray(np.ascontiguousarray(pixels[y : y + h, x : x + w]))
    return {"name": name, "whole": _thumbnail(pixels), "close": data_address(close_up, "PNG", optimize=True), "at": at}


def _thumbnail(pixels: NDArray[np.uint8]) -> str:
    picture = Image.fromarray(pixels)
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return data_address(picture, "JPEG", quality=_QUALITY, optimize=True)


def sections(index: pa.Table, info: DatasetInfo) -> list[Section]:  # noqa: ARG001 - the config draws nothing here
    """Return the histograms of the mattes' shares, and the subjects by class."""
    measures = {
        "foreground_fraction": "share of the picture that the subject covers",
        "unknown_fraction": "unknown share",
    }
    return [
        Section("Mattes", [figures.score_histogram(numbers(index[name]), what) for name, what in measures.items()]),
        Section("Subjects", panels={"By class": figures.label_bars(counted(index["subject"]), "class", "subjects")}),
    ]


CARD = replace(
    default_card(FORMAT),
    title="BLIP-Diffusion",
    lead="From left to right: picture, trimap, alpha and input; below each, the part of the subject's edge with most "
    "soft pixels, enlarged.",
    template="blip_diffusion.html.j2",
    fill=fill,
    sections=sections,
    origin=figures.origin_of_mattes,
    score="unknown_fraction",
    groups={"low": "Least unknown", "high": "Most unknown"},
)
