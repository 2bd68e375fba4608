"""A BLIP-Diffusion sample as a card of the report: its four pictures, and the part of its edge that was hardest."""

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from schemas.images import decode_grey, decode_image
from schemas.samples.blip_diffusion import Record
from schemas.shards import Sample

THUMBNAIL = 400
"""Longest side of each picture, pixels."""

CLOSE = 48
"""Side of the part that is shown pixel by pixel, pixels; less in a picture that has fewer."""

_QUALITY = 80

Window = tuple[int, int, int, int]
"""[x, y, w, h] in pixels."""


def blip_diffusion_card(sample: Sample) -> dict[str, Any]:
    """Return what `blip_diffusion.html.j2` draws of a sample."""
    record = Record.from_sample(sample)
    alpha = decode_grey(sample.members["alpha.png"])
    window = hardest_window(alpha)
    pictures = {
        "Picture": (decode_image(sample.members["target.jpg"]), window),
        "Trimap": (decode_grey(sample.members["trimap.png"]), window),
        "Alpha": (alpha, window),
        "Input": (decode_image(sample.members["input.jpg"]), placed_window(window, record, alpha.shape)),
    }
    return {
        "key": sample.key,
        "panels": [_panel(name, *shown) for name, shown in pictures.items()],
        "width": record.width,
        "height": record.height,
        "stored": (record.width, record.height),
        "caption": record.caption,
        "caption_origin": record.caption_origin,
        "subject": record.subject,
        "phrase": record.phrase,
        "bbox": ", ".join(map(str, record.bbox)),
        "covers": f"{record.foreground_fraction:.1%}",
        "unknown": f"{record.unknown_fraction:.1%}",
        "background": record.background,
        "placement": _placement(record),
        "source": record.source.uri,
        "license": record.source.license,
    }


def _placement(record: Record) -> str:
    placement = record.placement
    parts = [f"scaled by {placement.scale:g}"] if placement.scale != 1 else []
    parts += [f"moved by {placement.shift[0]}, {placement.shift[1]}"] if placement.shift != (0, 0) else []
    parts += ["mirrored"] if placement.flip else []
    return ", ".join(parts) or "in its place"


def hardest_window(alpha: NDArray[np.uint8]) -> Window:
    """Return the square with the most alphas [H, W] that are neither 0 nor 255; the first one of several."""
    side = min(CLOSE, *alpha.shape)
    mixed = ((alpha > 0) & (alpha < 255)).astype(np.float32)
    density = ndimage.uniform_filter(mixed, side, mode="constant")
    y, x = np.unravel_index(int(np.argmax(density)), alpha.shape)
    return _inside(int(x) - side // 2, int(y) - side // 2, side, alpha.shape)


def placed_window(window: Window, record: Record, size: tuple[int, ...]) -> Window:
    """Move a window of the target to where its middle lies in the input."""
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
    close = Image.fromarray(np.ascontiguousarray(pixels[y : y + h, x : x + w]))
    return {"name": name, "whole": _thumbnail(pixels), "close": _address(close, "PNG", optimize=True), "at": at}


def _thumbnail(pixels: NDArray[np.uint8]) -> str:
    picture = Image.fromarray(pixels)
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return _address(picture, "JPEG", quality=_QUALITY, optimize=True)


def _address(picture: Image.Image, form: str, **options: Any) -> str:  # noqa: ANN401 - Pillow's own
    stored = io.BytesIO()
    picture.save(stored, form, **options)
    return f"data:image/{form.lower()};base64," + base64.b64encode(stored.getvalue()).decode("ascii")
