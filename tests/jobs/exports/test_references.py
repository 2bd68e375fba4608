"""Exports for trainers with reference pictures: what their loaders read, and what the check finds."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from jobs.exports.references import Exported, export_references, find_faults
from jobs.exports.subjects import layers_of, references_of
from jobs.exports.trainers import TRAINERS, has_words
from schemas.errors import ConfigError, InputError, SubjectloomError
from schemas.example import Placement
from schemas.images import decode_grey, decode_image
from schemas.samples import blip_diffusion, captioned, fastcomposer
from tests.datasets import example, on_another_background, write_dataset

TWO = example("two", [("a dog", (4, 6, 20, 16)), ("a black cat", (30, 2, 30, 40))])
ONE = example("one", [("a dög", (10, 10, 12, 9))], size=(48, 64))
FIVE = example("five", [(f"a thing{i}", (2 + 12 * i, 5, 6 + i, 6 + i)) for i in range(5)])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("references") / "data"
    write_dataset(folder, [[TWO, ONE]])
    return str(folder)


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def test_a_reference_is_its_subject_alone_on_white() -> None:
    sample, _ = fastcomposer.FORMAT.pack(TWO)
    dog, cat = references_of("fastcomposer", sample)
    np.testing.assert_array_equal(dog.pixels, TWO.pixels()[6:22, 4:24])
    assert (dog.text, dog.bbox, dog.target_bbox) == ("a dog", (0, 0, 20, 16), (4, 6, 20, 16))
    assert (cat.text, cat.pixels.shape) == ("a black cat", (40, 30, 3))
    wedge = np.zeros((48, 64), bool)
    wedge[10, 10:20] = wedge[11, 10:12] = True
    mask = replace(TWO.segments[0], mask=type(TWO.segments[0].mask).from_array(wedge))
    sample, _ = fastcomposer.FORMAT.pack(replace(TWO, segments=(mask, TWO.segments[1])))
    pixels = references_of("fastcomposer", sample)[0].pixels
    assert pixels.shape == (2, 10, 3)
    assert (pixels[1, 2:] == 255).all()
    np.testing.assert_array_equal(pixels[1, :2], TWO.pixels()[11, 10:12])


def test_the_reference_of_blip_diffusion_is_its_input_with_the_box_where_the_subject_was_placed() -> None:
    sample, _ = blip_diffusion.FORMAT.pack(on_another_background("k"))
    (same,) = references_of("blip-diffusion", sample)
    np.testing.assert_array_equal(same.pixels, decode_image(sample.members["input.jpg"]))
    assert (same.text, same.bbox, same.target_bbox) == ("a dog", (4, 6, 21, 16), (4, 6, 21, 16))
    moved = replace(on_another_background("k"), placement=Placement("painted", shift=(8, 3), flip=True))
    (other,) = references_of("blip-diffusion", blip_diffusion.FORMAT.pack(moved)[0])
    # Mirrored in 64 columns: 64 - (4 + 21) = 39; then moved.
    assert other.bbox == (47 - max(0, 47 + 21 - 64), 9, 21, 16)
    assert other.target_bbox == same.target_bbox


def compose(layers: list[Any]) -> Any:  # noqa: ANN401 - arrays
    canvas = Image.new("RGBA", (layers[0].shape[1], layers[0].shape[0]))
    for layer in layers:
        canvas = Image.alpha_composite(canvas, Image.fromarray(layer))
    return np.asarray(canvas)


def test_layers_laid_over_each_other_are_the_picture_again() -> None:
    nested = example("n", [("a house", (0, 0, 40, 40)), ("a door", (30, 10, 10, 30))])
    layers = layers_of("fastcomposer", fastcomposer.FORMAT.pack(nested)[0])
    assert [layer.shape for layer in layers] == [(48, 64, 4)] * 3
    assert [int((layer[..., 3] > 0).sum()) for layer in layers] == [48 * 64 - 1600, 1300, 300]  # the door in front
    np.testing.assert_array_equal(compose(layers)[..., :3], nested.pixels())
    assert (compose(layers)[..., 3] == 255).all()
    cut = on_another_background("k")
    back, front = layers_of("blip-diffusion", blip_diffusion.FORMAT.pack(cut)[0])
    np.testing.assert_array_equal(front[..., 3], decode_grey(cut.alpha))
    assert set(np.unique(back[..., 3])) == {0, 255}
    again = compose([back, front]).astype(int)
    assert (again[..., 3] == 255).all()
    assert np.abs(again[..., :3] - cut.pixels()).max() <= 3


def test_diffsynth_gets_lists_relative_to_the_folder(data: str, tmp_path: Path) -> None:
    exported = export_references(data, tmp_path / "out", trainer="diffsynth-studio")
    assert exported == Exported(2, 3, {1: 1, 2: 1}, {}, 0)
    assert lines(tmp_path / "out" / "metadata.jsonl") == [
        {"image": "images/one.jpg", "prompt": "a dög", "edit_image": ["references/one_0.png"]},
        {
            "image": "images/two.jpg",
            "prompt": "a dog and a black cat",
            "edit_image": ["references/two_0.png", "references/two_1.png"],
        },
    ]
    assert (tmp_path / "out" / "images" / "two.jpg").read_bytes() == TWO.image


def test_musubi_gets_absolute_paths_in_a_file_for_each_number_of_references(data: str, tmp_path: Path) -> None:
    export_references(data, tmp_path / "o ü", trainer="musubi-tuner")
    out = tmp_path / "o ü"
    (one, two) = tomllib.loads((out / "dataset.toml").read_text("utf-8"))["datasets"]
    assert (one["image_jsonl_file"], one["cache_directory"]) == (f"{out}/metadata_1.jsonl", f"{out}/cache_1")
    (row,) = lines(Path(two["image_jsonl_file"]))
    assert row == {
        "image_path": f"{out}/images/two.jpg",
        "control_path_0": f"{out}/references/two_0.png",
        "control_path_1": f"{out}/references/two_1.png",
        "caption": "a dog and a black cat",
    }


def test_layers_for_musubi_have_alpha_and_follow_their_picture(data: str, tmp_path: Path) -> None:
    exported = export_references(data, tmp_path / "out", trainer="musubi-tuner-layers")
    assert exported.per_target == {2: 1, 3: 1}
    assert "5 layers" in exported.lines(tmp_path / "out")[0]
    config = tomllib.loads((tmp_path / "out" / "dataset.toml").read_text("utf-8"))["datasets"]
    assert all(dataset["multiple_target"] for dataset in config)
    (row,) = lines(tmp_path / "out" / "metadata_2.jsonl")
    assert sorted(row) == ["caption", "image_path_0", "image_path_1", "image_path_2"]
    assert Path(row["image_path_0"]).read_bytes() == ONE.image
    with Image.open(row["image_path_2"]) as layer:
        assert layer.mode == "RGBA"


def test_trainers_that_pair_by_name_get_a_folder_for_each_number_of_references(data: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_references(data, out, trainer="ai-toolkit")
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == [
        "1/images/one.jpg", "1/images/one.txt", "1/masks/one.png", "1/references_1/one.png",
        "2/images/two.jpg", "2/images/two.txt", "2/masks/two.png", "2/references_1/two.png", "2/references_2/two.png",
        "datasets.yaml",
    ]  # fmt: skip
    one, two = yaml.safe_load((out / "datasets.yaml").read_text("utf-8"))["datasets"]
    assert (one["folder_path"], two["control_path"]) == (f"{out}/1/images", [f"{out}/2/references_{i}" for i in (1, 2)])
    mask = np.asarray(Image.open(out / "2" / "masks" / "two.png"))
    assert (mask.shape, int((mask == 255).sum()), set(np.unique(mask))) == ((48, 64), 20 * 16 + 30 * 40, {0, 255})
    assert (out / "1" / "images" / "one.txt").read_text("utf-8") == "a dög"


def test_diffusion_pipe_takes_the_largest_reference_alone(data: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    exported = export_references(data, out, trainer="diffusion-pipe")
    assert (exported.per_target, exported.dropped) == ({1: 2}, {"beyond 1 of a picture": 1})
    (directory,) = tomllib.loads((out / "dataset.toml").read_text("utf-8"))["directory"]
    assert (directory["path"], directory["control_path"]) == (f"{out}/1/images", f"{out}/1/references_1")
    with Image.open(out / "1" / "references_1" / "two.png") as cat:
        assert cat.size == (30, 40)


def test_omnigen2_uno_and_ms_diffusion_get_their_fields(data: str, tmp_path: Path) -> None:
    for trainer in ("omnigen2", "uno", "ms-diffusion"):
        export_references(data, tmp_path / trainer, trainer=trainer)
    root = str(tmp_path / "omnigen2")
    mixture = yaml.safe_load((tmp_path / "omnigen2" / "data.yml").read_text("utf-8"))
    assert mixture == {"data": [{"path": f"{root}/data.jsonl", "type": "ic", "ratio": 1.0}]}
    assert lines(tmp_path / "omnigen2" / "data.jsonl")[1] == {
        "task_type": "ic",
        "instruction": "a dog and a black cat",
        "input_images": [f"{root}/references/two_0.png", f"{root}/references/two_1.png"],
        "output_image": f"{root}/images/two.jpg",
    }
    assert json.loads((tmp_path / "uno" / "train_1.json").read_text("ascii")) == [
        {"image_paths": ["references/one_0.png"], "image_tgt_path": "images/one.jpg", "prompt": "a dög"}
    ]
    (two,) = (row["datas"] for row in json.loads((tmp_path / "ms-diffusion" / "train.json").read_text("ascii"))[1:])
    assert two["image_boxes"] == [[4, 6, 24, 22], [30, 2, 60, 42]]
    assert two["reference_image_boxes"] == [[0, 0, 20, 16], [0, 0, 30, 40]]
    assert (two["image_phrases"], two["reference_image_masks"]) == (["a dog", "a black cat"], None)


def test_of_too_many_references_the_largest_stay_in_their_order(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", [[FIVE]])
    exported = export_references(str(tmp_path / "data"), tmp_path / "out", trainer="ms-diffusion")
    assert (exported.references, exported.dropped) == (4, {"beyond 4 of a picture": 1})
    (row,) = json.loads((tmp_path / "out" / "train.json").read_text("ascii"))
    assert row["datas"]["image_phrases"] == [f"a thing{i}" for i in range(1, 5)]


@pytest.mark.parametrize(
    ("text", "caption", "found"),
    [
        ("a dog", "a cat and a dog.", True),
        ("dog", "a hot-dog stand", True),
        ("a dog", "a dog's bowl", False),
        ("two dogs", "a dog", False),
        ("", "a dog", False),
    ],
)
def test_words_are_found_as_ms_diffusions_loader_finds_them(text: str, caption: str, found: bool) -> None:
    assert has_words(text, caption) == found


def test_a_reference_whose_words_ms_diffusion_would_not_find_is_left_out(tmp_path: Path) -> None:
    beyond = replace(ONE, caption="a dög's bowl", source_caption="a dög's bowl")
    write_dataset(tmp_path / "data", [[beyond, TWO]])
    exported = export_references(str(tmp_path / "data"), tmp_path / "out", trainer="ms-diffusion")
    assert (exported.written, exported.without) == (1, 1)
    assert exported.dropped == {"whose words its loader does not find in the caption": 1}


@pytest.mark.parametrize("name", TRAINERS)
def test_the_check_names_each_fault(data: str, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    export_references(data, out, trainer=name)
    trainer = TRAINERS[name]
    assert list(find_faults(trainer, out, 2)) == []
    folders = trainer.in_folders
    reference = out / ("1/references_1/one.png" if folders else "references/one_0.png")
    image = out / (
        "1/images/two.jpg" if name == "diffusion-pipe" else "2/images/two.jpg" if folders else "images/two.jpg"
    )
    content = reference.read_bytes()
    reference.write_bytes(content[: len(content) // 2])
    (cut,) = find_faults(trainer, out, 2)
    assert "one.jpg: " in cut
    assert "cannot be opened" in cut
    reference.rename(reference.with_name("One.png"))
    faults = list(find_faults(trainer, out, 2))
    assert any("one" in fault and fault.endswith("is not there") for fault in faults)
    if folders:
        assert any(fault.endswith("One.png: no target has this name") for fault in faults)
    reference.write_bytes(content)
    reference.with_name("One.png").unlink()
    image.unlink()
    assert any(
        "two" in fault or "1 targets are found, 2 were written" in fault for fault in find_faults(trainer, out, 2)
    )


def test_the_check_counts_and_compares(data: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_references(data, out, trainer="uno")
    (one,), (two,) = (json.loads((out / f"train_{n}.json").read_text("ascii")) for n in (1, 2))
    (out / "train_2.json").write_text(json.dumps([two, one | {"prompt": " "}, two]), encoding="ascii")
    faults = list(find_faults(TRAINERS["uno"], out, 3))
    assert sorted(faults) == [
        f"{out}: 2 targets are found, 3 were written",
        "images/one.jpg: has no caption in train_2.json",
        "images/one.jpg: stands twice in train_2.json",
        "images/two.jpg: stands twice in train_2.json",
        "train_2.json: samples of 1 and 2 references, a batch takes one number",
    ]


def test_an_export_that_the_check_finds_faults_in_fails_with_a_line_for_each(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(folder: Path, _root: Path, _entries: object) -> None:
        (folder / "train_1.json").write_text("[]")

    monkeypatch.setitem(TRAINERS, "uno", replace(TRAINERS["uno"], write=write))
    with pytest.raises(SubjectloomError, match=r"1 faults in .*\n.*0 targets are found, 2 were written"):
        export_references(data, tmp_path / "out", trainer="uno")


def test_what_is_missing_is_named(data: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--format references needs --trainer: choose from diffsynth-studio, musubi"):
        export_references(data, tmp_path / "out")
    with pytest.raises(ConfigError, match="there is no --trainer 'musubi', did you mean 'musubi-tuner'"):
        export_references(data, tmp_path / "out", trainer="musubi")
    write_dataset(tmp_path / "plain", [[ONE]], sample_format=captioned.FORMAT)
    with pytest.raises(
        InputError, match=r"captioned dataset, whose samples have no references: .* blip-diffusion, fast"
    ):
        export_references(str(tmp_path / "plain"), tmp_path / "out", trainer="uno")
