import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from schemas.errors import InputError, RecordError
from schemas.rejects import Reason
from tests.pictures import encode, scene
from transforms.matting.backgrounds import PAINTED, Background, Backgrounds, cover, draw_background, list_backgrounds
from transforms.matting.composite import Composition, LayOnBackgrounds

GREY = encode(Image.new("RGB", (30, 20), (77, 77, 77)))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_pictures_of_folders_globs_and_tars_are_listed_by_name(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(GREY)
    (tmp_path / "notes.txt").write_text("no picture")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (("sky.jpg", encode(scene(), "JPEG")), ("sky.json", b"{}"), ("sea.png", GREY)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    listed = list_backgrounds(str(tmp_path))
    assert [one.name for one in listed.names] == ["a.tar/sky.jpg", "a.tar/sea.png", "b.png"]
    assert listed.names[1].read() == GREY == listed.names[2].read()
    assert [one.name for one in list_backgrounds(str(tmp_path / "*.png")).names] == ["b.png"]
    (tmp_path / "c.png").write_bytes(GREY)
    assert list_backgrounds(str(tmp_path)).fingerprint != listed.fingerprint


def test_without_a_source_there_is_no_set() -> None:
    assert list_backgrounds("") == Backgrounds((), "")


def test_in_a_tar_only_files_with_a_picture_s_ending_are_listed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        folder = tarfile.TarInfo("folder.png")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in ("SKY.PNG", "sky.txt"):
            info = tarfile.TarInfo(name)
            info.size = len(GREY)
            tar.addfile(info, io.BytesIO(GREY))
    (sky,) = list_backgrounds(str(tmp_path)).names
    assert sky.name == "a.tar/SKY.PNG"
    assert sky.read() == GREY


def test_a_set_may_hold_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    (tmp_path / "caf\udce9.png").write_bytes(GREY)
    (background,) = list_backgrounds(str(tmp_path)).names
    assert background.read() == GREY


def test_every_background_of_a_set_is_drawn(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(GREY)
    names = list_backgrounds(str(tmp_path)).names
    drawn = [draw_background(names, (8, 8), rng(seed))[0] for seed in range(30)]
    assert set(drawn) == {"a.png", "b.png", "c.png"}


def test_any_part_as_large_as_may_be_is_cropped_and_no_other() -> None:
    """Of 6 x 9 pixels a square of 6 is left; the colour tells the columns apart."""
    picture = np.zeros((6, 9, 3), np.uint8) + (20 * np.arange(9)[:, None]).astype(np.uint8)
    crops = {picture[:, x : x + 6].tobytes(): x for x in range(4)}
    across = [crops[cover(picture, (6, 6), rng(seed)).tobytes()] for seed in range(40)]
    down = [crops[cover(picture.swapaxes(0, 1), (6, 6), rng(seed)).swapaxes(0, 1).tobytes()] for seed in range(40)]
    assert set(across) == set(down) == {0, 1, 2, 3}
    rows = {row.tobytes(): y for y, row in enumerate(picture.swapaxes(0, 1))}
    assert {rows[cover(picture.swapaxes(0, 1), (1, 6), rng(seed)).tobytes()] for seed in range(80)} == set(range(9))
    columns = {column.tobytes(): x for x, column in enumerate(picture.swapaxes(0, 1))}
    assert {columns[cover(picture, (6, 1), rng(seed)).tobytes()] for seed in range(80)} == set(range(9))


@pytest.mark.parametrize("size", [(1, 90), (90, 1)])
def test_less_than_half_a_row_is_still_a_row(size: tuple[int, int]) -> None:
    assert (cover(np.full((30, 30, 3), 7, np.uint8), size, rng()) == np.full((*size, 3), 7)).all()


def test_what_holds_no_background_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(InputError, match=r"^/.*: no backgrounds: neither a picture nor a tar with pictures in it$"):
        list_backgrounds(str(tmp_path))
    (tmp_path / "cut.tar").write_bytes(b"x" * 700)
    with pytest.raises(InputError, match=r"the backgrounds in .*cut\.tar cannot be read"):
        list_backgrounds(str(tmp_path))
    with pytest.raises(InputError, match="there is no such file or folder"):
        list_backgrounds(str(tmp_path / "missing"))


def test_without_a_set_backgrounds_are_painted_each_by_its_own_random_numbers() -> None:
    name, first = draw_background((), (20, 30), rng())
    assert name == PAINTED == "painted"
    assert first.shape == (20, 30, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(draw_background((), (20, 30), rng())[1], first)
    assert (draw_background((), (20, 30), rng(1))[1] != first).any()


@pytest.mark.parametrize("size", [(20, 30), (30, 20), (7, 90), (90, 7), (64, 64), (1, 1)])
def test_a_background_covers_the_picture_without_being_distorted(size: tuple[int, int]) -> None:
    y, x = np.mgrid[:60, :80]
    ramp = np.stack([3 * x, 4 * y, 0 * x], axis=2).astype(np.uint8)  # a pixel's colour tells where it lay
    covered = cover(ramp, size, rng()).astype(float)
    assert covered.shape == (*size, 3)
    if min(size) < 7:
        return
    across = np.diff(covered[2:-2, 2:-2, 0], axis=1).mean() / 3
    down = np.diff(covered[2:-2, 2:-2, 1], axis=0).mean() / 4
    assert across == pytest.approx(down, rel=0.2)
    assert across == pytest.approx(min(60 / size[0], 80 / size[1]), rel=0.2)  # as large a part as may be


def test_a_broken_background_is_passed_over_and_a_set_of_them_is_a_reject(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no jpeg")
    (tmp_path / "good.png").write_bytes(GREY)
    names = list_backgrounds(str(tmp_path)).names
    drawn = [draw_background(names, (8, 8), rng(seed)) for seed in range(12)]
    assert {name for name, _ in drawn} == {"good.png"}
    assert all((picture == 77).all() for _, picture in drawn)
    with pytest.raises(RecordError) as caught:
        draw_background(names[:1], (8, 8), rng())
    assert caught.value.reason is Reason.NO_BACKGROUND
    assert caught.value.detail == (
        "none of 8 drawn backgrounds can be read, bad.jpg: undecodable-image: not a picture of a known format"
    )
    (tmp_path / "bad.jpg").unlink()
    with pytest.raises(RecordError, match=r"none of 8 drawn backgrounds can be read, bad\.jpg: .*bad\.jpg"):
        draw_background(names[:1], (8, 8), rng())


def test_workers_get_names_not_pixels(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i:02d}.png").write_bytes(encode(rng(i).integers(0, 255, (60, 60, 3), np.uint8)))
    listed = list_backgrounds(str(tmp_path))
    step = LayOnBackgrounds(listed, Composition(), 0)
    assert len(pickle.dumps(step)) < 40 * 300
    assert isinstance(listed.names[0], Background)
    assert step.stamp() == listed.fingerprint != ""
