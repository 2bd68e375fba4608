"""From the bytes of a picture file to pixels, and to the JPEG that a shard stores.

Whatever a source holds (16-bit, CMYK, palette, transparent, turned by EXIF) leaves here as upright 8-bit RGB.
A picture that is truncated or cannot be converted faithfully is refused: half a picture teaches a model grey
rectangles.
"""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from schemas.errors import RecordError
from schemas.rejects import Reason

MAX_PIXELS = 2**26
"""Largest picture that is decoded, 8,192 x 8,192 or as many pixels otherwise: 200 MB as RGB."""

MAX_SIDE = 65_500
"""Longest side that a JPEG can have (libjpeg's JPEG_MAX_DIMENSION)."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""The formats that are decoded. Pillow knows forty more, some of which start other programs (EPS)."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Changing Python's warning filters is not thread-safe, and a worker reads with several threads.
_FILTERS = threading.Lock()


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """Decode a picture file to [H, W, 3] uint8 RGB, upright.

    The EXIF orientation is applied, 16 bits are scaled to 8, transparency is laid on white, CMYK and palettes
    become RGB (by Pillow's plain formula: colour profiles are not applied).

    Raises:
        RecordError: with EMPTY_IMAGE (no bytes), HUGE_IMAGE (the header states more than `MAX_PIXELS`; nothing
            is decoded), ANIMATED_IMAGE (more than one frame or page) or UNDECODABLE_IMAGE (not a picture,
            corrupt or cut off).
    """
    return _pixels(_upright(_open(data))[0])


def to_stored_jpeg(data: bytes) -> tuple[bytes, NDArray[np.uint8]]:
    """Return the JPEG that a shard stores for a picture file, and its pixels, [H, W, 3] uint8 RGB.

    A JPEG that is 8-bit RGB or grey and upright is kept byte for byte: encoding again loses detail and time.
    Everything else is encoded (quality 95, colour at full resolution). A JPEG that only its EXIF orientation
    turns upright is encoded too, because most training loaders ignore that tag: they would show the picture
    lying on its side, with masks and boxes that do not fit.

    Raises:
        RecordError: as `decode_image`; HUGE_IMAGE also for a side longer than a JPEG can have.
    """
    opened = _open(data)
    picture, turned = _upright(opened)
    if opened.format in ("JPEG", "MPO") and opened.mode in ("RGB", "L") and not turned:
        return data, _pixels(picture)
    if max(picture.size) > MAX_SIDE:
        raise RecordError(
            Reason.HUGE_IMAGE,
            f"{picture.width} x {picture.height} pixels: no side of a JPEG is longer than {MAX_SIDE}",
        )
    stored = _to_jpeg(_rgb(picture))
    # The pixels of the JPEG, not those before it: whoever opens the shard sees the same ones.
    return stored, decode_image(stored)


def encode_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """Encode [H, W, 3] uint8 RGB as shards store pictures: quality 95, colour at full resolution."""
    return _to_jpeg(Image.fromarray(pixels))


def _to_jpeg(picture: Image.Image) -> bytes:
    stored = io.BytesIO()
    picture.save(stored, "JPEG", quality=95, subsampling="4:4:4")
    return stored.getvalue()


def encode_grey(values: NDArray[np.uint8]) -> bytes:
    """Encode [H, W] uint8 as a PNG of 8 bits, without loss."""
    stored = io.BytesIO()
    Image.fromarray(values).save(stored, "PNG")
    return stored.getvalue()


def decode_grey(png: bytes) -> NDArray[np.uint8]:
    """Decode a PNG of 8-bit grey to [H, W] uint8.

    Raises:
        RecordError: UNDECODABLE_IMAGE, it is not such a PNG.
    """
    opened = _open(png)
    if opened.format != "PNG" or opened.mode != "L":
        raise RecordError(Reason.UNDECODABLE_IMAGE, f"a {opened.format} of mode {opened.mode} is not an 8-bit grey PNG")
    with _decoding():
        return np.array(opened, dtype=np.uint8)


def _open(data: bytes) -> Image.Image:
    """Read the header; raise a RecordError for a picture that must not be decoded."""
    if not data:
        raise RecordError(Reason.EMPTY_IMAGE, "the file holds no bytes")
    with _quiet(), _decoding():
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        if picture.width * picture.height > MAX_PIXELS:
            raise _huge(f"{picture.width} x {picture.height} pixels")
        # A phone's JPEG carries a preview or a gain map as second picture (MPO): its first one is the photograph.
        frames = 1 if picture.format in ("JPEG", "MPO") else getattr(picture, "n_frames", 1)
        if frames > 1:
            raise RecordError(
                Reason.ANIMATED_IMAGE, f"{frames} frames: a caption describes one; save the wanted one alone"
            )
        if picture.format == "TIFF":
            picture.load()  # here, where warnings are silenced: it reads its tags while loading
    return picture


def _upright(picture: Image.Image) -> tuple[Image.Image, bool]:
    """Decode, and turn by the EXIF orientation; the second value tells whether that changed anything."""
    with _decoding():
        picture.load()
    try:
        with _quiet():
            # After load(): a PNG may carry it behind its pixels, and Pillow has turned a TIFF by then.
            method = _UPRIGHT.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a broken tag block takes nothing from the pixels, and readers disagree on how it breaks
        method = None
    return (picture, False) if method is None else (picture.transpose(method), True)


def _rgb(picture: Image.Image) -> Image.Image:
    """Convert a decoded picture of any mode to 8-bit RGB."""
    if picture.mode.startswith("I;16"):
        # round(v / 257) takes 65,535 to 255; Pillow's own conversion clips at 255.
        wide = np.asarray(picture).astype(np.uint32)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        raise RecordError(
            Reason.UNDECODABLE_IMAGE, "its 32-bit pixels have no fixed range: convert it to 8 or 16 bits per channel"
        )
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")


def _pixels(picture: Image.Image) -> NDArray[np.uint8]:
    with _decoding():
        return np.array(_rgb(picture), dtype=np.uint8)


@contextmanager
def _decoding() -> Iterator[None]:
    """Convert whatever Pillow raises for a bad file to a RecordError."""
    try:
        yield
    except (RecordError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise _huge("its header") from error
    except Exception as error:  # decoders raise a dozen types, by the place where the bytes stop making sense
        detail = "not a picture of a known format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise RecordError(Reason.UNDECODABLE_IMAGE, detail or type(error).__name__) from error


def _huge(size: str) -> RecordError:
    return RecordError(Reason.HUGE_IMAGE, f"{size} exceeds the limit of {MAX_PIXELS:,} pixels; scale it down")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Pillow's warnings about odd headers: a picture is either fine or a reject."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
