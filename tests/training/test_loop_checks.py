"""What the training loop refuses: losses that are not finite, runs of another kind, settings out of range."""

import json
import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from schemas.errors import InputError, ModelError
from tests.training.line import CONFIG, Line, Root, batch_of, run, slopes
from training.config import RunConfig
from training.loop import train
from training.resume import check_run
from training.shards import Pixels, to_device


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    message = r"at step 0 is not finite; there is no checkpoint yet. The samples of this step: a, b, c\."
    with pytest.raises(ModelError, match=message):
        list(train(Root(), lambda _: iter([batch_of(1.0, "cab")]), CONFIG, tmp_path / "run"))
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == ""


def test_a_loss_that_is_not_finite_stops_the_run_before_its_step(tmp_path: Path) -> None:
    model = Line()
    config = CONFIG.model_copy(update={"steps": 3, "checkpoint_every": 1})
    message = rf"at step 2 is not finite; the last good checkpoint is {tmp_path}/run/checkpoints/00000002\. The samples"
    with pytest.raises(ModelError, match=message):
        list(train(model, slopes(1.0, 1.0, math.nan), config, tmp_path / "run"))
    assert model.weight.item() == pytest.approx(-0.2)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_run_cannot_be_resumed_with_fewer_steps_than_it_has_made(tmp_path: Path) -> None:
    run(tmp_path / "run")
    with pytest.raises(InputError, match=r"run has finished 2 steps: it cannot be resumed with --steps 1$"):
        run(tmp_path / "run", CONFIG.model_copy(update={"steps": 1}), resume=True)
    assert run(tmp_path / "run", resume=True) == []


def test_an_existing_run_is_not_overwritten(tmp_path: Path) -> None:
    run(tmp_path / "run")
    with pytest.raises(InputError, match="holds a run already: give --resume"):
        run(tmp_path / "run")
    with pytest.raises(InputError, match=r"learning_rate was 0\.1, now 0\.2$"):
        run(tmp_path / "run", CONFIG.model_copy(update={"learning_rate": 0.2}), resume=True)
    assert len(run(tmp_path / "run", CONFIG.model_copy(update={"steps": 3}), resume=True)) == 1


def test_only_some_fields_may_change_when_a_run_is_resumed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"steps": 1, "keep": 2, "seed": 3, "data": "a"}))
    check_run(tmp_path, {"steps": 2, "keep": 3, "sample_every": 4, "checkpoint_every": 5, "seed": 3}, resume=True)
    check_run(tmp_path, {"processes": 2, "batch": 3, "accumulation": 4, "workers": 5}, resume=True)
    message = rf"^{tmp_path} cannot be resumed as another run: data was a, now b, shuffle_buffer was None, now 8$"
    with pytest.raises(InputError, match=message):
        check_run(tmp_path, {"seed": 3, "data": "b", "shuffle_buffer": 8}, resume=True)
    with pytest.raises(InputError, match="holds a run already: give --resume"):
        check_run(tmp_path, {"seed": 3}, resume=False)


def test_only_a_new_or_empty_folder_is_used_for_a_new_run(tmp_path: Path) -> None:
    for resume in (False, True):
        check_run(tmp_path / "none", {}, resume)
        check_run(tmp_path, {}, resume)
    (tmp_path / "b.txt").touch()
    (tmp_path / "a.txt").touch()
    for resume in (False, True):
        with pytest.raises(InputError, match=r"holds files that do not belong to a training run, such as a\.txt"):
            check_run(tmp_path, {}, resume)


def test_the_tensors_of_a_batch_are_moved_to_the_device() -> None:
    pixels = Pixels(torch.zeros(2, dtype=torch.uint8), -1, 1)
    moved = to_device({"input_ids": torch.ones(2), "pixel_values": pixels, "keys": ["a"]}, torch.device("meta"))
    assert moved["input_ids"].device.type == moved["pixel_values"].device.type == "meta"
    assert moved["pixel_values"].dtype == torch.float32
    assert moved["keys"] == ["a"]


def test_the_defaults_are_those_of_the_published_script_of_fastcomposer() -> None:
    config = RunConfig()
    assert (config.steps, config.accumulation, config.batch, config.seed) == (150_000, 1, 16, 42)
    assert (config.learning_rate, config.weight_decay, config.clip) == (1e-5, 0.01, 1.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("accumulation", 0),
        ("learning_rate", 0.0),
        ("warmup", -1),
        ("weight_decay", -0.1),
        ("clip", 0.0),
        ("average", -0.1),
        ("average", 1.0),
        ("precision", "fp8"),
        ("checkpoint_every", 0),
        ("keep", 0),
        ("sample_every", 0),
    ],
)
def test_settings_outside_their_range_are_refused(field: str, value: float | str) -> None:
    with pytest.raises(ValidationError, match=rf"(?s){field}\n"):
        RunConfig(**{field: value})  # type: ignore[arg-type]


def test_the_least_settings_are_accepted() -> None:
    RunConfig(steps=1, accumulation=1, learning_rate=1e-9, warmup=0, weight_decay=0, clip=1e-9, average=0)
    RunConfig(checkpoint_every=1, keep=1, sample_every=1)
