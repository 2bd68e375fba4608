"""Make the shards of a round in which a process died: find the records that kill it, reject them, make the rest.

A process that dies takes the whole round with it, and nobody knows which record it was. So each shard of the round is
made again in a child process of its own (`jobs.run.run_in_child`):

1. As before. Mostly that is all: the other shards of the round, and a process that died for once.
2. If it dies again, its records go through all steps one at a time, and nothing is written. When a child dies, the next
   one goes on with the record that it died on. A record on which two children died is rejected.
3. As before, without those records. The shard has the bytes that it would have without them.

A process that has died itself cannot do this. So a round that runs in this process is noted in the dataset's folder
while it runs, and a note that is still there is where the next `--resume` begins.

    OUT/.subjectloom/round.json            {"shards": [4, 5, 6, 7]}
"""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

from rich.console import Console

from jobs.run import run_in_child
from pipelines.build import BuildDataset, TryRecords
from schemas.errors import SubjectloomError
from schemas.shards import shard_name
from transforms.dataset import STATE
from transforms.files import exists, join, read_file, remove_files, replace_file
from transforms.progress import count_records
from transforms.work import Death

NOTE = "round.json"

MOST_DEADLY = 8
"""If a shard has more deadly records than this, and than harmless ones, the machine or a library is the cause."""


def rescue(build: BuildDataset, workers: int, console: Console) -> None:
    """Make the shards of `build`, in whose process or one of its workers something killed the process.

    `workers` children run at a time; those that died are tried again one by one, when the others have ended.

    Raises:
        SubjectloomError: a shard could not be made. The others are.
    """
    # The records of a shard are counted when it is made: a child that dies has counted some of them.
    shards = [replace(build.of([chunk]), progress="", from_candidates=False) for chunk in build.chunks]
    pool = ThreadPoolExecutor(workers)
    try:
        deaths = list(pool.map(run_in_child, shards))
    finally:
        pool.shutdown(cancel_futures=True)
    problems = []
    for shard, death in zip(shards, deaths, strict=True):
        try:
            if death:
                make_without_deadly(shard, death, console)
            count_records(build.progress, shard.chunks[0].expected or 0)
        except SubjectloomError as error:
            problems.append(error)
    if problems:
        raise problems[0]


def make_without_deadly(shard: BuildDataset, death: Death, console: Console) -> None:
    """Find the records that kill the process that makes `shard`, and make it without them.

    Args:
        shard: a build of one shard.
        death: how a child process that made it died.
        console: where each of these records is named.

    Raises:
        SubjectloomError: it dies without them too, or no record is the cause.
    """
    name = name_of(shard)
    deadly = find_deadly(shard, death)
    for key, last in deadly.items():
        console.print(f"{name}: {key} kills its process ({last.stage}: {last.how}) and is rejected", soft_wrap=True)
    again = run_in_child(replace(shard, deadly=deadly))
    if again:
        what = f"in {again.stage} of {', '.join(again.keys)}" if again.keys else "outside of any record"
        raise SubjectloomError(
            f"{name}: its process died ({again.how}) {what}, and no record alone is the cause: if memory is short, "
            "lower --batch-size or --samples-per-shard or stop other programs, and run again with --resume"
        )


def find_deadly(shard: BuildDataset, death: Death) -> dict[str, Death]:
    """Return the records of `shard` on which two child processes died, and how, by key.

    Raises:
        SubjectloomError: a process died outside of any record, or on most records.
    """
    passed, suspects = set(death.passed), set(death.keys)
    deadly: dict[str, Death] = {}
    while True:
        left_out = dict.fromkeys(passed, death) | deadly
        last = run_in_child(TryRecords(replace(shard, deadly=left_out)))
        if last is None:
            return deadly
        if not last.keys:
            raise SubjectloomError(
                f"{name_of(shard)}: the process that makes it died ({last.how}) outside of any record, as it opened a "
                "file or loaded a model: run again with --resume, and --debug to see what it prints"
            )
        (key,) = last.keys
        passed |= last.passed
        if key in suspects:
            deadly[key] = last
        suspects.add(key)
        if len(deadly) > max(MOST_DEADLY, len(passed)):
            raise SubjectloomError(
                f"{name_of(shard)}: {len(deadly)} records killed their process, {key} last ({last.stage}: {last.how}), "
                f"and only {len(passed)} did not: a library or the machine is the cause, run again with --resume when "
                "it is mended"
            )


def name_of(shard: BuildDataset) -> str:
    """The file name of the tar that a build of one shard writes."""
    return shard_name(shard.format.recipe, shard.chunks[0].shard)


@contextmanager
def noting_round(output: str, shards: Iterable[int]) -> Iterator[None]:
    """Note in the dataset's folder that this process makes `shards`, while the block runs."""
    replace_file(join(output, STATE, NOTE), json.dumps({"shards": [*shards]}).encode())
    try:
        yield
    finally:
        forget_round(output)


def forget_round(output: str) -> None:
    """Remove the note of a round."""
    remove_files([join(output, STATE, NOTE)])


def noted_shards(output: str) -> set[int]:
    """The shards of the round in which an earlier run died; none if it did not."""
    path = join(output, STATE, NOTE)
    return set(json.loads(read_file(path))["shards"]) if exists(path) else set()
