"""Artificial pictures, tars of files, and the records that are read from a source."""

import io
import tarfile
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from schemas.example import Example
from schemas.rejects import Reason
from transforms.batch import Outcome
from transforms.listing import Listing
from transforms.read import read_batches


def scene(height: int = 24, width: int = 32) -> NDArray[np.uint8]:
    """[H, W, 3] uint8: smooth colours, which JPEG changes by a few levels at most; all corners differ."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x / width, 255 * y / height, 120 + 0 * x], axis=2).astype(np.uint8)


def encode(picture: Image.Image | NDArray[np.generic], form: str = "PNG", **options: Any) -> bytes:  # noqa: ANN401
    """Encode a picture in Pillow's format `form`."""
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, form, **options)
    return buffer.getvalue()


def with_orientation(orientation: int) -> dict[str, Any]:
    """The option of `encode` that writes an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


Member = tuple[str, bytes | str]
"""A file of a tar: its name and its contents."""


def tar(members: Sequence[Member], mode: str = "w") -> bytes:
    """A tar of these files, in this order."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members:
            data = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def read_all(listing: Listing) -> list[Outcome]:
    """Read all records of a listing, in order, as the workers would."""
    return [
        record
        for chunk in listing.chunks
        for item in chunk.items
        for batch in read_batches(chunk.shard, item)
        for record in batch.records
    ]


def outcomes(records: Iterable[Outcome]) -> list[tuple[str, str | Reason]]:
    """For each record its key, and its caption or the reason why it was rejected."""
    return [(r.key, r.caption if isinstance(r, Example) else r.reason) for r in records]
