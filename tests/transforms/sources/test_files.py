"""What is no plain file is not opened, links do not lead out of the source, and nothing large is read into memory."""

import errno
import os
import socket
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

import transforms.outages
import transforms.sources.webdataset
from schemas.errors import InputError, RecordError
from schemas.rejects import Reason, Reject
from tests.pictures import encode, outcomes, read_all, scene, tar
from transforms.listing import list_source
from transforms.sources.files import MAX_PICTURE, MAX_TEXT, File, find_files

JPEG = encode(scene(), "JPEG")


def sock(path: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    os.chdir(path.parent)  # the path of a socket has a hundred characters at most
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.fchdir(here)
    os.close(here)


SPECIAL: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "is no plain file, but a named pipe"),
    "socket": (sock, "is no plain file, but a socket"),
    "broken": (lambda path: path.symlink_to("nowhere"), "is a broken link: No such file or directory"),
    "circle": (lambda path: path.symlink_to(path.name), "is a broken link: Too many levels of symbolic links"),
    "zero": (lambda path: path.symlink_to("/dev/zero"), "a link out of the source, to /dev/zero"),
    "passwd": (lambda path: path.symlink_to("/etc/passwd"), "a link out of the source, to /etc/passwd"),
    "above": (lambda path: path.symlink_to("../../outside"), "a link out of the source, to "),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("extension", ["jpg", "tar"])
@pytest.mark.parametrize("glob", [False, True])
def test_what_is_no_plain_file_of_the_source_is_not_opened(
    tmp_path: Path, name: str, extension: str, glob: bool
) -> None:
    make, problem = SPECIAL[name]
    (tmp_path / "outside").write_bytes(JPEG)
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    make(folder / f"x.{extension}")
    (file,) = find_files(f"{folder}/*" if glob else str(folder))
    assert file.problem
    assert problem in file.problem[1]
    for read in (lambda: file.read(MAX_TEXT), file.open):
        with pytest.raises(RecordError) as raised:
            read()
        assert raised.value.reason in (Reason.UNREADABLE_FILE, Reason.OUTSIDE_LINK)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", SPECIAL)
def test_its_record_is_a_reject_in_every_kind_of_source(tmp_path: Path, name: str) -> None:
    make, _ = SPECIAL[name]
    for kind in ("folder", "tars", "tables", "captions"):
        (tmp_path / kind).mkdir()
    make(tmp_path / "folder" / "x.jpg")
    make(tmp_path / "tars" / "x.tar")
    (tmp_path / "tars" / "y.tar").write_bytes(tar([("1.jpg", JPEG), ("1.txt", "a dog")]))
    (tmp_path / "captions" / "x.jpg").write_bytes(JPEG)
    make(tmp_path / "captions" / "x.txt")
    for kind in ("folder", "tars", "captions"):
        first, *others = read_all(list_source(str(tmp_path / kind)))
        assert isinstance(first, Reject)
        assert first.reason in (Reason.UNREADABLE_FILE, Reason.OUTSIDE_LINK)
        assert outcomes(others) == ([("y_1", "a dog")] if kind == "tars" else [])
    make(tmp_path / "tables" / "x.parquet")
    with pytest.raises(InputError, match=r"no plain file|broken link|link out of the source"):
        list_source(str(tmp_path / "tables"))


def test_links_within_the_source_are_read_and_others_if_asked(tmp_path: Path) -> None:
    """As in the cache of the Hugging Face hub, whose files are links."""
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "blob").write_bytes(JPEG)
    (inside / "a.jpg").symlink_to("blob")
    (inside / "b.jpg").symlink_to(inside / "blob")
    (inside / "c.jpg").symlink_to(outside / "blob")
    (inside / "d").symlink_to(outside)
    (outside / "e.jpg").symlink_to("blob")
    for name in "abc":
        (inside / f"{name}.txt").write_text("a dog")
    (outside / "e.txt").write_text("a dog")
    records = dict(outcomes(read_all(list_source(str(inside)))))
    assert [records.pop(key) for key in ("a", "b", "c")] == ["a dog", "a dog", Reason.OUTSIDE_LINK]
    assert [*records.values()] == [Reason.OUTSIDE_LINK]  # the folder
    asked = dict(outcomes(read_all(list_source(str(inside), follow_links=True))))
    assert [*asked.values()] == ["a dog"] * 4
    glob = f"{inside}/*/*.jpg"
    assert [file.problem is None for file in find_files(glob)] == [False]
    assert [file.problem is None for file in find_files(glob, follow_links=True)] == [True]
    # The source itself may be a link, as the user named it.
    (tmp_path / "link").symlink_to(inside)
    assert dict(outcomes(read_all(list_source(str(tmp_path / "link")))))["a"] == "a dog"
    (inside / "x.tar").write_bytes(tar([("1.jpg", JPEG), ("1.txt", "a dog")]))
    with pytest.raises(InputError, match=r"in/d/: a link out of the source, to .*/out: --follow-links reads such"):
        list_source(str(inside), "webdataset")


def test_links_that_lead_to_each_other_are_followed_once(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.jpg").write_bytes(JPEG)
        (tmp_path / name / "link").symlink_to(tmp_path / other)
    names = [file.name for file in find_files(str(tmp_path))]
    assert names == ["a/a.jpg", "a/link/b.jpg", "b/b.jpg", "b/link/a.jpg"]


def test_an_outage_while_listing_is_no_broken_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(JPEG)
    stat = os.stat

    def fail(path: object, *arguments: object, **options: object) -> object:
        if str(path).endswith("a.jpg"):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return stat(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(transforms.outages, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(os, "stat", fail)
    with pytest.raises(InputError, match=r"cannot be read: .*a\.jpg: Input/output error$"):
        find_files(str(tmp_path))


@pytest.mark.parametrize(("function", "names"), [("scandir", ["b"]), ("stat", ["a.jpg", "c.jpg"])])
def test_a_listing_goes_on_after_a_passing_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, names: list[str]
) -> None:
    (tmp_path / "b").mkdir()
    for name in ("a.jpg", "b/c.jpg"):
        (tmp_path / name).write_bytes(JPEG)
    call, failures = getattr(os, function), dict.fromkeys(names, 3)

    def fail_at_first(path: object, *arguments: object, **options: object) -> object:
        name = os.path.basename(os.fspath(path))  # type: ignore[call-overload]  # noqa: PTH119
        if failures.get(name, 0):
            failures[name] -= 1
            raise OSError(errno.ESTALE, "Stale file handle", path)
        return call(path, *arguments, **options)

    monkeypatch.setattr(transforms.outages, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(os, function, fail_at_first)
    assert [file.name for file in find_files(str(tmp_path))] == ["a.jpg", "b/c.jpg"]
    assert not any(failures.values())


@pytest.mark.parametrize(("limit", "reason"), [(MAX_PICTURE, Reason.HUGE_IMAGE), (MAX_TEXT, Reason.HUGE_FILE)])
def test_a_large_file_is_not_read(tmp_path: Path, limit: int, reason: Reason) -> None:
    path = tmp_path / "a"
    with path.open("wb") as stream:
        stream.truncate(limit + 1)
    (file,) = find_files(str(path))
    grown = File(str(path), "a", 10, 0.0)
    tracemalloc.start()
    with pytest.raises(RecordError, match="or more, the limit is") as raised:
        file.read(limit)
    assert raised.value.reason == reason
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    with pytest.raises(RecordError, match="or more, the limit is"):
        File(str(path), "a", 10, 0.0).read(1000)  # it has grown since
    assert len(grown.read(limit + 1)) == limit + 1 if limit == MAX_TEXT else True


LARGE = 8 * 2**20


@pytest.mark.parametrize("kind", ["jpg", "txt", "json", "other"])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_large_member_of_a_tar_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, mode: str
) -> None:
    monkeypatch.setattr(transforms.sources.webdataset, "MAX_PICTURE", 2**20)
    monkeypatch.setattr(transforms.sources.webdataset, "MAX_TEXT", 2**20)
    members = {"jpg": JPEG, "txt": b"a dog"} | {kind: bytes(LARGE)}
    good = [("b.jpg", JPEG), ("b.txt", b"a cat")]
    name = f"a.{'tgz' if mode == 'w:gz' else 'tar'}"
    (tmp_path / name).write_bytes(tar([*((f"a.{end}", data) for end, data in members.items()), *good], mode))
    listing = list_source(str(tmp_path))
    tracemalloc.start()
    first, second = read_all(listing)
    assert tracemalloc.get_traced_memory()[1] < LARGE / 4
    tracemalloc.stop()
    if kind == "other":
        assert not isinstance(first, Reject)
    else:
        assert isinstance(first, Reject)
        assert first.detail == f"a.{kind} has {LARGE:,} bytes or more, the limit is {2**20:,}"
    assert not isinstance(second, Reject)


def test_a_header_of_a_tar_cannot_be_a_bomb(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, LARGE
    (tmp_path / "a.tar").write_bytes(info.tobuf() + bytes(LARGE))
    tracemalloc.start()
    (record,) = read_all(list_source(str(tmp_path)))
    assert tracemalloc.get_traced_memory()[1] < LARGE / 4
    tracemalloc.stop()
    assert isinstance(record, Reject)
    assert f"a header of {LARGE:,} bytes at byte 0" in record.detail
