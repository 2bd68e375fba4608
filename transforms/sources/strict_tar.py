"""Tars read without a loss: what is damaged or stands behind an end mark is an error or a member, never left out."""

import bz2
import gzip
import lzma
import tarfile
from collections.abc import Callable, Mapping
from typing import BinaryIO, Self, cast

_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
"""Types of members that belong to the header of the next one."""
_UNPACKERS: Mapping[bytes, Callable[[BinaryIO], object]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
"""What opens a compressed file, by what it begins with."""

MAX_HEADER = 2**20
"""Most bytes of a header's extension, which holds a long name; `tarfile` reads all of it into memory."""


class StrictTarInfo(tarfile.TarInfo):
    """A header that ends the archive only if nothing follows the end mark.

    `tarfile` takes a header that is missing, truncated or corrupt for the end, and reads nothing behind an end mark,
    where `cat a.tar b.tar` puts the second archive: samples would be lost silently.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """Read the next header.

        Raises:
            tarfile.ReadError: it is neither complete nor an end mark, or there is none and no end mark before.
        """
        assert isinstance(archive, StrictTar)
        try:
            info = super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            archive.has_ended = True
            raise
        except tarfile.HeaderError as error:
            if archive.has_ended and isinstance(error, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
                raise
            place = "behind its end mark, " if archive.has_ended else ""
            raise tarfile.ReadError(f"{place}{error} at byte {archive.offset:,}") from error
        archive.has_ended = False
        return info

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _HEADERS and self.size > MAX_HEADER:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes at byte {self.offset:,}")
        return super()._proc_member(archive)  # type: ignore[misc]

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Parse a header; zeros at the end of the file that fill no block are nothing."""
        return super().frombuf(buf if any(buf) or len(buf) == tarfile.BLOCKSIZE else b"", encoding, errors)


class StrictTar(tarfile.TarFile):
    """An archive whose headers are `StrictTarInfo`. `has_ended` is whether the last one was an end mark."""

    tarinfo = StrictTarInfo
    has_ended = False

    @classmethod
    def stream(cls, stream: BinaryIO, begin: int = 0) -> "StrictTar":
        """Read a tar from the header at byte `begin` to its end, decompressing it; concatenated ones are one."""
        stream.seek(begin)
        start = stream.read(8)
        stream.seek(begin)
        # tarfile itself reads only the first of concatenated compressed files.
        plain = next((unpack(stream) for magic, unpack in _UNPACKERS.items() if start.startswith(magic)), stream)
        return cls.open(fileobj=cast("BinaryIO", plain), mode="r|", ignore_zeros=True)
