"""The table of formats, and the command that is generated from it."""

import json
from pathlib import Path

import pytest

from jobs.exports import EXPORTS, all_options, formats_help
from schemas.dataset import ModelName
from schemas.samples import FORMATS, controlnet, mip_adapter
from tests.datasets import JOB, example, write_dataset
from tests.gligen import grounded_example
from tests.jobs.conftest import Run
from tests.mapped import mapped
from tests.objects import example_of_objects


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dataset by recipe."""
    root = tmp_path_factory.mktemp("exports")
    pictures = [example(f"k{i}", [("a dog", (70, 10, 20, 20)), ("a cat", (4, 4, 10, 10))], (96, 48)) for i in range(4)]
    write_dataset(root / "fastcomposer", [pictures])
    write_dataset(root / "mip-adapter", [[example_of_objects("k")]], sample_format=mip_adapter.FORMAT)
    write_dataset(root / "controlnet", [[mapped("k", ("canny",))]], sample_format=controlnet.FORMAT)
    job = JOB.model_copy(update={"models": {"clip": ModelName(name="sample/clip", revision="")}})
    for recipe in ("gligen", "paint-by-example"):
        boxed = [grounded_example(f"k{i}") for i in range(4)]
        write_dataset(root / recipe, [boxed], sample_format=FORMATS[recipe], job=job)
    return {path.name: path for path in root.iterdir()}


@pytest.mark.parametrize("name", EXPORTS)
def test_every_format_is_written_from_a_dataset_of_its_recipe(
    run: Run, datasets: dict[str, Path], tmp_path: Path, name: str
) -> None:
    assert set(EXPORTS[name].recipes) <= set(FORMATS)
    recipe = EXPORTS[name].recipes[0]
    needed = {"references": ("--trainer", "uno")}
    if name == "instancediffusion":
        pytest.skip("needs a text encoder, see test_boxes.py")
    status, printed = run("export", datasets[recipe], tmp_path / "out", "--format", name, *needed.get(name, ()))
    assert status == 0, printed
    assert f"{tmp_path / 'out'}" in printed
    assert any((tmp_path / "out").rglob("*"))


def test_a_format_gets_its_options(run: Run, datasets: dict[str, Path], tmp_path: Path) -> None:
    command = ("export", datasets["fastcomposer"], tmp_path / "out", "--format", "fastcomposer")
    status, printed = run(*command, "--square", "--held-out", "3", "--seed", "2")
    assert status == 0, printed
    assert "4 pictures, 3 of them held out for testing" in printed
    assert "4 subjects outside the square" in printed
    segments = json.loads((tmp_path / "out" / "00000" / "000000000.json").read_text())["segments"]
    assert [segment["word"] for segment in segments] == ["a dog"]
    held_out = (tmp_path / "out" / "image_ids_test.txt").read_text()
    assert run("export", datasets["fastcomposer"], tmp_path / "zero", *command[3:], "--held-out", "3")[0] == 0
    assert (tmp_path / "zero" / "image_ids_test.txt").read_text() != held_out  # chosen with seed 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "coco", "--square"], "the format coco has no option --square"),
        (["--format", "mip-adapter", "--held-out", "0", "--seed", "0"], "has no option --held-out, --seed"),
        (["--format", "coko"], "there is no format 'coko', did you mean 'coco'? Choose from fastcomposer, coco, mip-"),
        (["--format", "fastcomposer", "--held-out", "-1"], "'--held-out'"),
        (["--format", "mip-adapter"], "holds a fastcomposer dataset: this format takes mip-adapter datasets"),
    ],
)
def test_a_wrong_format_or_option_is_refused(
    run: Run, datasets: dict[str, Path], tmp_path: Path, options: list[str], message: str
) -> None:
    status, printed = run("export", datasets["fastcomposer"], tmp_path / "out", *options)
    assert status != 0
    assert message in " ".join(printed.split())
    assert list(tmp_path.iterdir()) == []


def test_the_help_names_every_format_and_option(run: Run) -> None:
    status, printed = run("export", "--help")
    assert status == 0
    words = " ".join(printed.split()).replace("- ", "-")
    assert formats_help() in words
    for option in all_options():
        assert f"--{option.name.replace('_', '-')}" in words
        assert option.help in words
    assert "--no-square" not in words
