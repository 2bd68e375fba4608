"""Batches of records: the element that flows between transforms, and the one way to advance it.

A batch is made once, when its records are read, of consecutive records of one shard. What goes through a
model together is therefore a function of the input alone, never of bundles, workers or time: the same input
gives the same floating-point results, and so the same shards, on any runner.

A record that fails stays in its place as a `Reject`, so a step can neither lose nor invent one.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import shorten

from schemas.errors import RecordError, SubjectloomError
from schemas.example import Example
from schemas.rejects import Reason, Reject

Record = Example | Reject


@dataclass(frozen=True)
class Batch:
    """Records that are read, run through models and written together.

    `shard` is the number of the shard that they are written to, `seconds` the time spent so far, by stage.
    """

    shard: int
    records: tuple[Record, ...]
    seconds: tuple[tuple[str, float], ...] = ()


def advance(batch: Batch, stage: str, step: Callable[[Sequence[Example]], Sequence[Example]]) -> Batch:
    """Run `step` over the batch's examples; rejects pass by. The failing ones, and only they, become rejects.

    `step` returns one example per example, in order, or raises. A call that raises is repeated on the two
    halves of its examples until the failing ones stand alone: one bad picture costs no good one, and what
    does not fit into memory at once is tried in smaller parts.

    Raises:
        SubjectloomError: no record is to blame, and the job must stop: `step` lost, invented or reordered
            records, raised such an error itself, or the device that it ran on failed.
    """
    started = time.perf_counter()
    examples = [record for record in batch.records if isinstance(record, Example)]
    outcome = iter(_run(step, examples, stage))
    records = tuple(next(outcome) if isinstance(record, Example) else record for record in batch.records)
    return Batch(batch.shard, records, (*batch.seconds, (stage, time.perf_counter() - started)))


def each(step: Callable[[Example], Example]) -> Callable[[Sequence[Example]], list[Example]]:
    """Lift a step over one example to a step over a sequence of them."""
    return lambda examples: [step(example) for example in examples]


def _run(
    step: Callable[[Sequence[Example]], Sequence[Example]], examples: Sequence[Example], stage: str
) -> list[Record]:
    if not examples:
        return []
    failed: Reject | None = None
    try:
        advanced = list(step(examples))
    except Exception as error:  # a bad record never stops a job: whatever it raises becomes its reject
        _check_blame(error, stage)
        failed = reject(examples[0], stage, error)
    if failed:
        if len(examples) == 1:
            return [failed]
        # Not inside the handler: while the error lives, so do its frames and the memory that they hold.
        half = len(examples) // 2
        return _run(step, examples[:half], stage) + _run(step, examples[half:], stage)
    if [a.key for a in advanced] != [e.key for e in examples]:
        # No record's fault: going on would lose it, or give it another's masks.
        raise SubjectloomError(
            f"the step {stage} returned {len(advanced)} records for {len(examples)}, or in another order: "
            "this is a defect of Subjectloom, please report it"
        )
    return list(advanced)


def _check_blame(error: Exception, stage: str) -> None:
    """Stop the job where no record is to blame: every one that follows would be rejected for nothing."""
    if isinstance(error, SubjectloomError) and not isinstance(error, RecordError):
        raise error
    # By name, so that no torch is needed here: a device that failed stays broken until its process ends.
    if type(error).__name__ == "AcceleratorError" and not _is_exhausted(error):
        raise SubjectloomError(
            f"the device failed during {stage} ({shorten(str(error), 120)}): run again with --resume"
        ) from error


def _is_exhausted(error: Exception) -> bool:
    # torch raises a RuntimeError subclass on CUDA and a plain RuntimeError naming the allocator on CPU.
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def reject(example: Example, stage: str, error: Exception) -> Reject:
    """Turn the error that `stage` raised for `example` into its reject."""
    if isinstance(error, RecordError):
        reason, detail = error.reason, error.detail
    else:
        reason = Reason.OUT_OF_MEMORY if _is_exhausted(error) else Reason.STEP_FAILED
        detail = f"{type(error).__name__}: {error}"
    return Reject(example.key, example.source.uri, stage, reason, " ".join(detail.split())[:500])
