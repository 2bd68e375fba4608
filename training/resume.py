"""What a run's folder says: with which config it was started, its checkpoints, and where it goes on in its data.

The last is the number of samples that all processes have read, whatever their number. The run's config.json keeps, as
`samples_per_step`, how many samples a step reads, and from which step on. This module imports no torch: the command
checks a run's folder before anything slow is imported.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from schemas.errors import InputError
from training.config import RunConfig

NOTE = "config.json"
"""File of the run's config."""

MAY_CHANGE = {
    "steps",
    "held_out_every",
    "checkpoint_every",
    "moments_every",
    "keep",
    "sample_every",
    "prompts",
    "subject_share",
    "trackers",
    "data_path",
    "workers",
    "gradient_checkpointing",
    "fsdp",
    "latent_cache",
    "latent_cache_gb",
}
"""Config fields that may differ when a run is resumed: they change no number."""

LAYOUT = {"processes", "batch", "accumulation"}
"""Those that may differ too, but change how many samples a step reads: the samples follow on those before."""
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


def read_note(output: Path) -> dict[str, Any]:
    """Read the config that a run was started with; empty if there is no run.

    Raises:
        InputError: it is damaged.
    """
    note = output / NOTE
    try:
        return dict(json.loads(note.read_text(encoding="utf-8"))) if note.exists() else {}
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{note} cannot be read: {error}. It states the config of the run") from error


def write_note(output: Path, note: Mapping[str, Any]) -> None:
    """Write the config of a run."""
    output.mkdir(parents=True, exist_ok=True)
    (output / NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


def defaults_of(config: RunConfig) -> dict[str, Any]:
    """Return the defaults of a config's class, as a run's config.json states them."""
    return type(config)().model_dump(mode="json")


def check_run(
    output: Path, intended: Mapping[str, Any], resume: bool, defaults: Mapping[str, Any] | None = None
) -> None:
    """Check that a run with the note `intended` may write to `output`.

    A field that an older version did not have has its default in that version's runs: no default changes a number.

    Args:
        output: the run's folder.
        intended: what its config.json is going to say.
        resume: whether a run may be there already.
        defaults: of the config's fields.

    Raises:
        InputError: the folder holds another run, or other files.
    """
    before = read_note(output)
    if not before:
        if output.exists() and (found := min(output.iterdir(), default=None)):
            raise InputError(
                f"{output} holds files that do not belong to a training run, such as {found.name}: "
                "name a new or an empty folder"
            )
        return
    if not resume:
        raise InputError(f"{output} holds a run already: give --resume to go on with it, or another folder")
    known = {**(defaults or {}), **before}
    schedule = intended.get("schedule", "constant")
    free = MAY_CHANGE | LAYOUT if schedule == "constant" else (MAY_CHANGE | LAYOUT) - {"steps"}
    changed = sorted(name for name in intended if known.get(name) != intended[name] and name not in free)
    if "recipe" in changed:
        changed = ["recipe"]
    if changed:
        reasons = {"steps": f" (the learning rates of schedule {schedule} depend on it)"}
        difference = ", ".join(
            f"{name} was {known.get(name)}, now {intended[name]}{reasons.get(name, '')}" for name in changed
        )
        new = [name for name in changed if name not in before and name in known]
        advice = f"; that run's version did not have {', '.join(new)}, and trained as with the former" if new else ""
        raise InputError(f"{output} cannot be resumed as another run: {difference}{advice}")


def complete_checkpoints(run: Path) -> list[Path]:
    """List a run's checkpoints, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("[0-9]*") if path.is_dir())


def find_checkpoint(run: Path, step: int | None) -> Path:
    """Find the checkpoint of a step, or the newest one.

    Raises:
        InputError: there is none.
    """
    checkpoints = complete_checkpoints(run)
    if not checkpoints:
        raise InputError(f"{run} has no checkpoint yet")
    if step is None:
        return checkpoints[-1]
    for folder in checkpoints:
        if int(folder.name) == step:
            return folder
    steps = ", ".join(str(int(folder.name)) for folder in checkpoints)
    raise InputError(f"{run} has no checkpoint of step {step}; it has {steps}")


def check_export(run: Path, output: Path, step: int | None) -> tuple[dict[str, Any], Path]:
    """Check that the model of a checkpoint can be written to `output`; return the run's note and the checkpoint.

    Raises:
        InputError: there is no such run or checkpoint, or `output` holds files.
    """
    note = read_note(run)
    if not note:
        raise InputError(f"{run} holds no training run")
    checkpoint = find_checkpoint(run, step)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} exists already: name a new or an empty folder")
    return note, checkpoint
