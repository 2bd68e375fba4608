"""Maps that come with a picture: `dog.depth.png` beside `dog.jpg`, or the member of a tar. No model runs for them."""

from typing import Literal

import numpy as np

from schemas.errors import RecordError
from schemas.images import decode_png
from schemas.maps import MAPS, Map, Pixels, make_map, to_pixels
from schemas.rejects import Reason

DepthFiles = Literal["nearness", "distance"]
"""What a depth file holds: larger values nearer, or the distance in any unit, 0 where it is not known."""


def read_given(kind: str, png: bytes, size: tuple[int, int], depth_files: DepthFiles = "nearness") -> Map:
    """Read a map that came with a picture of `size` (height, width).

    Depth may have 8 or 16 bits. Distances become 1 / distance, in one over their unit; 0 where the distance is not
    known.

    Raises:
        RecordError: INVALID_MAP, it cannot be decoded, is of another size, or of another type than its kind.
    """
    pixels: Pixels
    try:
        pixels = decode_png(png)
    except RecordError as error:
        raise _invalid(kind, error.detail) from error
    if pixels.shape[:2] != size:
        raise _invalid(kind, f"{pixels.shape[1]} x {pixels.shape[0]} pixels, its picture has {size[1]} x {size[0]}")
    if pixels.ndim == 3 and MAPS[kind].channels == 1:
        if (pixels != pixels[..., :1]).any():
            raise _invalid(kind, "it is coloured, and must be grey")
        pixels = np.ascontiguousarray(pixels[..., 0], np.uint8)  # no PNG of 16 bits is coloured here
    if kind == "depth":
        return _depth(pixels, depth_files)
    bits = pixels.dtype.itemsize * 8
    if (pixels.ndim == 3) != (MAPS[kind].channels == 3) or bits != MAPS[kind].bits:
        raise _invalid(kind, f"{bits} bits of {'colour' if pixels.ndim == 3 else 'grey'}: see docs/condition-maps.md")
    return make_map(kind, pixels, "source", "", {})


def _depth(pixels: Pixels, depth_files: DepthFiles) -> Map:
    parameters = {"files": depth_files, "bits": pixels.dtype.itemsize * 8}
    if depth_files == "nearness":
        wide = pixels if pixels.dtype == np.uint16 else pixels.astype(np.uint16) * 257
        return make_map(
            "depth", wide.astype(np.uint16), "source", "", parameters, (0.0, float(np.iinfo(pixels.dtype).max))
        )
    is_known = pixels > 0
    if not is_known.any():
        raise _invalid("depth", "no pixel has a known distance")
    nearness = np.divide(1.0, pixels, where=is_known, out=np.zeros(pixels.shape))
    bounds = 0.0, float(nearness.max())
    stored = np.where(is_known, np.maximum(to_pixels("depth", nearness, bounds), 1), 0).astype(np.uint16)
    return make_map("depth", stored, "source", "", parameters, bounds)


def _invalid(kind: str, why: str) -> RecordError:
    return RecordError(Reason.INVALID_MAP, f"the {kind} map beside the picture cannot be used: {why}")
