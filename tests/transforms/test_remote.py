"""Calls to remote filesystems have a time limit, and what they raise is an error of the operating system."""

import errno
import threading
import time
from pathlib import Path

import pytest
from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

import transforms.remote
from schemas.errors import OutageError
from tests.remote import SCHEME, Remote
from tests.training.servers import S3, serving
from transforms.files import exists, list_files, read_file, remove_files, replace_file
from transforms.outages import is_passing
from transforms.remote import answer
from transforms.sources.files import find_files

CALLS = {
    "_path_open": read_file,
    "exists": exists,
    "match": list_files,
    "delete": lambda path: remove_files([path]),
    "rename": lambda path: replace_file(path, b"new"),
    "create": lambda path: replace_file(path, b"new"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_server_that_does_not_answer_is_waited_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    end = threading.Event()
    (tmp_path / "a.jpg").write_bytes(b"content")
    monkeypatch.setattr(Remote, name, lambda *_, **__: end.wait(60))
    monkeypatch.setattr(transforms.remote, "SECONDS", 0.2)
    monkeypatch.setattr("transforms.files.SECONDS_TO_COPY", 0.2)
    started = time.monotonic()
    with pytest.raises(OutageError, match=r"no answer for 0 seconds: run again with --resume when the server"):
        CALLS[name](f"{SCHEME}://{tmp_path}" + ("" if name == "match" else "/a.jpg"))
    assert time.monotonic() - started < 2
    end.set()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (BeamIOError("Match failed", {"x": RuntimeError("503 slow   down")}), "503 slow down"),
        (RuntimeError("connection reset"), "connection reset"),
        (KeyError(), "KeyError"),
    ],
)
def test_what_a_server_answers_is_an_error_that_may_pass(error: Exception, text: str) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(OSError, match=text) as raised:
        answer("s3://b/x", fail)
    assert is_passing(raised.value)
    assert raised.value.filename == "s3://b/x"


def test_errors_that_say_what_they_are_stay_what_they_are() -> None:
    for error in (ValueError("no such scheme"), FileNotFoundError(errno.ENOENT, "gone", "x")):

        def fail(error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error)):
            answer("s3://b/x", fail)


def test_an_s3_endpoint_that_goes_away_midway_is_one_line_within_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("boto3", reason="s3:// needs the extra aws")
    (tmp_path / "b").mkdir()
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / "b" / name).write_bytes(bytes(3 * 2**20))
    end = threading.Event()
    with serving(S3, tmp_path) as server:
        options = {"endpoint_url": server.url, "access_key_id": "k", "secret_access_key": "s", "region_name": "r"}
        FileSystems.set_options(PipelineOptions([f"--s3_{name}={value}" for name, value in options.items()]))
        first, second = find_files("s3://b/*.jpg")
        assert first.read(2**22) == bytes(3 * 2**20)
        monkeypatch.setattr(transforms.remote, "SECONDS", 1.0)
        monkeypatch.setattr(S3, "do_GET", lambda _: end.wait(60))
        started = time.monotonic()
        with pytest.raises(OutageError, match=r"^s3://b/2\.jpg: no answer for 1 seconds: run again with --resume"):
            second.read(2**22)
        assert time.monotonic() - started < 3
        end.set()
