import json
from pathlib import Path
from typing import Any

import pytest

from schemas.samples import blip_diffusion
from schemas.shards import read_sample
from tests.datasets import example, on_another_background, write_dataset
from transforms.dataset import read_table


def index_of(output: Path, shard: str) -> Any:  # noqa: ANN401 - JSON
    return json.loads((output / shard).read_bytes())


def test_each_offset_points_at_the_bytes_of_its_file_also_behind_a_long_name(tmp_path: Path) -> None:
    pictures = [example("a"), example("b" * 150, [("a dög", (4, 6, 20, 16))]), example("c", size=(32, 64))]
    write_dataset(tmp_path, [pictures])
    index = index_of(tmp_path, "fastcomposer-000000.json")
    tar = (tmp_path / "fastcomposer-000000.tar").read_bytes()
    assert index["path"] == "fastcomposer-000000.tar"
    assert index["filesize"] == len(tar)
    assert list(index["files"]) == [f"{p.key}.{name}" for p in pictures for name in ("jpg", "json")]
    for picture in pictures:
        entry = index["files"][f"{picture.key}.jpg"]
        assert tar[entry["offset"] : entry["offset"] + entry["length"]] == picture.image
        described = tar[entry["json_offset"] : entry["json_offset"] + entry["json_length"]]
        assert json.loads(described)["key"] == picture.key
        assert index["files"][entry["json_path"]] == {"offset": entry["json_offset"], "length": entry["json_length"]}
        assert (entry["width"], entry["height"], entry["captions"]) == (picture.width, picture.height, picture.caption)
    assert index["files"]["c.jpg"]["aspect"] == 0.5


def test_a_json_that_no_picture_shares_its_stem_with_is_no_sample_of_its_own(tmp_path: Path) -> None:
    write_dataset(tmp_path, [[on_another_background("k")]], sample_format=blip_diffusion.FORMAT)
    index = index_of(tmp_path, "blip-diffusion-000000.json")
    assert sorted(index["files"]) == ["k.alpha.png", "k.input.jpg", "k.target.jpg", "k.trimap.png"]
    row = read_table(str(tmp_path), "index.parquet").to_pylist()[0]
    tar = (tmp_path / "blip-diffusion-000000.tar").read_bytes()
    members = read_sample(tar[row["offset"] : row["offset"] + row["size"]]).members
    for name, entry in index["files"].items():
        assert tar[entry["offset"] : entry["offset"] + entry["length"]] == members[name.partition(".")[2]]
        assert tar[entry["json_offset"] : entry["json_offset"] + entry["json_length"]] == members["json"]


def test_a_shard_that_is_made_again_without_samples_loses_its_index(tmp_path: Path) -> None:
    write_dataset(tmp_path, [[example("a")], [example("b")]])
    write_dataset(tmp_path, [[], [example("b")]], overwrite=True)
    assert [path.name for path in sorted(tmp_path.glob("*-*.json"))] == ["fastcomposer-000001.json"]


def test_hugging_face_still_takes_the_folder_for_its_tars(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    write_dataset(tmp_path / "data", [[example("a")], [example("b")], [example("c")]])
    loaded = datasets.load_dataset(str(tmp_path / "data"), split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(loaded["__key__"]) == ["a", "b", "c"]
