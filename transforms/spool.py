"""Sequences too long for memory, kept in temporary files of this machine.

`Sorted` sorts any number of values: at most `IN_MEMORY` are in memory at a time. `Shelf` keeps values that are needed
again, one at a time. Both remove their files when nobody refers to them any more.
"""

import hashlib
import heapq
import pickle
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar, overload

from schemas.errors import SubjectloomError
from transforms.files import open_file

T = TypeVar("T")

IN_MEMORY = 100_000
"""Most values that are sorted in memory."""


class Folder:
    """A temporary folder, removed when nobody refers to this object any more, or when the process ends."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="subjectloom-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


class Sorted(Generic[T]):
    """The values of `items`, sorted by `key`; equal ones keep their order. It can be read any number of times."""

    def __init__(self, items: Iterable[T], key: Callable[[T], Any], in_memory: int | None = None) -> None:
        self._key = key
        source, most = iter(items), in_memory or IN_MEMORY
        self._last = sorted(islice(source, most), key=key)
        self._runs: list[Path] = []
        self._length = len(self._last)
        while following := sorted(islice(source, most), key=key):
            if not self._runs:
                self._folder = Folder()
            path = self._folder.path / f"{len(self._runs)}"
            with path.open("wb") as stream:
                for item in self._last:
                    pickle.dump(item, stream)
            self._runs.append(path)
            self._last = following
            self._length += len(following)

    def __len__(self) -> int:
        return self._length

    @property
    def is_in_memory(self) -> bool:
        """Whether all values are in memory."""
        return not self._runs

    def __iter__(self) -> Iterator[T]:
        yield from heapq.merge(*map(_read, self._runs), self._last, key=self._key)  # keeps the files while it runs


def _read(path: Path) -> Iterator[Any]:
    with path.open("rb") as stream:
        end = path.stat().st_size
        while stream.tell() < end:
            yield pickle.load(stream)  # noqa: S301 - of this process


@dataclass(frozen=True)
class Shelved(Sequence[T]):
    """A sequence on a shelf: it is read each time that it is used, and travels to other processes as its place.

    It is stored as a pickle, which can run programs: others may be able to write to a copy of its file, so that its
    digest travels beside the place.
    """

    path: str
    offset: int
    size: int
    digest: bytes
    length: int
    shelf: Any = field(default=None, repr=False, compare=False)

    def _load(self) -> Sequence[T]:
        with open_file(self.path) as stream:
            stream.seek(self.offset)
            content = stream.read(self.size)
        if hashlib.sha256(content).digest() != self.digest:
            raise SubjectloomError(f"{self.path} was changed while the build ran: run it again with --resume")
        values: Sequence[T] = pickle.loads(content)  # noqa: S301 - of the process that listed the source
        return values

    def at(self, path: str) -> "Shelved[T]":
        """The same sequence in a copy of its file."""
        return replace(self, path=path, shelf=None)

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        return self._load()[index]

    def __iter__(self) -> Iterator[T]:
        return iter(self._load())

    def __getstate__(self) -> dict[str, Any]:
        # The shelf itself stays in the process that owns its files.
        return {**self.__dict__, "shelf": None}


class Shelf(Generic[T]):
    """A temporary file of sequences."""

    def __init__(self) -> None:
        self._folder = Folder()
        self._path = self._folder.path / "shelf"
        self._stream: BinaryIO = self._path.open("wb")

    def put(self, values: Sequence[T]) -> Shelved[T]:
        """Store a sequence."""
        offset, content = self._stream.tell(), pickle.dumps(values)
        self._stream.write(content)
        return Shelved(str(self._path), offset, len(content), hashlib.sha256(content).digest(), len(values), self)

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def close(self) -> None:
        """Store what is in buffers; nothing can be put afterwards."""
        self._stream.close()
