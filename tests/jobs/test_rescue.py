"""Records that kill the process that works on them: they are found and rejected, and nothing else is lost."""

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import Generator, default_rng
from rich.console import Console

import jobs.build
import jobs.rescue
from jobs.build import Request, build
from jobs.engines import beam_options
from jobs.inspect import inspect
from jobs.rescue import MOST_DEADLY, find_deadly, make_without_deadly
from jobs.run import WorkerDiedError, run, run_in_child
from pipelines import RECIPES
from pipelines.build import BuildDataset, TryRecords
from pipelines.recipe import BuildConfig, Recipe
from schemas.errors import InputError, RecordError, SubjectloomError
from schemas.example import Example
from schemas.rejects import Reason, Reject
from schemas.samples import FORMATS
from tests.datasets import jpeg
from transforms.batch import Batch, each
from transforms.models.presets import resolve
from transforms.sources.kinds import KINDS, Listed, Query
from transforms.sources.records import Chunk, Item, Unloaded
from transforms.step import Step, map_batches
from transforms.work import Death

FORMAT = FORMATS["captioned"]
QUIET = Console(quiet=True)
PROCESSES = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")
# Beam's threads raise when a worker dies; outside of tests nobody sees it.
DYING = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@dataclass(eq=False)
class Obey(Step):
    """A step that does to its process what the captions say; "once" means: unless the file `flag` is there."""

    flag: str

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        return map_batches(batches, "obey", each(self._obey))

    def _obey(self, example: Example) -> Example:
        if example.caption == "exit once" and not Path(self.flag).exists():
            Path(self.flag).touch()
            os._exit(3)
        if example.caption.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[example.caption])
        return example


@dataclass(eq=False)
class Refuse(Step):
    """A step that refuses the records on which `Obey` and `Reading` kill their process each time."""

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        return map_batches(batches, "refuse", each(self._refuse))

    def _refuse(self, example: Example) -> Example:
        if example.caption in ("decoder", "SIGSEGV", "SIGKILL"):
            raise RecordError(Reason.LOW_QUALITY, "left out")
        return example


@dataclass(frozen=True)
class Reading:
    """An item whose decoder exits at the picture 001."""

    item: Item

    @property
    def stamp(self) -> str:
        return self.item.stamp

    def read(self) -> Iterator[Unloaded | Reject]:
        for record in self.item.read():
            yield replace(record, load=exit_7) if isinstance(record, Unloaded) and record.key == "001" else record


def exit_7() -> Example:
    os._exit(7)


def list_deadly(query: Query, list_pictures: Callable[[Query], Listed]) -> Listed:
    return Listed([replace(chunk, items=tuple(map(Reading, chunk.items))) for chunk in list_pictures(query).chunks])


def use(monkeypatch: pytest.MonkeyPatch, step: Step) -> None:
    recipe = Recipe("captioned", BuildConfig, lambda config, *_: config, lambda *_: [step])
    monkeypatch.setitem(RECIPES, "captioned", recipe)


def pictures(folder: Path, captions: list[str]) -> Path:
    folder.mkdir()
    for number, caption in enumerate(captions):
        (folder / f"{number:03d}.jpg").write_bytes(jpeg(32, 24, seed=number))
        (folder / f"{number:03d}.txt").write_text(caption)
    return folder


def request(source: Path, output: Path, per_shard: int, **changes: Any) -> Request:  # noqa: ANN401
    config = BuildConfig(samples_per_shard=per_shard, batch_size=2)
    return Request("captioned", str(source), str(output), config, resolve("sample", {}), **changes)


def tars(output: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(output.glob("*.tar"))}


@DYING
@pytest.mark.slow
def test_deadly_records_are_rejected_and_nothing_else_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One dies while it is read, two in a step, two of these in one shard; a fourth kills its worker once only."""
    captions = ["a dog", "decoder", "SIGKILL", "a cat", "SIGSEGV", "exit once"]
    source = pictures(tmp_path / "pictures", captions)
    use(monkeypatch, Refuse())
    build(request(source, tmp_path / "without", 3), QUIET)
    folder = KINDS["folder"]
    monkeypatch.setitem(KINDS, "folder", replace(folder, list=partial(list_deadly, list_pictures=folder.list)))
    use(monkeypatch, Obey(str(tmp_path / "flag")))
    info = build(request(source, tmp_path / "out", 3, beam_options=PROCESSES), Console())
    printed = capfd.readouterr()
    assert (tmp_path / "flag").exists()
    assert (info.counts.read, info.counts.written) == (6, 3)
    assert info.counts.rejects == {"read": {"killed-worker": 1}, "obey": {"killed-worker": 2}}
    rows = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert [(row["key"], row["detail"].rpartition(": ")[2]) for row in rows] == [
        ("001", "exit status 7"),
        ("002", "SIGKILL, as when memory runs out"),
        ("004", "SIGSEGV"),
    ]
    assert tars(tmp_path / "out") == tars(tmp_path / "without")
    assert inspect(str(tmp_path / "out")).problems == ()
    assert "captioned-000000.tar: 001 kills its process (read: exit status 7) and is rejected" in printed.out
    assert printed.err == ""
    monkeypatch.setattr(jobs.build, "run", lambda *_: pytest.fail("nothing is left to do"))
    monkeypatch.setattr(jobs.build, "rescue", lambda *_: pytest.fail("nothing is left to do"))
    build(request(source, tmp_path / "out", 3, resume=True), QUIET)
    assert tars(tmp_path / "out") == tars(tmp_path / "without")


IN_PROCESS = """
from pathlib import Path
import pytest
from tests.jobs.test_rescue import *
use(pytest.MonkeyPatch(), Obey(""))
build(request(Path({source!r}), Path({output!r}), 2), QUIET)
"""


@pytest.mark.slow
def test_a_resumed_build_begins_with_the_round_in_which_its_process_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = pictures(tmp_path / "pictures", ["a dog", "SIGSEGV"]), tmp_path / "out"
    code = IN_PROCESS.format(source=str(source), output=str(output))
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGSEGV
    note = output / ".subjectloom" / "round.json"
    assert note.exists()
    use(monkeypatch, Obey(""))
    info = build(request(source, output, 2, resume=True), QUIET)
    assert (info.counts.read, info.counts.written) == (2, 1)
    assert info.counts.rejects == {"obey": {"killed-worker": 1}}
    assert not note.exists()


@pytest.mark.parametrize("error", [InputError("the source is gone"), KeyboardInterrupt()])
def test_a_build_that_fails_without_dying_leaves_no_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(part: BuildDataset, options: PipelineOptions) -> None:
        assert note.exists()
        if any(chunk.shard == 1 for chunk in part.chunks):
            raise error
        run(part, options)

    note = tmp_path / "out" / ".subjectloom" / "round.json"
    source = pictures(tmp_path / "pictures", ["a dog", "a cat"])
    monkeypatch.setattr(jobs.build, "SHARDS_PER_ROUND", 1)
    monkeypatch.setattr(jobs.build, "run", fail)
    with pytest.raises(type(error)):
        build(request(source, tmp_path / "out", 1), QUIET)
    assert (tmp_path / "out" / "captioned-000000.tar").exists()
    assert not note.exists()


def test_a_remote_runner_that_fails_is_one_line_that_names_the_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(part: BuildDataset, _: object) -> None:
        run(part.of(part.chunks[:1]), beam_options(()))
        raise RuntimeError("Traceback (most recent call last):\nThe worker lost contact with the service.\n")

    source = pictures(tmp_path / "pictures", ["a dog", "a cat", "a cow"])
    monkeypatch.setattr(jobs.build, "run", fail)
    with pytest.raises(SubjectloomError) as raised:
        build(request(source, tmp_path / "out", 1, beam_options=("--runner=FlinkRunner",)), QUIET)
    assert str(raised.value).startswith(
        "FlinkRunner failed (The worker lost contact with the service.), 2 shards (1, 2) not done: run again with "
        "--resume."
    )


@dataclass(eq=False)
class Last(beam.PTransform):
    """A pipeline whose last stage, which has no output, does `work`."""

    work: Callable[[Any], object]

    def expand(self, root: beam.Pipeline) -> beam.PCollection[object]:
        return root | beam.Create([("a", 1)]) | beam.GroupByKey() | beam.Map(self.work)


def die(_: object) -> None:
    os._exit(3)


def refuse(_: object) -> None:
    raise InputError("the source is gone")


@DYING
@pytest.mark.slow
@pytest.mark.timeout(90)
def test_a_worker_that_dies_in_the_last_stage_does_not_hang_the_job() -> None:
    with pytest.raises(WorkerDiedError, match=r"^a worker process died \(.*\): run again with --resume$"):
        run(Last(die), beam_options(PROCESSES))


@pytest.mark.slow
def test_an_error_in_a_child_process_is_raised_here() -> None:
    with pytest.raises(InputError, match=r"^the source is gone$"):
        run_in_child(Last(refuse))


# The search itself, with children that only pretend.


@dataclass
class Children:
    """Stands for `run_in_child`: records are worked on in any order, and `deadly` says which kill the child."""

    deadly: Callable[[str], bool]
    rng: Generator
    tried: list[str]
    batches_die: bool = False

    def __call__(self, transform: beam.PTransform) -> Death | None:
        shard = transform.build if isinstance(transform, TryRecords) else transform
        left = [r.key for item in shard.chunks[0].items for r in item.read() if r.key not in shard.deadly]
        keys = [left[i] for i in self.rng.permutation(len(left))]
        if not isinstance(transform, TryRecords):
            return Death("SIGKILL", "step", tuple(keys)) if self.batches_die or any(map(self.deadly, keys)) else None
        for number, key in enumerate(keys):
            self.tried.append(key)
            if self.deadly(key):
                return Death("SIGSEGV", "step", (key,), frozenset(keys[:number]))
        return None


@dataclass(frozen=True)
class Keys:
    count: int
    stamp: str = ""

    def read(self) -> Iterator[Unloaded | Reject]:
        for number in range(self.count):
            yield Unloaded(f"{number:03d}", "", make)


def make() -> Example:
    raise AssertionError


def shard(count: int) -> BuildDataset:
    return BuildDataset(FORMAT, BuildConfig(), [], [Chunk.of(4, [Keys(count)], None)], "", {4: ""})


@given(deadly=st.sets(st.integers(0, 39), max_size=12), seed=st.integers(0, 1000), batch=st.integers(0, 39))
def test_the_search_finds_exactly_the_deadly_records(deadly: set[int], seed: int, batch: int) -> None:
    keys = {f"{number:03d}" for number in deadly}
    children = Children(keys.__contains__, default_rng(seed), [])
    first = Death("SIGSEGV", "step", tuple(f"{n:03d}" for n in range(batch // 8 * 8, batch // 8 * 8 + 8)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs.rescue, "run_in_child", children)
        found = find_deadly(shard(40), first)
    assert set(found) == keys
    assert {death.stage for death in found.values()} <= {"step"}
    assert all(children.tried.count(key) <= 2 for key in keys)
    assert all(children.tried.count(f"{n:03d}") == 1 for n in range(40) if n not in deadly)  # two passes at most


def test_a_record_whose_process_died_once_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    died: set[str] = set()

    def once(key: str) -> bool:
        return int(key) % 3 == 0 and not (key in died or died.add(key))  # type: ignore[func-returns-value]

    monkeypatch.setattr(jobs.rescue, "run_in_child", Children(once, default_rng(0), []))
    assert find_deadly(shard(20), Death("SIGKILL")) == {}
    assert len(died) == 7


def test_when_most_records_kill_their_process_they_are_not_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    children = Children(lambda key: key >= "003", default_rng(0), [])
    monkeypatch.setattr(jobs.rescue, "run_in_child", children)
    with pytest.raises(SubjectloomError, match=r"^captioned-000004\.tar: 9 records killed their process"):
        find_deadly(shard(13), Death("SIGSEGV"))
    assert len(children.tried) < 3 * MOST_DEADLY


def test_a_batch_that_is_too_large_for_the_memory_is_no_record_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.rescue, "run_in_child", Children(lambda _: False, default_rng(0), [], batches_die=True))
    with pytest.raises(SubjectloomError, match=r"^captioned-000004\.tar: .*SIGKILL.* in step of 0.*lower --batch-size"):
        make_without_deadly(shard(4), Death("SIGKILL"), QUIET)


def test_a_death_outside_of_any_record_names_the_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.rescue, "run_in_child", lambda _: Death("SIGABRT"))
    with pytest.raises(SubjectloomError, match=r"^captioned-000004\.tar: .*SIGABRT.* outside of any record"):
        make_without_deadly(shard(4), Death("SIGABRT"), QUIET)
