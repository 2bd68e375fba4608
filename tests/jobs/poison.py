"""Fifty kinds of poison for a folder of pictures: each writes a few files, named after its kind."""

import gzip
import io
import json
import os
import socket
import struct
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.datasets import jpeg
from tests.pictures import encode, scene, with_orientation

Write = Callable[[Path], object]
"""Writes into a folder, which is the source or one below it."""

GOOD = jpeg(32, 24)


def files(**contents: bytes | str) -> Write:
    """Files named "poison", by extension; "__" stands for a dot."""

    def write(folder: Path) -> None:
        for extension, content in contents.items():
            data = content if isinstance(content, bytes) else content.encode()
            (folder / f"poison.{extension.replace('__', '.')}").write_bytes(data)

    return write


def picture(data: bytes, extension: str = "jpg") -> Write:
    contents: dict[str, bytes | str] = {extension: data, "txt": "a caption"}
    return files(**contents)


def caption(text: bytes | str, extension: str = "txt") -> Write:
    contents: dict[str, bytes | str] = {"jpg": GOOD, extension: text}
    return files(**contents)


def named(name: str | bytes) -> Write:
    """A good picture under a bad name."""

    def write(folder: Path) -> None:
        start = os.fsencode(folder) + b"/" + os.fsencode(name)
        for end, content in ((b".jpg", GOOD), (b".txt", b"a caption")):
            Path(os.fsdecode(start + end)).write_bytes(content)

    return write


def link(target: str) -> Write:
    def write(folder: Path) -> None:
        (folder / "poison.jpg").symlink_to(target)
        (folder / "poison.txt").write_text("a caption")

    return write


def fifo(folder: Path) -> None:
    os.mkfifo(folder / "poison.jpg")
    os.mkfifo(folder / "poison.txt")


def listen(folder: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    os.chdir(folder)  # the path of a socket has a hundred characters at most
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("poison.jpg")
    os.fchdir(here)
    os.close(here)
    (folder / "poison.txt").write_text("a caption")


def folder_with_a_picture_s_name(folder: Path) -> None:
    (folder / "poison.jpg").mkdir()
    picture(GOOD)(folder / "poison.jpg")


def twins(folder: Path) -> None:
    """Two names that look the same."""
    for form in ("NFC", "NFD"):
        named(unicodedata.normalize(form, "caf\u00e9"))(folder)


def sparse(folder: Path) -> None:
    with (folder / "poison.jpg").open("wb") as stream:
        stream.truncate(2**40)
    (folder / "poison.txt").write_text("a caption")


def long_caption_file(folder: Path) -> None:
    (folder / "poison.jpg").write_bytes(GOOD)
    with (folder / "poison.txt").open("wb") as stream:
        stream.truncate(2**40)


def linked_folder(folder: Path) -> None:
    (folder / "poison").symlink_to("/etc")


def circle(folder: Path) -> None:
    (folder / "poison").symlink_to(folder)


def png(width: int, height: int, *chunks: tuple[bytes, bytes], data: bytes = b"") -> bytes:
    """A grey PNG with this header; `data` are its rows, compressed."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in ((b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + body


def frames(form: str) -> bytes:
    first, second = (Image.fromarray(scene() // n) for n in (1, 2))
    return encode(first, form, save_all=True, append_images=[second])


def cmyk() -> bytes:
    return encode(Image.fromarray(scene()).convert("CMYK"), "JPEG")


SVG = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
XMP = b"XML:com.adobe.xmp\0\0"
DEEP = "[" * 100_000
WIDE = np.zeros((1, 65_535, 3), np.uint8)

POISON: dict[str, Write] = {
    "empty picture": picture(b""),
    "text as picture": picture(b"not a picture"),
    "truncated JPEG": picture(GOOD[: len(GOOD) // 2]),
    "JPEG header only": picture(GOOD[:20]),
    "garbage behind a JPEG header": picture(GOOD[:200] + bytes(range(256)) * 4),
    "HTML as picture": picture(b"<html>404 <script>alert(1)</script></html>"),
    "SVG": picture(SVG, "png"),
    "SVG by its name": files(svg=SVG, txt="a caption"),
    "HEIC": picture(b"\0\0\0\x18ftypheic" + bytes(100), "heic"),
    "TGA": picture(bytes(18), "tga"),
    "animated GIF": picture(frames("GIF"), "gif"),
    "animated PNG": picture(frames("PNG"), "png"),
    "animated WebP": picture(frames("WEBP"), "webp"),
    "two pages of TIFF": picture(frames("TIFF"), "tif"),
    "CMYK": picture(cmyk()),
    "16 bits": picture(encode((scene()[:, :, 0].astype(np.uint16) * 257), "PNG"), "png"),
    "floating point": picture(encode(np.zeros((8, 8), np.float32), "TIFF"), "tiff"),
    "palette with transparency": picture(encode(Image.fromarray(scene()).convert("P"), "PNG", transparency=3), "png"),
    "one bit": picture(encode(Image.fromarray(scene()).convert("1"), "PNG"), "png"),
    "one pixel": picture(jpeg(1, 1)),
    "upside down": picture(encode(scene(), "JPEG", **with_orientation(3))),
    "impossible orientation": picture(encode(scene(), "JPEG", **with_orientation(99))),
    "70,000 x 1": picture(png(70_000, 1, data=zlib.compress(bytes(70_001))), "png"),
    "60,000 x 60,000": picture(png(60_000, 60_000), "png"),
    "as long as a JPEG may be": picture(encode(WIDE[:, :65_500], "JPEG")),
    "negative size": picture(png(2**32 - 1, 2**32 - 1), "png"),
    "no pixels": picture(png(0, 0), "png"),
    "bomb of compressed text": picture(png(4, 4, (b"zTXt", XMP + zlib.compress(bytes(2**26)))), "png"),
    "huge profile": picture(png(4, 4, (b"iCCP", b"x\0\0" + zlib.compress(bytes(2**24)))), "png"),
    "sparse file of a terabyte": sparse,
    "no caption": files(jpg=GOOD),
    "empty caption": caption(""),
    "caption of spaces": caption(" \n\t\0 "),
    "caption that is not UTF-8": caption(b"\xff\xfe\xfa"),
    "caption of a megabyte": caption("word " * 200_000),
    "caption file of a terabyte": long_caption_file,
    "caption with a script": caption("<script>alert(1)</script> a dog"),
    "caption with control characters": caption("a \x1b[31mdog\x07 \u202e reversed"),
    "caption as a formula": caption("=HYPERLINK(1)"),
    "deep JSON": caption(DEEP, "json"),
    "JSON that is a list": caption("[1, 2]", "json"),
    "JSON with a number as caption": caption('{"caption": 7}', "json"),
    "JSON with half a character": caption('{"caption": "\\ud800"}', "json"),
    "JSON with NaN and a huge number": caption('{"caption": NaN, "n": ' + "9" * 5000 + "}", "json"),
    "caption without a picture": files(txt="a caption"),
    "metadata that is no JSON": lambda folder: (folder / "metadata.jsonl").write_text("{\n[]\n"),
    "metadata with a path out": lambda folder: (folder / "metadata.jsonl").write_text(
        json.dumps({"file_name": "../../../etc/passwd", "text": "a"})
    ),
    "two pictures of one name": files(jpg=GOOD, png=encode(scene()), txt="a caption"),
    "extension in capitals": files(JPG=GOOD, txt="a caption"),
    "compressed picture": picture(gzip.compress(GOOD)),
    "line break in the name": named("poison\nname"),
    "dots in the name": named("..poison..v1.final"),
    "not UTF-8 in the name": named(b"poison\xff\xfe"),
    "shell in the name": named("$(touch poison);`id`'\"<img src=x onerror=alert(1)>"),
    "name of 250 characters": named("p" * 250),
    "names that look the same": twins,
    "named pipe": fifo,
    "socket": listen,
    "link to a device": link("/dev/zero"),
    "link out of the folder": link("/etc/passwd"),
    "broken link": link("nowhere.jpg"),
    "link to itself": link("poison.jpg"),
    "folder with a picture's name": folder_with_a_picture_s_name,
    "link to a folder outside": linked_folder,
    "link to its own folder": circle,
}


def with_comment() -> bytes:
    """A JPEG whose comment fills a segment."""
    stream = io.BytesIO()
    Image.fromarray(scene()).save(stream, "JPEG", comment=b"c" * 65_000)
    return stream.getvalue()


POISON["JPEG with a long comment"] = picture(with_comment())
