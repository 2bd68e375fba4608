"""Where a resumed run goes on in its data: the number of samples that all processes have read, whatever their number.

The run's config.json keeps, as `samples_per_step`, how many samples a step reads, and from which step on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

PerStep = Sequence[tuple[int, int]]
"""Pairs (step, samples): from this step on, each step reads so many samples in all processes together."""


def samples_per_step(before: Mapping[str, Any], step: int, now: int) -> PerStep:
    """Add to the record of a run that it goes on after `step` steps with `now` samples in each.

    Args:
        before: the run's config.json so far; empty for a new run.
        step: number of steps finished.
        now: samples that a step reads from here on.
    """
    pairs = [(first, samples) for first, samples in before.get("samples_per_step", []) if first < step]
    if not pairs:
        return [(0, now)]
    return pairs if pairs[-1][1] == now else [*pairs, (step, now)]


def samples_read(per_step: PerStep, step: int) -> int:
    """Return the number of samples that all processes together have read in the first `step` steps."""
    ends = [*(first for first, _ in per_step), step]
    steps = [max(0, min(end, step) - first) for (first, _), end in zip(per_step, ends[1:], strict=True)]
    return sum(samples * number for (_, samples), number in zip(per_step, steps, strict=True))


def describe_change(per_step: PerStep, step: int, processes: int) -> str:
    """Say in a line what it means that a run goes on after `step` steps with other numbers than before, else ""."""
    if not step or per_step[-1][0] != step:
        return ""
    (_, before), (_, now) = per_step[-2:]
    return (
        f"a step now reads {now:,} samples instead of {before:,} (processes: {processes}); "
        f"{samples_read(per_step, step):,} were read so far, and those after them follow"
    )
