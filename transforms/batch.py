"""Batches of records: the element that flows between transforms, and the function that advances it.

A batch is formed once, when its records are read, of consecutive records of one shard. What goes through a model
together therefore depends on the input alone, never on bundles, workers or time: the same input gives the same
floating-point results, and so the same shards, on any runner.

A record that fails becomes a `Reject` in the same place, so a step can neither lose nor invent a record.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import shorten

from schemas.errors import RecordError, SubjectloomError
from schemas.example import Example
from schemas.rejects import Reason, Reject
from transforms.outages import describe, is_passing
from transforms.work import working_on

Outcome = Example | Reject
"""A record in a pipeline: it can go on, or it was refused."""


@dataclass(frozen=True)
class Batch:
    """Records that are read, run through models and written together.

    `shard` is the number of the shard that they are written to, `seconds` the time spent so far, as (stage, seconds).
    """

    shard: int
    records: tuple[Outcome, ...]
    seconds: tuple[tuple[str, float], ...] = ()


def advance(batch: Batch, stage: str, step: Callable[[Sequence[Example]], Sequence[Example]]) -> Batch:
    """Run `step` on the batch's examples; those that fail, and only those, become rejects. Rejects are passed on.

    `step` returns one example per example, in order, or raises. A call that raises is repeated on each half of its
    examples until the failing ones are alone: a bad picture costs no good one, and what does not fit into memory is
    tried in smaller parts.

    Raises:
        SubjectloomError: the job must stop, as no record is the cause: `step` lost, invented or reordered records,
            raised such an error itself, or its device failed.
    """
    started = time.perf_counter()
    examples = [record for record in batch.records if isinstance(record, Example)]
    advanced = iter(_run(step, examples, stage))
    records = tuple(next(advanced) if isinstance(record, Example) else record for record in batch.records)
    return Batch(batch.shard, records, (*batch.seconds, (stage, time.perf_counter() - started)))


def each(step: Callable[[Example], Example]) -> Callable[[Sequence[Example]], list[Example]]:
    """Turn a function of one example into a step."""
    return lambda examples: [step(example) for example in examples]


def _run(
    step: Callable[[Sequence[Example]], Sequence[Example]], examples: Sequence[Example], stage: str
) -> list[Outcome]:
    if not examples:
        return []
    failed: Reject | None = None
    with working_on(stage, (example.key for example in examples)):
        try:
            advanced = list(step(examples))
        except Exception as error:  # a bad record never stops a job: whatever it raises becomes its reject
            check_blame(error, stage)
            failed = reject(examples[0], stage, error)
    if failed:
        if len(examples) == 1:
            return [failed]
        # Not inside the except block: the error keeps its frames alive, and with them their memory.
        half = len(examples) // 2
        return _run(step, examples[:half], stage) + _run(step, examples[half:], stage)
    if [a.key for a in advanced] != [e.key for e in examples]:
        # Going on would lose records, or give them the masks of others.
        raise SubjectloomError(
            f"the step {stage} returned {len(advanced)} records for {len(examples)}, or in another order: "
            "this is a defect of Subjectloom, please report it"
        )
    return list(advanced)


def check_blame(error: Exception, stage: str) -> None:
    """Stop the job if no record is the cause of `error`, which `stage` raised: all that follow would be rejected too.

    Raises:
        SubjectloomError: `error` is one that is no RecordError, or says that the device failed.
    """
    if isinstance(error, SubjectloomError) and not isinstance(error, RecordError):
        raise error
    # By name, as torch is not imported here. A device that failed stays unusable until its process ends.
    if type(error).__name__ == "AcceleratorError" and not _is_exhausted(error):
        raise SubjectloomError(
            f"the device failed during {stage} ({shorten(str(error), 120)}): run again with --resume"
        ) from error


def _is_exhausted(error: Exception) -> bool:
    # torch raises a subclass of RuntimeError on CUDA, and on CPU a RuntimeError that names the allocator.
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def reject(example: Example, stage: str, error: Exception) -> Reject:
    """The reject of `example`, for which `stage` raised `error`."""
    return reject_of(example.key, example.source.uri, stage, error)


def reject_of(key: str, uri: str, stage: str, error: Exception) -> Reject:
    """The reject of the record `key`, whose picture has the address `uri`, for which `stage` raised `error`."""
    if isinstance(error, RecordError):
        reason, detail = error.reason, error.detail
    elif isinstance(error, OSError) and is_passing(error):
        reason, detail = Reason.READ_FAILED, describe(error)
    else:
        reason = Reason.OUT_OF_MEMORY if _is_exhausted(error) else Reason.STEP_FAILED
        detail = f"{type(error).__name__}: {error}"
    return Reject(key, uri, stage, reason, " ".join(detail.split())[:500])
