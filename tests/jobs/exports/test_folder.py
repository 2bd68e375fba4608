"""What the export formats have in common: order of samples, folders, label maps, counts as text."""

from pathlib import Path

import numpy as np
import pytest

from jobs.exports.folder import counted, new_folder, read_samples
from schemas.errors import InputError
from schemas.masks import label_map
from tests.datasets import box_mask, example, write_dataset


def test_samples_come_in_the_order_of_shards_and_keys(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", [[example("m2"), example("m1")], [example("b"), example("a")], []])
    samples = list(read_samples(str(tmp_path / "data"), "fastcomposer"))
    assert [sample.key for sample in samples] == ["m1", "m2", "a", "b"]
    assert samples[0].members["jpg"] == example("m1").image


def test_a_folder_appears_when_all_is_written(tmp_path: Path) -> None:
    destination = tmp_path / "deep" / "out"
    with new_folder(destination) as folder:
        (folder / "file").write_text("x")
        assert not destination.exists()
        assert folder.parent == destination.parent  # the same disk, so that it can be renamed
    assert [path.name for path in destination.parent.iterdir()] == ["out"]
    assert (destination / "file").read_text() == "x"


def write_half(destination: Path) -> None:
    with new_folder(destination) as folder:
        (folder / "file").write_text("half")
        raise KeyboardInterrupt


def test_an_empty_folder_is_replaced_and_one_that_fails_stays_empty(tmp_path: Path) -> None:
    destination = tmp_path / "out"
    destination.mkdir()
    with pytest.raises(KeyboardInterrupt):
        write_half(destination)
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]
    with new_folder(destination) as folder:
        (folder / "file").write_text("x")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "file"]


def test_a_file_or_a_full_folder_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    for name in ("file", "full"):
        with pytest.raises(InputError, match=f"{name} exists already"), new_folder(tmp_path / name):
            pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "file", "full"]
    assert (tmp_path / "file").read_text() == "mine"


def test_in_a_label_map_the_smaller_mask_is_in_front() -> None:
    wall, door, knob = (box_mask(6, 4, box) for box in ((0, 0, 6, 4), (1, 1, 3, 3), (2, 2, 1, 1)))
    expected = [[2, 2, 2, 2, 2, 2], [2, 3, 3, 3, 2, 2], [2, 3, 1, 3, 2, 2], [2, 3, 3, 3, 2, 2]]
    labels = label_map([knob, wall, door])
    assert labels.dtype == np.uint8
    assert labels.tolist() == expected


def test_of_masks_of_one_size_the_later_is_in_front() -> None:
    left, right = box_mask(3, 1, (0, 0, 2, 1)), box_mask(3, 1, (1, 0, 2, 1))
    assert label_map([left, right]).tolist() == [[1, 2, 2]]
    assert label_map([right, left]).tolist() == [[2, 2, 1]]


def test_a_label_map_without_masks_is_empty() -> None:
    assert label_map([]).shape == (0, 0)
    assert label_map([np.zeros((2, 3), bool)]).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_counts_are_written_for_people() -> None:
    assert counted({}, "subject") == ""
    assert counted({"outside": 1, "covered by others": 3, "cut": 0}, "subject") == (
        "1 subject outside, 3 subjects covered by others, 0 subjects cut"
    )
