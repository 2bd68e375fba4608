"""Files on any filesystem: the local ones without Beam, all of them written whole or not at all."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.errors import InputError
from tests.paths import ROOT
from tests.remote import SCHEME
from transforms.files import (
    exists,
    is_remote,
    join,
    list_files,
    read_file,
    remove_files,
    replace_file,
    replacing,
)


def fail_while_writing(path: str) -> None:
    def write() -> None:
        with replacing(path) as stream:
            stream.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()


def test_paths_and_addresses() -> None:
    assert [is_remote(path) for path in ("gs://bucket/a", "/a/b", "a:b")] == [True, False, False]
    assert join("gs://bucket/", "a", "b.tar") == "gs://bucket/a/b.tar"


def test_files_are_listed_below_a_folder_sorted(tmp_path: Path) -> None:
    for name in ("b.txt", "a/c.txt", "a/.hidden/d"):  # hidden files are listed too: our own state is hidden
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert list_files(str(tmp_path)) == ["a/.hidden/d", "a/c.txt", "b.txt"]
    assert list_files(f"{tmp_path}/") == ["a/.hidden/d", "a/c.txt", "b.txt"]
    assert list_files(str(tmp_path / "nothing")) == []
    with pytest.raises(InputError, match="stand for patterns"):
        list_files("a[1]")


def test_nothing_is_decompressed(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(b"not really gzip")
    assert read_file(str(path)) == b"not really gzip"


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    replace_file(str(path), b"old")
    fail_while_writing(str(path))
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"]
    assert path.read_bytes() == b"old"
    with replacing(str(path)) as stream:
        stream.write(b"new")
    assert path.read_bytes() == b"new"


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, events = tmp_path / "a.txt", []

    def fsync(number: int) -> None:
        target = Path(f"/proc/self/fd/{number}").resolve()
        events.append(("folder" if target.is_dir() else target.read_bytes(), path.exists()))

    monkeypatch.setattr("os.fsync", fsync)
    replace_file(str(path), b"content")
    assert events == [(b"content", False), ("folder", True)]


def test_an_error_while_writing_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as raised, replacing(str(tmp_path / "a.txt")):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert raised.value.filename == str(tmp_path / "a.txt")
    assert list(tmp_path.iterdir()) == []


def test_only_what_exists_is_removed(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    remove_files([str(tmp_path / "a"), str(tmp_path / "b")])
    assert not exists(str(tmp_path / "a"))


def test_the_same_holds_on_a_remote_filesystem(tmp_path: Path) -> None:
    folder = f"{SCHEME}://{tmp_path}"
    replace_file(join(folder, "a", "b.gz"), b"not really gzip")
    assert (tmp_path / "a" / "b.gz").read_bytes() == b"not really gzip"
    assert list_files(folder) == ["a/b.gz"]
    assert read_file(join(folder, "a", "b.gz")) == b"not really gzip"
    fail_while_writing(join(folder, "a", "c"))
    assert list_files(folder) == ["a/b.gz"]
    assert exists(join(folder, "a", "b.gz"))
    remove_files([join(folder, "a", "b.gz"), join(folder, "nothing")])
    assert not exists(join(folder, "a", "b.gz"))


def test_local_files_need_no_beam() -> None:
    script = "import sys, transforms.files as f; f.read_file('setup.py'); print('apache_beam' in sys.modules)"
    printed = subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, text=True)
    assert printed.strip() == "False"
