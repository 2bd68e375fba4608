"""Backgrounds: the pictures that a subject is laid on.

They are listed once, at the start of a job; a worker reads the one that (seed, key) draws. Without a source of them,
they are painted like those of the sample scenes.
"""

import hashlib
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from schemas.errors import InputError, OutageError, RecordError
from schemas.images import decode_image
from schemas.rejects import Reason
from transforms.files import open_file
from transforms.matting.inflate import indexed_gzip
from transforms.outages import describe, is_passing, retry
from transforms.scenes.paint import paint_background
from transforms.sources.files import MAX_PICTURE, File, find_files, refuse_links
from transforms.sources.records import IMAGE_EXTENSIONS

PAINTED = "painted"
"""Name of a painted background in a record."""

ATTEMPTS = 8
"""Backgrounds that are tried for a picture: one that is broken must not cost the picture."""

SPACING, POINTS = 2**20, 1000
"""Least bytes between two points of a compressed tar from which it is read, and about how many points a process holds
of all tars together (`IndexedGzip`): these take 40 MB, and a draw decompresses a thousandth of the tars at most.
"""

_PICTURES = tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)
_COMPRESSED = (".tar.gz", ".tgz")

_HIDDEN = re.compile(r"(^|/)\.[^/]")
_MATTE = re.compile(
    r"([._-](alpha|matte|mask|trimap|seg|segmentation|depth)s?[._-]?\d*\.[^./]+$)"
    r"|((^|/)(alpha|matte|mask|trimap|segmentation|annotation)s?/)",
    re.IGNORECASE,
)
"""Names of mattes, masks and other maps beside a picture, and of folders of them."""


@dataclass(frozen=True)
class Compressed:
    """How a compressed tar is read: `stamp` changes when it does, `spacing` as in `IndexedGzip`."""

    stamp: str
    spacing: int


@dataclass(frozen=True)
class Background:
    """A background: the whole file at `path`, or the `size` bytes of a tar that begin at `offset`.

    `name` stands in the records: a path relative to the source's folder, or a full address. In a tar that is
    compressed, `offset` counts decompressed bytes.
    """

    name: str
    path: str
    offset: int = 0
    size: int = -1
    compressed: "Compressed | None" = None

    def read(self) -> bytes:
        """Read the encoded picture.

        Raises:
            OSError, EOFError, zlib.error: that failed.
        """
        if self.compressed:
            return indexed_gzip(self.path, self.compressed.stamp, self.compressed.spacing).read(self.offset, self.size)
        with open_file(self.path) as stream:
            stream.seek(self.offset)
            return stream.read(self.size)


@dataclass(frozen=True)
class Backgrounds:
    """Backgrounds to draw from; if there are none, they are painted. `fingerprint` changes when a file does."""

    names: tuple[Background, ...] = ()
    fingerprint: str = ""


def list_backgrounds(source: str) -> Backgrounds:
    """List the pictures of a folder, a glob or WebDataset tars, on any filesystem that Beam opens.

    An empty `source` means painted backgrounds. Hidden files, mattes and masks by their names, links out of the folder
    and what is too large or no plain file are passed over.

    Raises:
        InputError: nothing is there, it holds no picture, or a tar cannot be read.
    """
    if not source:
        return Backgrounds()
    found = find_files(source)
    refuse_links(found)
    files = [file for file in found if file.has_extension((*_PICTURES, ".tar", *_COMPRESSED)) and not file.problem]
    # Decompressed bytes are unknown until all tars are listed; JPEGs hardly shrink.
    packed = sum(file.size for file in files if file.has_extension(_COMPRESSED))
    names = tuple(name for file in files for name in _list_file(file, max(SPACING, packed // POINTS)))
    if not names:
        raise InputError(f"{source}: no backgrounds: neither a picture nor a tar with pictures in it")
    stamps = "\n".join(file.stamp for file in files)
    return Backgrounds(names, hashlib.sha256(stamps.encode("utf-8", "surrogatepass")).hexdigest())


def _list_file(file: File, spacing: int) -> Iterator[Background]:
    if file.has_extension(_PICTURES):
        if not _MATTE.search(file.name) and file.size <= MAX_PICTURE:
            yield Background(file.uri, file.path)
        return
    compressed = Compressed(file.stamp, spacing) if file.has_extension(_COMPRESSED) else None
    mode: Literal["r:", "r:gz"] = "r:gz" if compressed else "r:"
    try:
        with open_file(file.path) as stream, tarfile.open(fileobj=stream, mode=mode) as tar:
            for info in tar:
                if info.isfile() and info.size <= MAX_PICTURE and _is_background(info.name):
                    yield Background(f"{file.uri}/{info.name}", file.path, info.offset_data, info.size, compressed)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise InputError(f"the backgrounds in {file.path} cannot be read: {error}") from error


def _is_background(name: str) -> bool:
    return name.lower().endswith(_PICTURES) and not _HIDDEN.search(name.removeprefix("./")) and not _MATTE.search(name)


def draw_background(
    names: Sequence[Background], size: tuple[int, int], rng: np.random.Generator
) -> tuple[str, NDArray[np.uint8]]:
    """Draw a background for a picture of `size` (height, width): its name and [H, W, 3] uint8 RGB.

    The largest random part of the drawn picture that has the proportions of `size` is resized to it. If a picture
    cannot be read, another one is drawn.

    Raises:
        RecordError: NO_BACKGROUND, none of `ATTEMPTS` drawn pictures can be read.
        OutageError: a background that was listed cannot be opened.
    """
    if not names:
        return PAINTED, np.rint(paint_background(rng, *size)).astype(np.uint8)
    problem = ""
    for _ in range(ATTEMPTS):
        chosen = names[int(rng.integers(len(names)))]
        try:
            picture = decode_image(retry(chosen.read))
        except (OSError, EOFError, zlib.error, RecordError) as error:
            if isinstance(error, OSError) and is_passing(error):  # another background would make another sample
                raise OutageError(
                    f"the background {describe(error)}: see whether the backgrounds are still there, and run "
                    "again with --resume"
                ) from error
            problem = f"{chosen.name}: {error}"
        else:
            return chosen.name, cover(picture, size, rng)
    raise RecordError(Reason.NO_BACKGROUND, f"none of {ATTEMPTS} drawn backgrounds can be read, {problem}")


def cover(picture: NDArray[np.uint8], size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Crop the largest random part of `picture` [h, w, 3] with the proportions of `size` (height, width); resize it."""
    height, width = picture.shape[:2]
    scale = min(height / size[0], width / size[1])
    rows, columns = min(height, max(1, round(size[0] * scale))), min(width, max(1, round(size[1] * scale)))
    y, x = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    part = Image.fromarray(picture[y : y + rows, x : x + columns])
    return np.asarray(part.resize((size[1], size[0]), Image.Resampling.LANCZOS))
