"""Photographs are told from sample scenes by the sample segmenter."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs.likeness import PICTURES, first_pictures, look_like_scenes
from jobs.scenes import scene_of, write_scenes
from schemas.example import Example
from schemas.images import encode_jpeg, to_stored_jpeg
from tests.examples import make_example
from tests.paths import SHARED
from transforms.listing import list_source

PHOTOGRAPHS = SHARED / "real" / "tiny_coco" / "images"
GROUPS = 4
"""Groups of pictures that are judged, of each kind."""


def example(jpeg: bytes) -> Example:
    stored, pixels = to_stored_jpeg(jpeg)
    return replace(make_example(), image=stored, width=pixels.shape[1], height=pixels.shape[0])


def test_groups_of_scenes_look_like_scenes() -> None:
    for group in range(GROUPS):
        pictures = [
            scene_of(77, group * PICTURES + i, size).image for i, size in enumerate((256, 256, 256, 256, 320, 192))
        ]
        assert look_like_scenes([example(encode_jpeg(picture)) for picture in pictures]), group


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="needs shared/real/tiny_coco")
def test_groups_of_photographs_do_not() -> None:
    paths = sorted(PHOTOGRAPHS.glob("*.jpg"))
    for group in range(GROUPS):
        pictures = [example(path.read_bytes()) for path in paths[group * PICTURES : (group + 1) * PICTURES]]
        assert not look_like_scenes(pictures), group


def test_noise_does_not_and_nothing_is_no_photograph() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8)
    assert not look_like_scenes([example(encode_jpeg(noise))])
    assert look_like_scenes([])


def test_the_first_pictures_are_read_and_bad_ones_left_out(tmp_path: Path) -> None:
    list(write_scenes(tmp_path / "scenes", PICTURES + 2, seed=0))
    pictures = tmp_path / "scenes" / "images"
    (pictures / "000000.jpg").write_bytes(b"no picture")
    chunks = list_source(str(pictures), None, samples_per_shard=4, batch_size=2, limit=None).chunks
    assert [record.key for record in first_pictures(chunks)] == [f"{i:06d}" for i in range(1, PICTURES + 1)]
