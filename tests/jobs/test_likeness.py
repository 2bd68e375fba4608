"""Photographs are told from sample scenes by the sample segmenter."""

import os
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from PIL import Image

from jobs.likeness import PICTURES, is_rich, look_like_photographs, read_pictures
from jobs.scenes import scene_of
from tests.jobs.conftest import Run
from tests.paths import SHARED
from transforms.listing import list_source

PHOTOGRAPHS = SHARED / "real" / "tiny_coco" / "images"
GROUPS = 4
"""Groups of pictures that are judged, of each kind."""


def test_groups_of_scenes_do_not_look_like_photographs() -> None:
    for group in range(GROUPS):
        sizes = (256, 256, 256, 256, 320, 192)
        pictures = [np.array(scene_of(77, group * PICTURES + i, size).image) for i, size in enumerate(sizes)]
        assert not look_like_photographs(pictures), group


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="needs shared/real/tiny_coco")
def test_groups_of_photographs_do() -> None:
    paths = sorted(PHOTOGRAPHS.glob("*.jpg"))
    for group in range(GROUPS):
        chosen = paths[group * PICTURES : (group + 1) * PICTURES]
        assert look_like_photographs([np.array(Image.open(path).convert("RGB")) for path in chosen]), group


def test_nothing_is_said_of_drawings_and_small_pictures() -> None:
    flat = np.full((256, 256, 3), 90, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8)
    assert [is_rich(picture) for picture in (flat, noise, noise[:95], noise[:100, :100] // 64)] == [
        False, True, False, False,
    ]  # fmt: skip
    assert not look_like_photographs([flat])
    assert not look_like_photographs([])


class Deadly:
    """An item whose reading kills the process."""

    stamp = ""

    def read(self) -> NoReturn:
        os._exit(9)


def test_pictures_are_read_in_a_child_and_bad_ones_left_out(tmp_path: Path) -> None:
    for i in range(PICTURES + 2):
        Image.new("RGB", (10 + i, 8)).save(tmp_path / f"{i}.jpg")
        (tmp_path / f"{i}.txt").write_text("a dog")
    (tmp_path / "1.jpg").write_bytes(b"no picture")
    (chunk,) = list_source(str(tmp_path)).chunks
    assert [picture.shape[1] for picture in read_pictures(chunk)] == [10, 12, 13, 14, 15, 16]
    object.__setattr__(chunk, "items", (Deadly(),))
    assert read_pictures(chunk) == []


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="needs shared/real/tiny_coco")
def test_a_build_of_photographs_is_refused_unless_the_preset_is_written_out(tmp_path: Path, run: Run) -> None:
    for path in sorted(PHOTOGRAPHS.glob("*.jpg"))[:PICTURES]:
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / path.name).write_bytes(path.read_bytes())
        (tmp_path / "in" / path.name).with_suffix(".txt").write_text("a person")
    command = ("build", "fastcomposer", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"))
    code, error = run(*command)
    assert code == 1
    assert "look like photographs" in error
    assert not list((tmp_path / "out").glob("*"))
    assert "look like photographs" not in run(*command, "--preset", "sample")[1]
