"""A filesystem with addresses on the local disk: sub://PATH is PATH. Code that treats these as paths fails on it."""

from pathlib import Path
from typing import Any

from apache_beam.io.filesystem import FileMetadata
from apache_beam.io.localfilesystem import LocalFileSystem

SCHEME = "sub"


def local(path: str) -> str:
    return path.removeprefix(f"{SCHEME}://")


class Remote(LocalFileSystem):
    @classmethod
    def scheme(cls) -> str:
        return SCHEME

    def _list(self, dir_or_prefix: str) -> Any:  # noqa: ANN401 - Beam's own
        for found in super()._list(local(dir_or_prefix)):
            yield FileMetadata(f"{SCHEME}://{found.path}", found.size_in_bytes, found.last_updated_in_seconds)

    def _path_open(self, path: str, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        Path(local(path)).parent.mkdir(parents=True, exist_ok=True)
        return super()._path_open(local(path), *arguments, **options)

    def has_dirs(self) -> bool:
        return False

    def exists(self, path: str) -> bool:
        return super().exists(local(path))

    def rename(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        super().rename([*map(local, source_file_names)], [*map(local, destination_file_names)])

    def delete(self, paths: list[str]) -> None:
        super().delete([*map(local, paths)])
