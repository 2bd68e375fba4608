import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import schemas.images
from schemas.errors import RecordError
from schemas.images import (
    FORMATS,
    HEAD,
    MAX_PIXELS,
    MAX_SIDE,
    decode_grey,
    decode_image,
    encode_grey,
    encode_jpeg,
    is_picture,
    to_stored_jpeg,
)
from schemas.rejects import Reason
from tests.pictures import encode, scene, with_orientation


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, color: int, rows: bytes) -> bytes:
    """A PNG written by hand, for what Pillow reads but does not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def refusal(data: bytes) -> RecordError:
    with pytest.raises(RecordError) as caught:
        decode_image(data)
    with pytest.raises(RecordError) as stored:
        to_stored_jpeg(data)
    assert stored.value.reason == caught.value.reason
    return caught.value


# What a camera stores that says "orientation n", by the EXIF standard's table: n = 6 means that the stored first
# row is the scene's right side and the stored first column its top, so the scene was turned left.
STORED: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "WEBP"])
def test_a_lossless_picture_is_decoded_exactly(form: str) -> None:
    pixels = decode_image(encode(scene(), form, **({"lossless": True} if form == "WEBP" else {})))
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    np.testing.assert_array_equal(pixels, scene())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG"])
def test_a_turned_picture_stands_upright(form: str, orientation: int) -> None:
    stored = np.ascontiguousarray(STORED[orientation](scene()))
    pixels = decode_image(encode(stored, form, **with_orientation(orientation)))
    tolerance = 0 if form != "JPEG" else 12
    np.testing.assert_allclose(pixels.astype(int), scene().astype(int), atol=tolerance)


@pytest.mark.parametrize("data", [b"Exif\x00\x00garbage", b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\xff"])
def test_a_broken_exif_block_takes_nothing_from_the_picture(data: bytes) -> None:
    np.testing.assert_array_equal(decode_image(encode(scene(), exif=data)), scene())


def test_an_orientation_that_does_not_exist_is_ignored() -> None:
    np.testing.assert_array_equal(decode_image(encode(scene(), **with_orientation(9))), scene())


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(form: str) -> None:
    wide = np.array([[0, 128, 129, 257, 32_768, 65_535]], np.uint16)
    by_hand = [0, 0, 1, 1, 128, 255]
    assert decode_image(encode(wide, form))[0].tolist() == [[v, v, v] for v in by_hand]


def test_sixteen_bit_colour_is_scaled_not_clipped() -> None:
    data = png(2, 1, depth=16, color=2, rows=b"\x00" + struct.pack(">6H", 65_535, 32_768, 0, 514, 256, 40_000))
    np.testing.assert_allclose(decode_image(data)[0].astype(int), [[255, 128, 0], [2, 1, 156]], atol=1)


def test_pixels_without_a_range_are_refused() -> None:
    for values in (np.array([[0.0, 0.5]], np.float32), np.array([[0, 70_000]], np.int32)):
        assert str(refusal(encode(values, "TIFF"))) == (
            "undecodable-image: its 32-bit pixels have no fixed range: convert it to 8 or 16 bits per channel"
        )


def test_tags_that_a_tiff_breaks_are_nobody_s_concern() -> None:
    """Pillow warns of them while it loads the pixels, and warnings are errors here."""
    data = encode(scene(), "TIFF", tiffinfo={34665: 10**6})  # its EXIF block would begin behind the end of the file
    np.testing.assert_array_equal(decode_image(data), scene())


def test_cmyk_becomes_rgb() -> None:
    cmyk = Image.fromarray(np.full((16, 16, 4), (0, 255, 255, 0), np.uint8), "CMYK")
    for data in (encode(cmyk, "TIFF"), encode(cmyk, "JPEG", quality=100)):
        np.testing.assert_allclose(decode_image(data)[8, 8].astype(int), [255, 0, 0], atol=3)


def test_grey_and_one_bit_become_rgb() -> None:
    assert decode_image(encode(np.array([[7, 200]], np.uint8)))[0].tolist() == [[7] * 3, [200] * 3]
    assert (
        decode_image(encode(Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")))[0, 1].tolist() == [255] * 3
    )


def test_transparency_is_laid_on_white() -> None:
    layer = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)
    assert decode_image(encode(layer))[0].tolist() == [[200, 0, 0], [255, 255, 255], [204, 204, 204]]


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"])
def test_a_palette_with_transparency_is_laid_on_white(transparency: int | bytes) -> None:
    picture = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    picture.putpalette([10, 20, 30, 200, 100, 0])
    assert decode_image(encode(picture))[0].tolist() == [[10, 20, 30], [200, 100, 0]]
    assert decode_image(encode(picture, transparency=transparency))[0].tolist() == [[255] * 3, [200, 100, 0]]


def with_chunks(data: bytes, *chunks: bytes, behind_pixels: bool = False) -> bytes:
    """A PNG with more chunks, before its pixels or behind them."""
    place = data.index(b"IEND" if behind_pixels else b"IDAT") - 4
    return data[:place] + b"".join(chunks) + data[place:]


LONG = b"x" * 1_200_000
METADATA = {
    "a keyword that Pillow takes for the palette's transparency": chunk(b"tEXt", b"transparency\0none"),
    "a keyword that Pillow takes for the order of the rows": chunk(b"tEXt", b"interlace\0yes"),
    "a long comment": chunk(b"tEXt", b"comment\0" + LONG[:100_000]),
    "a long compressed text": chunk(b"zTXt", b"workflow\0\0" + zlib.compress(LONG)),
    "a long international text": chunk(b"iTXt", b"prompt\0\1\0\0\0" + zlib.compress(LONG)),
    "a long compressed EXIF block": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(LONG)),
    "long XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(LONG)),
    "a long colour profile": chunk(b"iCCP", b"profile\0\0" + zlib.compress(LONG)),
    "a text of an unknown compression": chunk(b"zTXt", b"note\0\7text"),
    "a text with a wrong checksum": chunk(b"tEXt", b"note\0text")[:-4] + b"\0\0\0\0",
}


@pytest.mark.parametrize("behind_pixels", [False, True])
@pytest.mark.parametrize("name", METADATA)
def test_texts_and_profiles_of_a_png_decide_nothing_over_its_pixels(name: str, behind_pixels: bool) -> None:
    plain = encode(scene())
    data = with_chunks(plain, METADATA[name], behind_pixels=behind_pixels)
    np.testing.assert_array_equal(decode_image(data), scene())
    assert to_stored_jpeg(data)[0] == to_stored_jpeg(plain)[0]


def test_a_text_takes_no_transparency_from_a_palette() -> None:
    picture = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    picture.putpalette([10, 20, 30, 200, 100, 0])
    data = with_chunks(encode(picture, transparency=0), METADATA[next(iter(METADATA))])
    assert decode_image(data)[0].tolist() == [[255] * 3, [200, 100, 0]]


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
EXIF_HEX = b"\nexif\n32\n" + with_orientation(6)["exif"].tobytes().hex().encode()


@pytest.mark.parametrize(
    "text",
    [
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(EXIF_HEX)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0en\0XMP\0" + zlib.compress(XMP)),
    ],
)
def test_a_text_that_holds_the_orientation_is_read(text: bytes) -> None:
    stored = np.ascontiguousarray(STORED[6](scene()))
    np.testing.assert_array_equal(decode_image(with_chunks(encode(stored), text)), scene())


@pytest.mark.parametrize("form", ["GIF", "JPEG"])
def test_a_comment_is_not_handed_to_the_encoder(form: str) -> None:
    options: dict[str, Any] = {"comment": b"y" * 60_000} | (with_orientation(3) if form == "JPEG" else {})
    stored, _ = to_stored_jpeg(encode(scene(), form, **options))
    assert stored == to_stored_jpeg(encode(scene(), form, **options | {"comment": b""}))[0]
    assert len(stored) < 20_000
    if form == "GIF":  # the comment of a JPEG ends where that of its copy would have to
        assert to_stored_jpeg(encode(scene(), form, comment=b"y" * 200_000))[0] == stored


def test_a_palette_picture_without_its_palette_is_refused() -> None:
    data = png(4, 2, depth=8, color=3, rows=b"\0\1\2\3\0" * 2)
    assert refusal(data).reason == Reason.UNDECODABLE_IMAGE


@pytest.mark.parametrize("form", ["BMP", "PNG", "WEBP", "TIFF"])
def test_where_nothing_is_opaque_the_alpha_means_nothing(form: str) -> None:
    layer = np.dstack([scene(), np.zeros((24, 32), np.uint8)])
    options: dict[str, Any] = {"lossless": True, "exact": True} if form == "WEBP" else {}
    data = encode(layer, form, **options)
    if form == "BMP":  # Pillow reads the fourth byte as alpha where the header names it: BITMAPV4HEADER
        masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
        header = struct.pack("<IiiHHIIiiII", 108, 32, 24, 1, 32, 3, 0, 0, 0, 0, 0) + masks + bytes(52)
        rows = layer[::-1, :, [2, 1, 0, 3]].tobytes()
        data = b"BM" + struct.pack("<IHHI", 122 + len(rows), 0, 0, 122) + header + rows
    np.testing.assert_array_equal(decode_image(data), scene())


def test_an_avif_is_a_picture() -> None:
    np.testing.assert_allclose(decode_image(encode(scene(), "AVIF", quality=100)).astype(int), scene(), atol=6)


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b'<?xml version="1.0"?>\n<svg width="5"/>', "SVG"),
    ],
)
def test_a_picture_of_a_format_that_is_not_decoded_is_named(start: bytes, name: str) -> None:
    error = refusal(start + b"\0" * 100)
    assert error.reason == Reason.UNDECODABLE_IMAGE
    assert error.detail == f"a picture of the format {name}, which is not decoded: convert it to JPEG or PNG"


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animated_picture_is_refused(form: str) -> None:
    frames = [Image.fromarray(np.roll(scene(), n, 1)) for n in range(3)]
    error = refusal(encode(frames[0], form, save_all=True, append_images=frames[1:]))
    assert error.reason == Reason.ANIMATED_IMAGE
    assert "3 frames" in error.detail


def test_a_gif_of_one_frame_is_a_picture() -> None:
    assert decode_image(encode(scene(), "GIF")).shape == (24, 32, 3)


def test_the_first_picture_of_a_phones_mpo_is_the_photograph() -> None:
    data = encode(Image.fromarray(scene()), "MPO", save_all=True, append_images=[Image.fromarray(255 - scene())])
    jpeg, pixels = to_stored_jpeg(data)
    assert jpeg == data
    np.testing.assert_allclose(pixels.astype(int), scene().astype(int), atol=12)


def test_no_bytes_are_an_empty_image() -> None:
    assert refusal(b"").reason == Reason.EMPTY_IMAGE


def test_formats_that_are_no_pictures_of_a_dataset_are_refused() -> None:
    assert refusal(encode(scene(), "PPM")).detail == (
        "a picture of the format Portable Anymap, which is not decoded: convert it to JPEG or PNG"
    )


@pytest.mark.parametrize("form", [*FORMATS, "PPM", "PCX", "ICO", "DDS", "JPEG2000"])
def test_a_picture_begins_like_one(form: str) -> None:
    """As Pillow writes the formats."""
    assert is_picture(encode(scene(), form)[:HEAD])


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\0" * HEAD,
        b"P3 is a player\n",
        b"<html>",
        b"%PDF-1.7",
        b"PK\3\4",
        b"\x93NUMPY",
        b"BMW, a car",
        b"ftypmp42",
        b"\n",
        b"<!--" * 249 + b"<svg",
        b"<!-- -->" * 100,
        b"\0\0\0\x18ftypmp42\0\0\0\0isommp42",
        b"II",
        b"RIFF\0\0\0\0WAVE",
    ],
)
def test_what_does_not_begin_like_a_picture_is_none(head: bytes) -> None:
    assert not is_picture(head)


def test_the_preview_in_a_camera_s_raw_file_is_not_the_photograph() -> None:
    """Raw files are TIFFs whose first picture is a small preview, and says so."""
    assert "a small preview" in refusal(encode(scene(), "TIFF", tiffinfo={254: 1})).detail
    assert to_stored_jpeg(encode(scene(), "TIFF", tiffinfo={254: 0}))[1].shape == (24, 32, 3)


@pytest.mark.parametrize("data", [b"\x00" * 500, b"<html>404</html>", b"\xff\xd8\xff", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    assert refusal(data).reason == Reason.UNDECODABLE_IMAGE


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_a_truncated_picture_is_refused_never_half_grey(form: str, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encode(noise, form)
    assert refusal(data[: int(len(data) * kept)]).reason == Reason.UNDECODABLE_IMAGE


def test_a_progressive_jpeg_cut_off_is_refused() -> None:
    data = encode(scene(128, 128), "JPEG", progressive=True)
    assert refusal(data[: len(data) // 2]).reason == Reason.UNDECODABLE_IMAGE


def test_a_flipped_byte_in_a_png_is_refused() -> None:
    data = bytearray(encode(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)))
    data[len(data) // 2] ^= 0xFF
    assert refusal(bytes(data)).reason == Reason.UNDECODABLE_IMAGE


@pytest.mark.parametrize(("width", "height"), [(MAX_PIXELS, 2), (8_193, 8_192), (60_000, 60_000)])
def test_a_decompression_bomb_is_refused_by_its_header(width: int, height: int) -> None:
    """The file holds no pixels at all, so it can only have been refused before decoding them."""
    error = refusal(png(width, height, depth=8, color=2, rows=b""))
    # Pillow itself refuses the largest ones, without saying how large they are.
    size = f"{width} x {height} pixels" if width * height < 2**28 else "its header"
    assert str(error) == f"huge-image: {size} exceeds the limit of 67,108,864 pixels; scale it down"


def test_a_side_that_no_jpeg_has_is_refused() -> None:
    data = encode(np.zeros((1, MAX_SIDE + 1), np.uint8))
    assert decode_image(data).shape == (1, MAX_SIDE + 1, 3)
    with pytest.raises(RecordError, match=r"huge-image: 65501 x 1 pixels: no side"):
        to_stored_jpeg(data)


@pytest.mark.parametrize("options", [{}, with_orientation(1), {"progressive": True, "quality": 40}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_upright_jpeg_is_stored_byte_for_byte(mode: str, options: dict[str, Any]) -> None:
    data = encode(Image.fromarray(scene()).convert(mode), "JPEG", **options)
    jpeg, pixels = to_stored_jpeg(data)
    assert jpeg == data
    np.testing.assert_array_equal(pixels, decode_image(data))


def stored_again() -> dict[str, bytes]:
    return {
        "turned": encode(np.rot90(scene()), "JPEG", quality=95, **with_orientation(6)),
        "cmyk": encode(Image.fromarray(scene()).convert("CMYK"), "JPEG", quality=95),
        "png": encode(scene()),
        "webp": encode(scene(), "WEBP", lossless=True),
    }


@pytest.mark.parametrize("name", stored_again())
def test_everything_else_is_stored_as_a_fine_upright_jpeg(name: str) -> None:
    data = stored_again()[name]
    jpeg, pixels = to_stored_jpeg(data)
    with Image.open(io.BytesIO(jpeg)) as stored:
        assert (stored.format, stored.mode, stored.size) == ("JPEG", "RGB", (32, 24))
        assert stored.getexif().get(0x0112, 1) == 1
        np.testing.assert_array_equal(np.asarray(stored), pixels)
        layers: Any = stored
        assert {(h, v) for _, h, v, _ in layers.layer} == {(1, 1)}
    np.testing.assert_allclose(pixels.astype(int), scene().astype(int), atol=10)


def test_the_largest_picture_that_is_decoded_has_exactly_the_limit_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(scene(24, 32))
    monkeypatch.setattr(schemas.images, "MAX_PIXELS", 24 * 32)
    assert decode_image(data).shape == (24, 32, 3)
    monkeypatch.setattr(schemas.images, "MAX_PIXELS", 24 * 32 - 1)
    assert str(refusal(data)) == "huge-image: 32 x 24 pixels exceeds the limit of 767 pixels; scale it down"


def test_the_longest_side_of_a_jpeg_is_still_stored() -> None:
    jpeg, pixels = to_stored_jpeg(encode(np.zeros((1, MAX_SIDE), np.uint8)))
    assert pixels.shape == (1, MAX_SIDE, 3)
    with Image.open(io.BytesIO(jpeg)) as stored:
        assert stored.size == (MAX_SIDE, 1)


def test_an_undecodable_picture_is_described() -> None:
    assert str(refusal(b"<html>404</html>")) == "undecodable-image: not a picture of a known format"
    cut = encode(scene(), "JPEG")[:200]
    assert "not a picture" not in refusal(cut).detail
    assert str(refusal(b"")) == "empty-image: the file holds no bytes"
    frames = [Image.fromarray(np.roll(scene(), n, 1)) for n in range(2)]
    animated = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert refusal(animated).detail == "2 frames: a caption describes one; save the wanted one alone"


def test_an_error_without_words_is_named_by_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise IndexError

    monkeypatch.setattr(Image, "open", broken)
    assert refusal(b"bytes").detail == "IndexError"


def test_want_of_memory_is_no_fault_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", hungry)
    with pytest.raises(MemoryError):
        decode_image(b"bytes")


def test_pictures_are_encoded_at_quality_95_with_colour_at_full_resolution() -> None:
    best = io.BytesIO()
    Image.fromarray(scene()).save(best, "JPEG", quality=95, subsampling=0)
    assert encode_jpeg(scene()) == best.getvalue()


def test_grey_values_are_kept_without_loss() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(8, 32)
    png = encode_grey(values)
    with Image.open(io.BytesIO(png)) as stored:
        assert (stored.format, stored.mode, stored.size) == ("PNG", "L", (32, 8))
    decoded = decode_grey(png)
    assert decoded.dtype == np.uint8
    assert decoded.flags.writeable
    np.testing.assert_array_equal(decoded, values)


@pytest.mark.parametrize(("form", "mode"), [("JPEG", "L"), ("PNG", "RGB"), ("PNG", "1"), ("BMP", "L")])
def test_what_is_no_png_of_grey_values_is_refused(form: str, mode: str) -> None:
    data = encode(Image.fromarray(scene()).convert(mode), form)
    with pytest.raises(RecordError, match=f"^undecodable-image: a {form} of mode {mode} is not an 8-bit") as caught:
        decode_grey(data)
    assert caught.value.reason is Reason.UNDECODABLE_IMAGE


def test_a_png_of_grey_values_that_was_cut_off_is_refused() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    with pytest.raises(RecordError) as caught:
        decode_grey(encode_grey(noise)[:2000])
    assert caught.value.reason is Reason.UNDECODABLE_IMAGE
