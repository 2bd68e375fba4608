import json
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from tests.jobs.conftest import Run
from tests.training.pairs import write_pairs


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    return write_pairs(tmp_path / "data", [4, 3])


def test_one_command_trains_on_a_dataset_and_goes_on(run: Run, dataset: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("batch: 2\nworkers: 0\ncheckpoint_every: 1\n")
    command = ("train", "blip-diffusion", "--data", dataset, "--output", tmp_path / "run", "--config", config)
    status, printed = run(*command, "--steps", 2)
    assert status == 0, printed
    assert [line.split()[:3] for line in printed.splitlines()[:2]] == [["step", str(i), "noise"] for i in (1, 2)]
    assert "localization" not in printed
    note = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (note["batch"], note["subject_dropped"], note["unconditional"]) == (2, 0.15, 0.1)
    assert (note["train_encoders"], note["finetune"]) == (True, False)
    with Image.open(tmp_path / "run" / "samples" / "00000002.png") as sheet:
        assert sheet.size == (3 * 66 + 2, 4 * 66 + 2)  # drawn, own, input; four samples
    assert "noise loss" in (tmp_path / "run" / "curves.svg").read_text()

    status, printed = run(*command, "--steps", 3, "--resume")
    assert status == 0, printed
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_trained_model_is_fine_tuned_on_a_subject(run: Run, dataset: Path, tmp_path: Path) -> None:
    plain, tuned = tmp_path / "plain.yaml", tmp_path / "tuned.yaml"
    plain.write_text("batch: 3\nworkers: 0\n")
    # The model is a small one, for pictures of 64 pixels.
    tuned.write_text("workers: 0\nresolution: 64\nreference: 64\nprecision: 'no'\ngradient_checkpointing: false\n")
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    for output, config, more in (
        (first, plain, ()),
        (second, tuned, ("--preset", "hub", "--finetune", "--model", first / "model")),
        (third, plain, ("--model", second / "model")),
    ):
        command = ("train", "blip-diffusion", "--data", dataset, "--output", output, "--config", config)
        status, printed = run(*command, "--steps", 1, *more)
        assert status == 0, printed
    note = json.loads((second / "config.json").read_text())
    assert (note["batch"], note["warmup"], note["learning_rate"], note["captions"]) == (3, 0, 5e-6, "subject")
    assert (note["template"], note["prompt_reps"], note["subject_dropped"]) == ("released", 20, 0)
    assert load_file(second / "model" / "subjects.safetensors").keys() == {"ball", "cup"}
    assert not (third / "model" / "subjects.safetensors").exists()
    before, after = (load_file(run / "model" / "qformer" / "model.safetensors") for run in (first, second))
    assert all(before[name].equal(after[name]) for name in before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("blip-difusion", "--data", "DATA"), "there is no recipe 'blip-difusion', did you mean 'blip-diffusion'?"),
        (("fastcomposer", "--data", "DATA"), "holds no shard: expected fastcomposer-000000.tar"),
        (("blip-diffusion", "--data", "DATA", "--preset", "hab"), "there is no preset 'hab', did you mean 'hub'?"),
        (("blip-diffusion", "--data", "DATA", "--model", "no/such/folder"), "no model in no/such/folder: "),
        (("blip-diffusion", "--data", "DATA", "--config", "CONFIG"), "the config has no field 'text_only'"),
    ],
)
def test_an_error_is_one_line(
    run: Run, dataset: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "config.yaml").write_text("text_only: 0.3\n")
    places = {"DATA": str(dataset), "CONFIG": str(tmp_path / "config.yaml")}
    status, printed = run(
        "train", *(places.get(argument, argument) for argument in arguments), "--output", tmp_path / "run"
    )
    assert status == 1
    assert len(printed.splitlines()) == 1
    assert message in printed
