import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.scenes import parse_objects, scene_of, write_scenes
from schemas.errors import InputError
from schemas.maps import decode_map, to_values
from schemas.masks import Mask
from transforms.scenes.relief import true_relief


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("scenes") / "out"
    assert list(write_scenes(output, count=6, seed=3, size=96)) == [1, 2, 3, 4, 5, 6]
    return output


def test_every_scene_has_picture_caption_truth_and_alphas(folder: Path) -> None:
    named = []
    for index in range(6):
        key = f"{index:06d}"
        truth = json.loads((folder / "truth" / f"{key}.json").read_text())
        assert (folder / "images" / f"{key}.txt").read_text() == truth["caption"]
        with Image.open(folder / "images" / f"{key}.jpg") as image:
            assert image.size == (96, 96)
        assert truth["objects"]
        for thing in truth["objects"]:
            named.append(thing["phrase"] is not None)
            alpha = np.asarray(Image.open(folder / "truth" / thing["alpha"]))
            assert alpha.shape == (96, 96)
            assert np.array_equal(Mask.from_json(thing["segmentation"]).to_array(), alpha >= 128)
            if thing["phrase"] is not None:
                assert truth["caption"][thing["start"] : thing["end"]] == thing["phrase"]
            else:
                assert thing["start"] is thing["end"] is None
    assert set(named) == {True, False}  # objects that a caption names, and objects that it leaves out


def test_the_files_hold_the_scene_of_the_same_number(folder: Path) -> None:
    scene = scene_of(seed=3, index=4, size=96)
    assert (folder / "images" / "000004.txt").read_text() == scene.caption
    stored = np.asarray(Image.open(folder / "images" / "000004.jpg")).astype(int)
    assert np.abs(stored - scene.image).mean() < 4


def test_there_are_backgrounds_too(folder: Path) -> None:
    assert len(list((folder / "backgrounds").glob("*.jpg"))) == 1


def test_a_folder_with_something_in_it_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"out is not empty: name a new folder"):
        next(write_scenes(folder, count=1, seed=0))


@pytest.mark.parametrize(("text", "objects"), [("1-3", (1, 3)), ("2", (2, 2)), ("1-5", (1, 5))])
def test_objects_as_the_command_takes_them(text: str, objects: tuple[int, int]) -> None:
    assert parse_objects(text) == objects


@pytest.mark.parametrize("text", ["0-3", "3-1", "1-6", "-3", "1-3-5", "many", ""])
def test_other_numbers_of_objects_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=f"--objects {text}: give the fewest and the most"):
        parse_objects(text)


def test_objects_reach_the_files(tmp_path: Path) -> None:
    list(write_scenes(tmp_path / "out", count=2, seed=0, size=64, objects=(3, 3)))
    for index in range(2):
        truth = json.loads((tmp_path / "out" / "truth" / f"{index:06d}.json").read_text())
        assert len(truth["objects"]) == 3


def test_exact_depth_and_normals_may_lie_beside_the_pictures_which_do_not_change(folder: Path, tmp_path: Path) -> None:
    list(write_scenes(tmp_path / "out", count=6, seed=3, size=96, maps=True))
    before = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    after = {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    added = after.keys() - before.keys()
    assert added == {f"{index:06d}.{kind}.png" for index in range(6) for kind in ("depth", "normal")}
    assert {name: after[name] for name in before} == before
    height, normals = true_relief(scene_of(3, 2, 96))
    depth = decode_map("depth", after["000002.depth.png"])
    assert depth / 65535 * 96 == pytest.approx(height, abs=0.01)
    stored = to_values("normal", decode_map("normal", after["000002.normal.png"]), (-1.0, 1.0))
    assert stored == pytest.approx(normals, abs=0.005)
