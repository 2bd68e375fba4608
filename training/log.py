"""What a run writes for people: its metrics, its sample pictures, and the samples it could not read.

Metrics and pictures also go to trackers such as TensorBoard, through accelerate's classes for them.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from torch import Tensor
from torchvision.utils import save_image

from schemas.errors import ConfigError

Metrics = dict[str, float]
"""A line of `metrics.jsonl`: the losses by name, and `NOT_LOSSES`."""

NOT_LOSSES = ("step", "gradient_norm", "learning_rate", "samples_per_second", "skipped")
"""The metrics that the loop adds to a model's losses."""

PROJECT = "subjectloom"
"""Name of the project under which trackers on the web list a run."""


class Log:
    """Writes metrics and sample pictures, after deleting what an interrupted run wrote after its last checkpoint.

    Args:
        output: the run's folder.
        start: number of steps finished before.
        trackers: names of the trackers. tensorboard is left out if it is not installed.
        config: the run's config, for the trackers.

    Raises:
        ConfigError: another tracker is not installed.
    """

    def __init__(self, output: Path, start: int, trackers: Sequence[str], config: Mapping[str, Any]) -> None:
        self.output = output
        self.path = output / "metrics.jsonl"
        self.trackers = [_start_tracker(name, output, start, config) for name in installed(trackers)]
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.path.write_text("".join(f"{line}\n" for line in lines[:start]), encoding="utf-8")

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        for tracker in self.trackers:
            tracker.finish()

    def add(self, metrics: Metrics) -> None:
        """Add the metrics of a step."""
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(metrics) + "\n")
        for tracker in self.trackers:
            tracker.log({name: metrics[name] for name in metrics if name != "step"}, step=int(metrics["step"]))

    def add_picture(self, done: int, sheet: Tensor) -> None:
        """Add the sheet of sample pictures after `done` steps, [3, H, W] float32 in [0, 1]."""
        folder = self.output / "samples"
        folder.mkdir(exist_ok=True)
        save_image(sheet, folder / f"{done:08d}.png")
        for tracker in self.trackers:
            if hasattr(tracker, "log_images"):
                tracker.log_images({"samples": sheet[None]}, step=done)


def installed(trackers: Sequence[str]) -> list[str]:
    """Leave out tensorboard if it is not installed.

    Raises:
        ConfigError: another tracker is not installed.
    """
    missing = [name for name in trackers if find_spec(name) is None]
    if missing and missing != ["tensorboard"]:
        name = next(name for name in missing if name != "tensorboard")
        raise ConfigError(f"trackers: {name} is not installed; pip install {name.replace('_', '-')}")
    return [name for name in trackers if name not in missing]


def _start_tracker(name: str, output: Path, start: int, config: Mapping[str, Any]) -> Any:  # noqa: ANN401 - accelerate's
    """Start a tracker; one that keeps files keeps them in a folder of its name in the run's."""
    kind = LOGGER_TYPE_TO_CLASS[name]
    place = (name, output) if kind.requires_logging_directory else (PROJECT,)
    tracker = kind(*place, **({"purge_step": start} if name == "tensorboard" else {}))
    tracker.start()
    if name != "tensorboard":  # which would add a folder with the config at each start
        tracker.store_init_configuration(dict(config))
    return tracker


def note_skipped(output: Path, lines: Sequence[str]) -> None:
    """Add lines about samples that could not be read to RUN/skipped.txt."""
    with (output / "skipped.txt").open("a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
