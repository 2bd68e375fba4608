"""The `subjectloom` command: builds, inspection, export, and the messages of its errors."""

import json
import logging
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.main import get_group

from jobs.arguments import expand_arguments, move_to_front
from jobs.console import out
from jobs.main import app
from schemas.masks import Mask
from tests.jobs.conftest import Run


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    """A drawn picture with COCO panoptic annotations: a white dog on grass."""
    folder = tmp_path / "coco"
    (folder / "panoptic").mkdir(parents=True)
    dog = np.zeros((60, 80), bool)
    dog[20:50, 10:40] = True
    picture = np.where(dog[..., None], (240, 240, 235), (30, 140, 40)).astype(np.uint8)
    Image.fromarray(picture).save(folder / "lawn.jpg", quality=95)
    (folder / "lawn.txt").write_text("a white dog on green grass")
    Image.fromarray(np.where(dog[..., None], (7, 0, 0), (9, 1, 0)).astype(np.uint8)).save(
        folder / "panoptic" / "lawn.png"
    )
    segments = [
        {"id": 7, "category_id": 18, "area": int(dog.sum()), "bbox": [10, 20, 30, 30], "iscrowd": 0},
        {"id": 9 + 256, "category_id": 193, "area": int((~dog).sum()), "bbox": [0, 0, 80, 60], "iscrowd": 0},
    ]
    panoptic = {
        "images": [{"id": 1, "file_name": "lawn.jpg", "width": 80, "height": 60, "license": 4}],
        "licenses": [{"id": 4, "name": "CC BY 2.0", "url": ""}],
        "annotations": [{"image_id": 1, "file_name": "lawn.png", "segments_info": segments}],
        "categories": [
            {"id": 18, "name": "dog", "isthing": 1, "supercategory": "animal"},
            {"id": 193, "name": "grass-merged", "isthing": 0, "supercategory": "plant"},
        ],
    }
    (folder / "panoptic.json").write_text(json.dumps(panoptic))
    return folder


def build(run: Run, source: Path, output: Path, *more: str) -> tuple[int, str]:
    kind = ("--source", "coco-panoptic", "--similarity", "label")
    return run("build", "fastcomposer", "--input", source, "--output", output, *kind, *more)


def test_annotated_pictures_become_samples_whose_masks_are_the_truth(run: Run, annotated: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    status, printed = build(run, annotated, output)
    assert status == 0, printed
    assert "written 1" in " ".join(printed.split())
    assert json.loads((output / "dataset.json").read_text())["config"]["segmenter"] == "annotations"
    assert (output / "report.html").exists()
    tar = (output / "fastcomposer-000000.tar").read_bytes()
    record = json.loads(tar[tar.index(b'{"') : tar.rindex(b"}") + 1])
    found = {subject["text"]: subject for subject in record["subjects"]}
    assert {text: subject["label"] for text, subject in found.items()} == {
        "a white dog": "dog",
        "green grass": "grass-merged",
    }
    assert found["a white dog"]["bbox"] == [10, 20, 30, 30]
    assert Mask.from_json(found["a white dog"]["segmentation"]).to_array()[20:50, 10:40].all()
    assert found["a white dog"]["area"] == 900
    assert record["source"]["license"].startswith("CC BY 2.0")
    assert run("inspect", output)[0] == 0
    assert run("report", output)[0] == 0
    for form in ("fastcomposer", "coco"):
        status, printed = run("export", output, tmp_path / f"as-{form}", "--format", form)
        assert status == 0, printed


def test_a_dataset_is_overwritten_only_with_the_option(run: Run, annotated: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert build(run, annotated, output)[0] == 0
    status, printed = build(run, annotated, output)
    assert status == 1
    assert "already holds a fastcomposer dataset: --overwrite replaces it" in printed
    assert len(printed.strip().splitlines()) == 1
    assert "shards are done already" in build(run, annotated, output, "--resume")[1]
    assert build(run, annotated, output, "--overwrite")[0] == 0


def test_inspect_fails_on_a_damaged_shard(run: Run, annotated: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    build(run, annotated, output)
    shard = output / "fastcomposer-000000.tar"
    shard.write_bytes(shard.read_bytes().replace(b"a white dog", b"a black dog"))
    status, printed = run("inspect", output)
    assert status == 1
    assert "lawn" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["build", "fastcomposr", "--input", "x", "--output", "y"],
            "no recipe 'fastcomposr', did you mean 'fastcomposer'",
        ),
        (
            ["build", "fastcomposer", "--input", "/no/where", "--output", "y"],
            "/no/where: there is no such file or folder",
        ),
        (["build", "fastcomposer", "--inptu", "x"], "No such option: --inptu"),
        (["build", "fastcomposer", "--input", "x", "--output", "y", "--preset", "smple"], "no preset 'smple'"),
        (["build", "fastcomposer", "--input", "x", "--output", "y", "--model", "clip"], "write KIND=PATH_OR_NAME"),
        (["build", "fastcomposer", "--input", "x", "--output", "y", "--similarity", "clipp"], "similarity = 'clipp'"),
        (
            ["build", "fastcomposer", "--input", "x", "--output", "y", "--config", "/no.yaml"],
            "the config /no.yaml cannot",
        ),
        (["inspect", "/no/where"], "/no/where holds no dataset"),
        (["report", "/no/where"], "/no/where holds no dataset"),
        (["export", "/no/where", "y", "--format", "coko"], "no format 'coko', did you mean 'coco'"),
        (["bild"], "No such command 'bild'"),
    ],
)
def test_an_error_is_a_plain_message(run: Run, arguments: list[str], message: str) -> None:
    status, printed = run(*arguments)
    assert status != 0
    assert message in " ".join(printed.split())
    assert "Traceback" not in printed


def test_a_misspelt_field_of_the_config_gets_a_suggestion(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("treshold: 0.3\n")
    status, printed = run("build", "fastcomposer", "--input", "x", "--output", "y", "--config", config)
    assert status == 1
    assert "the config has no field 'treshold', did you mean 'threshold'" in " ".join(printed.split())


def test_options_of_the_program_may_follow_the_command() -> None:
    group = get_group(app)
    given = ["weights", "export", "RUN", "-q", "OUT", "--log-file", "F", "--step", "2", "--debug", "--log-file=G"]
    front = ["-q", "--log-file", "F", "--debug", "--log-file=G"]
    assert move_to_front(given, group) == [*front, "weights", "export", "RUN", "OUT", "--step", "2"]
    assert move_to_front(["build", "--help"], group) == ["build", "--help"]
    assert move_to_front(["report", "--log-file"], group) == ["--log-file", "report"]


def test_quiet_prints_errors_only(run: Run, tmp_path: Path) -> None:
    for arguments in (("scenes", tmp_path / "a", "--quiet"), ("--quiet", "scenes", tmp_path / "b")):
        assert run(*arguments, "--count", "1", "--size", "64") == (0, "")
    status, printed = run("report", tmp_path, "-q")
    assert status == 1
    assert printed.startswith("error: ")


def test_a_wrong_option_is_not_blamed_on_the_file(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("min_area: 0.01\n")
    command = ("build", "fastcomposer", "--input", "x", "--output", "y", "--config", config)
    assert "error: No such option: --best" in " ".join(run(*command, "--best", "3")[1].split())
    printed = " ".join(run(*command, "--similarity", "clipp")[1].split())
    assert "error: the command line: --similarity = 'clipp'" in printed
    config.write_text("min_area: much\n")
    assert f"error: {config}: min_area = 'much'" in " ".join(run(*command)[1].split())


def test_sources_with_masks_of_their_own_need_no_segmenter(run: Run, annotated: Path, tmp_path: Path) -> None:
    for segmenter in ("sam", "panoptic"):
        status, printed = build(run, annotated, tmp_path / "out", "--segmenter", segmenter)
        assert status == 1
        assert "coco-panoptic has masks of its own" in printed
    kind = ("--source", "folder", "--segmenter", "annotations")
    status, printed = run("build", "fastcomposer", "--input", annotated, "--output", tmp_path / "out", *kind)
    assert status == 1
    assert "folder has no masks of its own" in printed
    assert not (tmp_path / "out").exists()


def test_a_build_that_fails_at_once_leaves_the_folder_as_it_was(run: Run, annotated: Path, tmp_path: Path) -> None:
    command = ("build", "fastcomposer", "--input", annotated, "--output", tmp_path / "out")
    status, printed = run(*command, "--model", "clip=/no/where")
    assert status == 1
    assert "no CLIP /no/where" in " ".join(printed.split())
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert build(run, annotated, tmp_path / "out")[0] == 0
    assert run(*command, "--model", "clip=/no/where", "--resume")[0] == 1
    assert (tmp_path / "out" / "fastcomposer-000000.tar").is_file()


def test_the_version_is_printed(run: Run) -> None:
    assert run("--version") == (0, f"subjectloom {version('subjectloom')}\n")


def test_a_traceback_is_printed_only_with_debug(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("jobs.inspect.inspect", broken)
    assert "Traceback" not in run("inspect", "x")[1]
    status, printed = run("--debug", "inspect", "x")
    assert status == 1
    assert "Traceback" in printed
    assert "unexpected ZeroDivisionError" in printed


def test_quiet_prints_nothing_and_a_log_file_holds_what_libraries_log(tmp_path: Path, run: Run) -> None:
    log = tmp_path / "log.txt"
    assert run("--quiet", "recipes") == (0, "")
    assert run("--log-file", str(log), "recipes")[0] == 0
    logging.getLogger("some.library").info("a line of its own")
    assert log.read_text().endswith("INFO some.library: a line of its own\n")
    status, printed = run("--log-file", str(tmp_path / "no" / "log.txt"), "recipes")
    assert (status, printed.count("\n")) == (1, 1)
    assert "cannot be written: No such file or directory" in printed


@pytest.fixture(autouse=True)
def libraries_log_as_before() -> Iterator[None]:
    """Remove what a command adds to the log's handlers, and print again."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers, out.quiet = handlers, False
    logging.root.setLevel(level)


def test_fields_are_found_wherever_recipe_and_command_stand() -> None:
    rest = ["mip-adapter", "--input", "x", "--best", "5"]
    expanded = ["mip-adapter", "--input", "x", "--set", "best=5"]
    for before in (["build"], ["--log-file", "log.txt", "build"], ["build", "--output", "captioned"]):
        assert expand_arguments([*before, *rest], get_group(app)) == [*before, *expanded]
    assert expand_arguments(["build", "--resume", *rest], get_group(app)) == ["build", "--resume", *expanded]
