"""Random access to gzip files: parts of one are decompressed from the nearest of a few points, not from its start.

A point is a copy of zlib's state, 40 kB, made while the file is decompressed for the first time. Points belong to a
process; they are never pickled or written.
"""

import threading
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import BinaryIO, NamedTuple

from transforms.files import open_file

_GZIP = 16 + zlib.MAX_WBITS
_BLOCK = 2**15
"""Compressed bytes that are read at a time."""


class _Point(NamedTuple):
    """A place to begin at: `offset` counts decompressed bytes, `position` those of the file."""

    offset: int
    position: int
    state: "zlib._Decompress"


@dataclass(eq=False)
class IndexedGzip:
    """A gzip file that is read in parts, with a point every `spacing` decompressed bytes as far as it was read.

    Concatenated files are one, as for gzip. Several threads may read.
    """

    path: str
    spacing: int
    _points: list[_Point] = field(default_factory=lambda: [_Point(0, 0, zlib.decompressobj(_GZIP))])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, offset: int, size: int) -> bytes:
        """Return the `size` decompressed bytes from `offset`.

        Raises:
            OSError, EOFError, zlib.error: the file cannot be read, ends before, or is corrupt.
        """
        with self._lock:
            start = self._points[bisect_right(self._points, offset, key=lambda point: point.offset) - 1]
        found = bytearray()
        at = start.offset
        with open_file(self.path) as stream:
            for plain in self._inflate(stream, start):
                found += plain[max(offset - at, 0) : max(offset + size - at, 0)]
                at += len(plain)
                if at >= offset + size:
                    return bytes(found)
        raise EOFError(f"{self.path} ends after {at:,} decompressed bytes")

    def _inflate(self, stream: BinaryIO, start: _Point) -> Iterator[bytes]:
        """Decompress from `start` on, adding points behind the last one."""
        offset, position, state = start.offset, start.position, start.state.copy()
        stream.seek(position)
        while block := stream.read(_BLOCK):
            position += len(block)
            plain = b""
            while block:
                if state.eof:  # another file may follow, or padding
                    if not (block := block.lstrip(b"\0")):
                        break
                    state = zlib.decompressobj(_GZIP)
                plain += state.decompress(block)
                block = state.unused_data
            offset += len(plain)
            with self._lock:
                if offset >= self._points[-1].offset + self.spacing:
                    self._points.append(_Point(offset, position, state.copy()))
            yield plain


@cache
def indexed_gzip(path: str, stamp: str, spacing: int) -> IndexedGzip:  # noqa: ARG001 - another file, same path
    """The process' reader of a file; `stamp` changes when the file does."""
    return IndexedGzip(path, spacing)
