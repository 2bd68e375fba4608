"""Trackers of accelerate, with one that stands in for those on the web."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from pydantic import ValidationError

from schemas.errors import ConfigError
from training.config import RunConfig
from training.log import Log, installed


class Recorder:
    """A tracker that keeps its files nowhere and remembers its calls."""

    requires_logging_directory = False
    calls: list[Any]

    def __init__(self, project: str) -> None:
        Recorder.calls = [("project", project)]

    def start(self) -> None:
        self.calls.append("start")

    def store_init_configuration(self, config: dict[str, Any]) -> None:
        self.calls.append(config)

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls.append((step, values))

    def finish(self) -> None:
        self.calls.append("finish")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    module = ModuleType("wandb")
    module.__spec__ = pytest.__spec__
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Recorder)
    return Recorder


def test_a_tracker_gets_config_and_metrics(recorder: type[Recorder], tmp_path: Path) -> None:
    with Log(tmp_path, 0, ("wandb",), {"steps": 3}) as log:
        log.add({"step": 4, "loss": 0.5})
        log.add_picture(1, torch.zeros(3, 4, 4))  # which this tracker cannot show
    expected = [("project", "subjectloom"), "start", {"steps": 3}, (4, {"loss": 0.5}), "finish"]
    assert recorder.calls == expected
    assert (tmp_path / "samples" / "00000001.png").is_file()


def test_a_tracker_that_keeps_files_keeps_them_with_the_run(tmp_path: Path) -> None:
    with Log(tmp_path, 0, ("tensorboard",), {}) as log:
        log.add({"step": 0, "loss": 0.5})
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_only_tensorboard_may_be_missing(recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch) -> None:
    del recorder
    assert installed(("wandb", "tensorboard")) == ["wandb", "tensorboard"]
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert installed(("wandb", "tensorboard")) == ["wandb"]
    monkeypatch.setitem(sys.modules, "comet_ml", None)
    with pytest.raises(ConfigError, match="trackers: comet_ml is not installed; pip install comet-ml"):
        installed(("tensorboard", "comet_ml"))


def test_every_tracker_that_a_config_may_name_is_one_of_accelerate_s() -> None:
    config = RunConfig(trackers=tuple(LOGGER_TYPE_TO_CLASS))
    assert set(config.trackers) == set(LOGGER_TYPE_TO_CLASS)
    with pytest.raises(ValidationError, match="trackers"):
        RunConfig(trackers=("notebook",))  # type: ignore[arg-type]
