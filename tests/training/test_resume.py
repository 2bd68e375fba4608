import json
from pathlib import Path

import pytest

from schemas.errors import InputError
from training.configs.captioned import Config
from training.resume import PerStep, check_run, defaults_of, describe_change, samples_per_step, samples_read


def test_a_run_counts_the_samples_of_all_its_parts() -> None:
    """500 steps of 128 samples, then 300 of 64, then 128 again."""
    first = samples_per_step({}, 0, 128)
    second = samples_per_step({"samples_per_step": first}, 500, 64)
    third = samples_per_step({"samples_per_step": second}, 800, 128)
    assert first == [(0, 128)]
    assert third == [(0, 128), (500, 64), (800, 128)]
    steps = {0: 0, 1: 128, 500: 64_000, 501: 64_064, 800: 83_200, 801: 83_328}
    assert {step: samples_read(third, step) for step in steps} == steps


@pytest.mark.parametrize(
    ("before", "step", "expected"),
    [
        ([[0, 8]], 10, [(0, 8)]),  # as before
        ([[0, 8], [10, 4]], 10, [(0, 8)]),  # changed at the same checkpoint, and changed back
        ([[0, 8], [10, 4]], 5, [(0, 8)]),  # the checkpoint of step 10 was deleted
        ([[0, 4]], 0, [(0, 8)]),  # no checkpoint yet
        ([], 7, [(0, 8)]),
    ],
)
def test_only_what_was_read_up_to_the_checkpoint_counts(before: PerStep, step: int, expected: PerStep) -> None:
    assert samples_per_step({"samples_per_step": before}, step, 8) == expected


def test_a_line_says_what_has_changed() -> None:
    changed = [(0, 128), (500, 64)]
    assert describe_change(changed, 500, 4) == (
        "a step now reads 64 samples instead of 128 (processes: 4); "
        "64,000 were read so far, and those after them follow"
    )
    assert describe_change(changed, 800, 4) == describe_change([(0, 128)], 500, 8) == ""
    assert describe_change([(0, 128)], 0, 8) == ""


DEFAULTS = {"seed": 3, "fsdp": False, "schedule": "constant", "lora": 0}


def test_a_run_of_an_older_version_is_resumed_with_the_defaults_of_the_fields_it_did_not_have(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"seed": 3, "data": "a", "dropped": 7}))
    check_run(tmp_path, {**DEFAULTS, "data": "a"}, True, DEFAULTS)
    message = (
        "cannot be resumed as another run: lora was 0, now 4; "
        "that run's version did not have lora, and trained as with the former$"
    )
    with pytest.raises(InputError, match=message):
        check_run(tmp_path, {**DEFAULTS, "data": "a", "lora": 4}, True, DEFAULTS)
    with pytest.raises(InputError, match=r"run: data was a, now b$"):
        check_run(tmp_path, {**DEFAULTS, "data": "b"}, True, DEFAULTS)


def test_no_default_of_a_config_keeps_a_run_without_any_field_from_being_resumed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"recipe": "captioned"}')
    config = Config()
    check_run(tmp_path, {"recipe": "captioned", **config.model_dump(mode="json")}, True, defaults_of(config))


def test_the_steps_of_a_schedule_that_depends_on_them_cannot_change(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"steps": 5, "schedule": "cosine"}')
    check_run(tmp_path, {"steps": 5, "schedule": "cosine"}, True)
    with pytest.raises(InputError, match=r"steps was 5, now 9 \(the learning rates of schedule cosine depend on it\)"):
        check_run(tmp_path, {"steps": 9, "schedule": "cosine"}, True)


@pytest.mark.parametrize("content", ["{", "7", ""])
def test_a_damaged_config_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json cannot be read: .*\. It states the config of the run"):
        check_run(tmp_path, {}, True)
