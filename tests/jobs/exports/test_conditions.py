"""Exports of datasets with maps, read as the trainers of ControlNet, diffusers and T2I-Adapter read them."""

import json
from pathlib import Path

import cv2
import datasets
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from jobs.exports.conditions import export_controlnet, export_imagefolder, export_t2i_adapter
from jobs.hints import hint_of
from schemas.errors import ConfigError, InputError
from schemas.images import decode_image
from schemas.maps import canny_edges, decode_map, min_max
from schemas.palettes import color_of
from schemas.samples import FORMATS
from schemas.samples.mapped import Record
from tests.datasets import JOB, example, write_dataset
from tests.mapped import mapped

KINDS = ("canny", "depth", "normal", "pose", "segmentation")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("data") / "dataset"
    job = JOB.model_copy(update={"config": {"maps": list(KINDS)}})
    write_dataset(output, [[mapped("a", KINDS), mapped("b", KINDS)]], sample_format=FORMATS["controlnet"], job=job)
    return output


def read_bgr(path: Path) -> NDArray[np.uint8]:
    """Read a picture as the authors' loaders do, to RGB."""
    found = cv2.imread(str(path))
    assert found is not None
    return np.asarray(cv2.cvtColor(found, cv2.COLOR_BGR2RGB), np.uint8)


def test_controlnet_s_tutorial_dataset_reads_its_folder(dataset: Path, tmp_path: Path) -> None:
    """Field by field as `tutorial_dataset.py`: a JSON per line, pictures by OpenCV, batches of one size."""
    exported = export_controlnet(str(dataset), tmp_path / "out", size=64)
    assert exported.lines(tmp_path / "out") == [
        f"2 pictures with canny maps, squares of 64 pixels, in {tmp_path / 'out'}"
    ]
    rows = [json.loads(line) for line in (tmp_path / "out" / "prompt.json").read_text().splitlines()]
    assert [set(row) for row in rows] == [{"source", "target", "prompt"}] * 2
    for row, made in zip(rows, (mapped("a"), mapped("b")), strict=True):
        source, target = read_bgr(tmp_path / "out" / row["source"]), read_bgr(tmp_path / "out" / row["target"])
        assert source.shape == target.shape == (64, 64, 3)
        assert source.dtype == target.dtype == np.uint8
        assert row["prompt"] == made.caption
        # The square is the picture's middle: 48 x 48 pixels, enlarged. The rectangle's left edge is at x = 16 - 8.
        assert source[30, 8:14].max() > 150
        assert source[30, 20:50].max() == 0
        assert target[30, 40].tolist() == pytest.approx([200, 120, 40], abs=8)


def test_normals_have_controlnet_s_signs_and_channels(dataset: Path, tmp_path: Path) -> None:
    """By its annotator: x, y = slopes of nearness to the right and downwards, then the channels are reversed."""
    export_controlnet(str(dataset), tmp_path / "out", map="normal", size=0)
    hint = read_bgr(tmp_path / "out" / "source" / "a.png")
    nearness = min_max(decode_map("depth", mapped("a").maps["depth"].png)) * 0.5 * 64
    slope = float(nearness[31, 30] - nearness[30, 30])
    expected = np.array([1, slope, 0]) / np.hypot(1, slope) * 127.5 + 127.5
    assert hint[30, 30].tolist() == pytest.approx(expected.tolist(), abs=2)


def test_the_image_folder_has_a_conditioning_column(dataset: Path, tmp_path: Path) -> None:
    """diffusers' train_controlnet.py takes the columns image, conditioning_image and text of such a folder."""
    export_imagefolder(str(dataset), tmp_path / "out", map="depth")
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    assert set(loaded.column_names) == {"image", "conditioning_image", "text"}
    assert loaded["text"] == ["a dog and a cat"] * 2
    assert loaded[0]["image"].size == loaded[0]["conditioning_image"].size == (64, 48)
    depth = np.asarray(loaded[0]["conditioning_image"].convert("RGB"))
    assert depth[0].max() == 0
    assert depth[47].min() == 255
    assert decode_image((tmp_path / "out" / "train" / "a.jpg").read_bytes()).shape == (48, 64, 3)


def test_t2i_adapter_s_depth_dataset_reads_its_list(dataset: Path, tmp_path: Path) -> None:
    """Field by field as `dataset_depth.py`: names from the list, the map's and the caption's by their endings."""
    export_t2i_adapter(str(dataset), tmp_path / "out", map="depth", size=32)
    for line in (tmp_path / "out" / "list.txt").read_text().splitlines():
        path = Path(line.strip())
        depth = read_bgr(Path(f"{str(path).rsplit('.', 1)[0]}.depth.png"))
        assert read_bgr(path).shape == depth.shape == (32, 32, 3)
        assert depth[0].mean() < 8 < 245 < depth[31].mean()
        assert Path(f"{str(path).rsplit('.', 1)[0]}.txt").read_text().strip() == "a dog and a cat"


def test_hints_are_what_the_authors_annotators_show() -> None:
    sample, _ = FORMATS["controlnet"].pack(mapped("a", ("canny", "lines", "scribble", "segmentation")))
    record = FORMATS["controlnet"].record.from_sample(sample)
    assert isinstance(record, Record)
    picture = decode_image(sample.members["jpg"])
    canny = hint_of("canny", sample, record)
    assert np.array_equal(canny[..., 0], cv2.Canny(picture, 100, 200))
    assert np.array_equal(canny[..., 0] > 0, canny_edges(decode_map("canny", sample.members["canny.png"]), 100, 200))
    for kind in ("lines", "scribble"):
        assert set(np.unique(hint_of(kind, sample, record))) == {0, 255}
    colors = {tuple(color) for color in hint_of("segmentation", sample, record).reshape(-1, 3).tolist()}
    assert colors == {(0, 0, 0), color_of("dog"), color_of("cat")}


def test_a_map_that_the_dataset_lacks_and_another_recipe_are_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--map lines: the dataset has the maps canny, depth"):
        export_controlnet(str(dataset), tmp_path / "out", map="lines")
    write_dataset(tmp_path / "other", [[example("k")]])
    with pytest.raises((ConfigError, InputError), match="holds a fastcomposer dataset"):
        export_imagefolder(str(tmp_path / "other"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_composer_dataset_is_exported_too(tmp_path: Path) -> None:
    job = JOB.model_copy(update={"config": {"maps": ["sketch"]}})
    write_dataset(tmp_path / "c", [[mapped("a", ("sketch",))]], sample_format=FORMATS["composer"], job=job)
    assert export_imagefolder(str(tmp_path / "c"), tmp_path / "out").pictures == 1
    with Image.open(tmp_path / "out" / "train" / "conditioning" / "a.png") as stored:
        assert stored.size == (64, 48)
