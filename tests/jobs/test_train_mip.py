import json
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from tests.jobs.conftest import Run
from tests.training.objects import write_objects


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    return write_objects(tmp_path / "data", [4, 3])


def test_one_command_trains_on_a_dataset_and_goes_on(run: Run, dataset: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("batch: 2\nworkers: 0\ncheckpoint_every: 1\nmerge: paper\n")
    command = ("train", "mip-adapter", "--data", dataset, "--output", tmp_path / "run", "--config", config)
    status, printed = run(*command, "--steps", 2)
    assert status == 0, printed
    assert [line.split()[:3] for line in printed.splitlines()[:2]] == [["step", str(i), "noise"] for i in (1, 2)]
    note = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (note["batch"], note["merge"], note["train_encoders"]) == (2, "paper", True)
    assert (note["image_dropped"], note["text_dropped"], note["both_dropped"]) == (0.05, 0.05, 0.05)
    with Image.open(tmp_path / "run" / "samples" / "00000002.png") as sheet:
        assert sheet.size == (4 * 66 + 2, 4 * 66 + 2)  # drawn, own, two references; four samples
    assert "noise loss" in (tmp_path / "run" / "curves.svg").read_text()
    StableDiffusionPipeline.from_pretrained(tmp_path / "run" / "model")

    status, printed = run(*command, "--steps", 3, "--resume")
    assert status == 0, printed
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


def test_as_published_only_the_adapters_layers_change(run: Run, dataset: Path, tmp_path: Path) -> None:
    plain, published = tmp_path / "plain.yaml", tmp_path / "published.yaml"
    plain.write_text("batch: 2\nworkers: 0\n")
    published.write_text("batch: 2\nworkers: 0\ntrain_encoders: false\naverage: 0.0\n")
    first, second = tmp_path / "first", tmp_path / "second"
    for output, config, more in ((first, plain, ()), (second, published, ("--model", first / "model"))):
        command = ("train", "mip-adapter", "--data", dataset, "--output", output, "--config", config)
        status, printed = run(*command, "--steps", 1, *more)
        assert status == 0, printed
    changed = {}
    for file in ("ip-adapter_sd15.safetensors", "unet/diffusion_pytorch_model.safetensors"):
        before, after = (load_file(run / "model" / file) for run in (first, second))
        changed[file] = {name.split(".")[0] for name in before if not before[name].equal(after[name])}
    assert list(changed.values()) == [{"ip_adapter"}, set()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mip-adaptor", "--data", "DATA"), "there is no recipe 'mip-adaptor', did you mean 'mip-adapter'?"),
        (("fastcomposer", "--data", "DATA"), "holds a mip-adapter dataset, not one of fastcomposer"),
        (("mip-adapter", "--data", "DATA", "--preset", "hab"), "there is no preset 'hab', did you mean 'hub'?"),
        (("mip-adapter", "--data", "DATA", "--config", "CONFIG"), "merge = 'papers': Input should be"),
    ],
)
def test_an_error_is_one_line(
    run: Run, dataset: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "config.yaml").write_text("merge: papers\n")
    places = {"DATA": str(dataset), "CONFIG": str(tmp_path / "config.yaml")}
    status, printed = run(
        "train", *(places.get(argument, argument) for argument in arguments), "--output", tmp_path / "run"
    )
    assert status == 1
    assert len(printed.splitlines()) == 1
    assert message in printed
