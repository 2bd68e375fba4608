import json
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from accelerate.state import AcceleratorState
from diffusers import StableDiffusionPipeline
from PIL import Image

from jobs.train import fingerprint
from tests.datasets import example, write_dataset
from tests.jobs.conftest import Run
from tests.paths import ROOT
from tests.training.keyed import PREFIX, write_keyed
from training.shards import find_shards

SUBJECTS = (("a red dog", (4, 6, 20, 16)), ("a cat", (30, 10, 20, 30)))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    write_dataset(tmp_path / "data", [[example(f"key{i}", SUBJECTS) for i in range(4)]])
    return tmp_path / "data"


def test_one_command_trains_on_a_dataset_and_goes_on(run: Run, dataset: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("batch: 2\nworkers: 0\ncheckpoint_every: 1\n")
    command = ("train", "fastcomposer", "--data", dataset, "--output", tmp_path / "run", "--config", config)
    status, printed = run(*command, "--steps", 2)
    assert status == 0, printed
    assert [line.split()[:2] for line in printed.splitlines()[:2]] == [["step", "1"], ["step", "2"]]
    assert str(tmp_path / "run" / "curves.svg") in printed
    note = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (note["batch"], note["resolution"], note["train_encoders"]) == (2, 64, True)
    with Image.open(tmp_path / "run" / "samples" / "00000002.png") as sheet:
        assert sheet.size == (6 * 66 + 2, 4 * 66 + 2)  # drawn, own, four references; four samples
    StableDiffusionPipeline.from_pretrained(tmp_path / "run" / "model")

    status, printed = run(*command, "--steps", 3)
    assert status == 1
    assert "holds a run already: give --resume" in " ".join(printed.split())
    status, printed = run(*command, "--steps", 3, "--resume")
    assert status == 0, printed
    assert printed.splitlines()[0].startswith("step 3")
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_run_is_not_resumed_as_another(run: Run, dataset: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("batch: 1\nworkers: 0\n")
    output = tmp_path / "run"
    command = ("train", "fastcomposer", "--output", output, "--config", config, "--resume")
    assert run(*command, "--data", dataset, "--steps", 2)[0] == 0
    note = (output / "config.json").read_text()

    write_dataset(tmp_path / "other", [[example(f"key{i}", SUBJECTS) for i in range(7)]])
    status, printed = run(*command, "--data", tmp_path / "other", "--steps", 3)
    assert status == 1
    assert "cannot be resumed as another run: data was sha256:" in " ".join(printed.split())
    status, printed = run(*command, "--data", dataset, "--steps", 1)
    assert status == 1
    assert "has finished 2 steps: it cannot be resumed with --steps 1" in " ".join(printed.split())
    assert (output / "config.json").read_text() == note
    status, printed = run(*command, "--data", dataset, "--steps", 2)
    assert status == 0
    assert printed.startswith("all 2 steps are finished already")


def test_other_files_are_left_alone(run: Run, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "weights").write_text("precious")
    status, printed = run("train", "fastcomposer", "--data", dataset, "--output", tmp_path / "mine", "--steps", 1)
    assert status == 1
    assert "holds files that do not belong to a training run, such as model" in " ".join(printed.split())
    assert (tmp_path / "mine" / "model" / "weights").read_text() == "precious"


def test_training_can_start_from_a_trained_model_and_read_several_datasets(
    run: Run, dataset: Path, tmp_path: Path
) -> None:
    """The second run reads a dataset on the disk and one at an address, mixed by weight."""
    config = tmp_path / "config.yaml"
    config.write_text("batch: 1\nworkers: 0\n")
    fsspec.filesystem("memory").put(str(dataset), "/bucket/data", recursive=True)
    mixed = ("--data", f"{dataset}=0.5", "--data", "memory://bucket/data=1", "--model", tmp_path / "first" / "model")
    for name, more in (("first", ("--data", dataset)), ("second", mixed)):
        command = ("train", "fastcomposer", "--output", tmp_path / name, "--config", config)
        status, printed = run(*command, "--steps", 1, *more)
        assert status == 0, printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fastcompser", "--data", "DATA"), "there is no recipe 'fastcompser', did you mean 'fastcomposer'?"),
        (("fastcomposer", "--data", "nowhere.tar"), "no shard nowhere.tar: name the folder of a dataset"),
        (("fastcomposer", "--data", "DATA", "--preset", "hab"), "there is no preset 'hab', did you mean 'hub'?"),
        (("fastcomposer", "--data", "DATA", "--model", "nowhere"), "no model in nowhere: "),
        (
            ("fastcomposer", "--data", "DATA", "--model", "/nowhere"),
            "no model in /nowhere: there is no such folder",
        ),
        (("fastcomposer", "--data", "DATA", "--config", "CONFIG"), "the config has no field 'stepz', did you mean"),
        (("fastcomposer", "--data", "DATA", "--finetune"), "No such option: --finetune, a field of blip-diffusion"),
        (
            ("fastcomposer", "--data", "DATA", "--set", "finetune=true"),
            "the config has no field 'finetune', it is a field of blip-diffusion",
        ),
    ],
)
def test_an_error_is_one_line(
    run: Run, dataset: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "config.yaml").write_text("stepz: 3\n")
    places = {"DATA": str(dataset), "CONFIG": str(tmp_path / "config.yaml")}
    status, printed = run(
        "train", *(places.get(argument, argument) for argument in arguments), "--output", tmp_path / "run"
    )
    assert status == 1
    assert len(printed.splitlines()) == 1
    assert message in printed


def test_datasets_are_recognized_by_their_samples_wherever_they_lie(tmp_path: Path) -> None:
    for name, sizes in (("a", [3, 4]), ("b", [4, 3])):
        write_keyed(tmp_path / name, sizes)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    shutil.copytree(a, tmp_path / "copy")
    (tmp_path / "copy" / "index.parquet").unlink()

    def print_of(*data: str) -> str:
        return fingerprint(find_shards(data, PREFIX))

    assert print_of(a) == print_of(str(tmp_path / "copy"))
    prints = [print_of(a), print_of(b), print_of(a, b), print_of(b, a)]
    prints += [print_of(f"{a}=1", f"{b}={weight}") for weight in (1, 2)]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("scenes", "FILE/out", "--count", "1"), "error: FILE/out"),
        (("train", "fastcomposer", "--data", "DATA", "--output", "FILE/run", "--steps", "1"), "error: FILE/run"),
        (("export", "DATA", "FILE/out", "--format", "coco"), "error: FILE"),
        (("build", "captioned", "--input", "IN", "--output", "FILE/out"), "error: cannot write to FILE/out"),
    ],
)
def test_an_output_that_cannot_be_written_is_one_line(
    tmp_path: Path, dataset: Path, run: Run, command: tuple[str, ...], message: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "in").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / "a.jpg")
    names = {"FILE": str(tmp_path / "file"), "DATA": str(dataset), "IN": str(tmp_path / "in")}

    def fill(text: str) -> str:
        for name, path in names.items():
            text = text.replace(name, path)
        return text

    status, printed = run(*map(fill, command))
    assert status == 1
    assert fill(message) in printed.strip().splitlines()[-1]
    assert "unexpected" not in printed


def test_an_unfinished_dataset_is_refused(run: Run, dataset: Path, tmp_path: Path) -> None:
    (dataset / "dataset.json").unlink()
    status, printed = run("train", "fastcomposer", "--data", dataset, "--output", tmp_path / "run", "--steps", 1)
    assert status == 1
    assert f"the dataset {dataset} is not finished: `subjectloom build` with --resume finishes it" in printed
    assert f"name them, as in {dataset}/fastcomposer-000000.tar" in printed


def test_a_dataset_of_another_recipe_is_named(run: Run, dataset: Path, tmp_path: Path) -> None:
    status, printed = run("train", "captioned", "--data", dataset, "--output", tmp_path / "run", "--steps", 1)
    assert status == 1
    assert f"{dataset} holds a fastcomposer dataset, not one of captioned" in printed


def test_wrong_arguments_are_answered_before_torch_is_imported(tmp_path: Path, dataset: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text('{"recipe": "fastcomposer", "seed": 5}')
    train = ("train", "fastcomposer", "--output", str(tmp_path / "run"), "--data")
    commands = {
        (*train, str(tmp_path / "none")): "no shard",
        (*train, str(dataset), "--set", "foo=3"): "no field 'foo'",
        (*train[:3], str(tmp_path / "old"), "--data", str(dataset)): "holds a run already",
        (*train[:3], str(tmp_path / "old"), "--data", str(dataset), "--resume"): "seed was 5, now 42",
        ("weights", "export", str(tmp_path / "none"), str(tmp_path / "out")): "holds no training run",
        ("recipes", "blip-diffusion"): "finetune",
    }
    script = (
        "import sys; from jobs.main import main\n"
        f"for arguments in {list(commands)!r}:\n"
        "    sys.argv = ['subjectloom', *arguments]\n"
        "    try: main()\n"
        "    except SystemExit: pass\n"
        "    print('~', file=sys.stderr); print('~')\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    printed = [out + err for out, err in zip(done.stdout.split("~"), done.stderr.split("~"), strict=True)]
    for text, message in zip(printed[:-1], commands.values(), strict=True):
        assert message in text
    assert printed[-1].strip() == "False"
