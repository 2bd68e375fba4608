"""From the bytes of a picture file to pixels, and to the JPEG that a shard stores.

Whatever a source holds (16-bit, CMYK, palette, transparent, turned by EXIF) leaves here as upright 8-bit RGB.
A picture that is truncated or cannot be converted faithfully is refused: half a picture teaches a model grey
rectangles.
"""

import io
import re
import struct
import threading
import warnings
import zlib
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

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""The formats that are decoded. Pillow knows forty more, some of which start other programs (EPS)."""

_DECODED = rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF.{4}WEBP|GIF8[79]a|BM.{4}\0{4}|(II[*+]\0|MM\0[*+])|.{4}ftypavi[fs]"
"""What a file in one of these formats begins with."""

_OTHERS = {
    "HEIC": rb".{4}ftyp(mif1|msf1|.{0,64}?he[iv][cmsx])",
    "JPEG XL": rb"\xff\x0a|.{4}JXL ",
    "JPEG 2000": rb".{4}jP  |\xff\x4f\xff\x51",
    "JPEG XR": rb"II\xbc",
    "SVG": rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--((?!-->).)*-->\s*|<!DOCTYPE[^>]*>\s*)*<svg",
    "Photoshop": rb"8BPS",
    "GIMP": rb"gimp xcf ",
    "camera raw": rb".{4}ftypcrx |FUJIFILMCCD-RAW|IIR[OS]|MMOR|IIU\0",
    "OpenEXR": rb"v/1\x01",
    "Radiance HDR": rb"#\?(RADIANCE|RGBE)\n",
    "DirectDraw Surface": rb"DDS \x7c\0\0\0",
    "Portable Anymap": rb"P([1-6]\s+(#[^\n]*\n\s*)*\d+\s+\d+\s|7\nWIDTH |[Ff]\n\d+ \d+\n)",
    "PCX": rb"\x0a[\0-\x05]\x01[\x01\x02\x04\x08].{60}\0",
    "QOI": rb"qoif.{8}[\x03\x04][\0\x01]",
    "Apple icon": rb"icns",
    "Windows icon": rb"\0\0[\x01\x02]\0[\x01-\x40]\0.{3}\0",
    "FITS": rb"SIMPLE  =",
    "DICOM": rb".{128}DICM",
}
"""Formats of pictures that are not decoded, by what a file begins with."""

_DOCUMENTS = {"PDF": rb"%PDF", "PostScript": rb"%!PS"}
"""Documents that are now and then saved as pictures, by what a file begins with."""

HEAD = 1000
"""Bytes at the beginning of a file that tell its format."""

_ORIENTATIONS = (b"exif", b"Raw profile type exif", b"XML:com.adobe.xmp")
"""Keywords of a PNG's texts in which programs write the EXIF orientation."""

_MAX_TEXT = 2**20
"""Most bytes of such a text. Pillow refuses a picture with a longer one (PngImagePlugin.MAX_TEXT_CHUNK)."""

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
    with _decoding():
        upright = _rgb(picture)
    stored = _to_jpeg(upright)
    # The pixels of the JPEG, not those before it: whoever opens the shard sees the same ones.
    return stored, decode_image(stored)


def is_picture(head: bytes) -> bool:
    """Whether a file that begins with the `HEAD` bytes `head` is a picture, of a format that is decoded or not."""
    return any(re.match(start, head, re.DOTALL) for start in (_DECODED, *_OTHERS.values()))


def is_turned(data: bytes) -> bool:
    """Whether the EXIF orientation of a picture file rotates or mirrors it; a broken or unknown one does not."""
    try:
        with _quiet(), Image.open(io.BytesIO(_without_texts(data)), formats=FORMATS) as picture:
            return picture.getexif().get(ExifTags.Base.Orientation, 1) in _UPRIGHT
    except Exception:  # as in `_upright`
        return False


def encode_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """Encode [H, W, 3] uint8 RGB as shards store pictures: quality 95, colour at full resolution."""
    return _to_jpeg(Image.fromarray(pixels))


def _to_jpeg(picture: Image.Image) -> bytes:
    stored = io.BytesIO()
    # Without `comment`, that of a GIF or of another JPEG is written, and one of 64 KiB or more is an error.
    picture.save(stored, "JPEG", quality=95, subsampling="4:4:4", comment=b"")
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


def decode_png(png: bytes) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Decode a PNG of 8-bit grey, 16-bit grey or 8-bit RGB: [H, W] uint8, [H, W] uint16 or [H, W, 3] uint8.

    Raises:
        RecordError: UNDECODABLE_IMAGE, it is no PNG of these; HUGE_IMAGE as `decode_image`.
    """
    opened = _open(png)
    if opened.format != "PNG" or opened.mode not in ("L", "I;16", "RGB"):
        raise RecordError(
            Reason.UNDECODABLE_IMAGE,
            f"a {opened.format} of mode {opened.mode} is no PNG of 8-bit grey, 16-bit grey or 8-bit RGB",
        )
    with _decoding():
        return np.array(opened, dtype=np.uint16) if opened.mode == "I;16" else np.array(opened, dtype=np.uint8)


def _open(data: bytes) -> Image.Image:
    """Read the header; raise a RecordError for a picture that must not be decoded."""
    if not data:
        raise RecordError(Reason.EMPTY_IMAGE, "the file holds no bytes")
    with _quiet(), _decoding():
        try:
            picture = Image.open(io.BytesIO(_without_texts(data)), formats=FORMATS)
        except UnidentifiedImageError:
            _check_format(data)
            raise
        if picture.width * picture.height > MAX_PIXELS:
            raise _huge(f"{picture.width} x {picture.height} pixels")
        # A phone's JPEG carries a preview or a gain map as second picture (MPO): its first one is the photograph.
        frames = 1 if picture.format in ("JPEG", "MPO") else getattr(picture, "n_frames", 1)
        if frames > 1:
            raise RecordError(
                Reason.ANIMATED_IMAGE, f"{frames} frames: a caption describes one; save the wanted one alone"
            )
        if picture.format == "TIFF":
            if picture.getexif().get(ExifTags.Base.NewSubfileType) == 1:
                detail = "its TIFF is a small preview, as in a camera's raw file: convert that to JPEG or PNG"
                raise RecordError(Reason.UNDECODABLE_IMAGE, detail)
            picture.load()  # here, where warnings are silenced: it reads its tags while loading
    return picture


def _without_texts(data: bytes) -> bytes:
    """Leave out a PNG's colour profile and texts, but for those with the orientation; other files stay as they are.

    Pillow refuses a picture with a long one, and takes the keywords "transparency" and "interlace" for properties of
    the pixels.
    """
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    kept, start, end = [], 0, 8
    while end + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, end)
        body = data[end + 8 : end + 8 + length] if kind in (b"tEXt", b"zTXt", b"iTXt") else b""
        if kind == b"iCCP" or (body and not _has_orientation(kind, body)):
            kept.append(data[start:end])
            start = end + 12 + length
        end += 12 + length  # a chunk: length, kind, body, checksum
    return b"".join([*kept, data[start:]]) if kept else data


def _has_orientation(kind: bytes, body: bytes) -> bool:
    """Whether a PNG's text may hold the orientation, and is short enough to be read."""
    keyword, _, rest = body.partition(b"\0")
    if keyword not in _ORIENTATIONS:
        return False
    if kind == b"zTXt":
        compressed = rest[1:]
    elif kind == b"iTXt" and rest[:1] == b"\1":
        compressed = rest[2:].split(b"\0", 2)[-1]  # behind the language and the translated keyword
    else:
        return len(body) <= _MAX_TEXT
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(compressed, _MAX_TEXT)
    except zlib.error:
        return False
    return not unpacker.unconsumed_tail


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
        if layer.getchannel("A").getextrema()[1] == 0:
            # BMPs of 32 bits often leave the fourth byte 0, and viewers show them opaque.
            return layer.convert("RGB")
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


def _check_format(data: bytes) -> None:
    """Raise a RecordError that names the format of a picture that is none of `FORMATS`."""
    for name, start in (_OTHERS | _DOCUMENTS).items():
        if re.match(start, data[:HEAD], re.DOTALL):
            detail = f"a picture of the format {name}, which is not decoded: convert it to JPEG or PNG"
            raise RecordError(Reason.UNDECODABLE_IMAGE, detail)


def _huge(size: str) -> RecordError:
    return RecordError(Reason.HUGE_IMAGE, f"{size} exceeds the limit of {MAX_PIXELS:,} pixels; scale it down")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Pillow's warnings about odd headers: a picture is either fine or a reject."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
