"""Builds that are killed or stopped at any moment: `--resume` loses and doubles nothing, and gives the same bytes."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from numpy.random import default_rng

from jobs.inspect import inspect
from tests.jobs.test_rescue import pictures, tars
from tests.jobs.zygote import Zygote, zygote
from transforms.dataset import read_info

COUNT = 64
ENGINES = {
    "in-process": [],
    "threads": ["--", "--direct_num_workers=2", "--direct_running_mode=multi_threading"],
    "processes": ["--", "--direct_num_workers=2", "--direct_running_mode=multi_processing"],
}


@pytest.fixture
def commands() -> Iterator[Zygote]:
    with zygote() as started:
        yield started


def start(commands: Zygote, output: Path, engine: str, *options: str) -> int:
    fields = ["--samples-per-shard", 2, "--batch-size", 1]
    source = output.parent / "pictures"
    arguments = ["build", "captioned", "--input", source, "--output", output, *fields, *options, *ENGINES[engine]]
    return commands.start(output.with_suffix(".txt"), *arguments)


def alive(group: int) -> list[int]:
    """The living processes of a group."""
    members = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process.pid)
    return members


def done(output: Path) -> int:
    return len([*(output / ".subjectloom").glob("part-*.parquet")])


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_build_that_is_stopped_and_killed_again_and_again_gives_the_same_bytes(
    tmp_path: Path, commands: Zygote
) -> None:
    pictures(tmp_path / "pictures", [f"picture {n}" for n in range(COUNT)])
    whole, output = tmp_path / "whole", tmp_path / "out"
    assert commands.wait(start(commands, whole, "in-process")) == 0
    rng = default_rng(7)

    for engine in ENGINES:  # Ctrl-C, when another shard is done
        before = done(output)
        process = start(commands, output, engine, "--resume")
        wait_until(lambda before=before: done(output) > before, 60)  # type: ignore[misc]
        started = time.monotonic()
        os.kill(process, signal.SIGINT)
        assert commands.wait(process) == 130
        assert time.monotonic() - started < 2
        wait_until(lambda process=process: not alive(process), 5)  # type: ignore[misc]
        last = (tmp_path / "out.txt").read_text().strip().splitlines()[-1]
        assert re.fullmatch(r"stopped: [1-9]\d* shards are done, --resume goes on with the others", last)

    for longest in (0.4, 1.0):  # kill -9 of the whole group, at any moment
        process = start(commands, output, "in-process", "--resume")
        time.sleep(rng.uniform(0.05, longest))
        with suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
        commands.wait(process)
        for path in output.glob("*.tar"):
            assert path.read_bytes() == (whole / path.name).read_bytes()  # no half shard

    assert commands.wait(start(commands, output, "in-process", "--resume")) == 0
    assert tars(output) == tars(whole)
    assert read_info(str(output)).counts == read_info(str(whole)).counts
    assert inspect(str(output)).problems == ()
    assert not list(output.rglob("*.tmp"))
