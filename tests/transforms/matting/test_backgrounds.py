import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import transforms.outages
from schemas.errors import InputError, OutageError, RecordError
from schemas.rejects import Reason
from tests.pictures import encode, scene, tar
from transforms.matting import backgrounds
from transforms.matting.backgrounds import PAINTED, Background, Backgrounds, cover, draw_background, list_backgrounds
from transforms.matting.composite import Composition, LayOnBackgrounds

GREY = encode(Image.new("RGB", (30, 20), (77, 77, 77)))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_pictures_of_folders_globs_and_tars_are_listed_by_name(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(GREY)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "a.tar").write_bytes(
        tar([("sky.jpg", encode(scene(), "JPEG")), ("sky.json", b"{}"), ("sea.png", GREY)])
    )
    listed = list_backgrounds(str(tmp_path))
    assert [file.name for file in listed.names] == ["a.tar/sky.jpg", "a.tar/sea.png", "b.png"]
    assert listed.names[1].read() == GREY == listed.names[2].read()
    assert [file.name for file in list_backgrounds(str(tmp_path / "*.png")).names] == ["b.png"]
    (tmp_path / "c.png").write_bytes(GREY)
    assert list_backgrounds(str(tmp_path)).fingerprint != listed.fingerprint


def test_without_a_source_there_is_no_set() -> None:
    assert list_backgrounds("") == Backgrounds((), "")


def test_in_a_tar_only_files_with_a_picture_s_ending_are_listed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        folder = tarfile.TarInfo("folder.png")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name in ("SKY.PNG", "sky.txt"):
            info = tarfile.TarInfo(name)
            info.size = len(GREY)
            archive.addfile(info, io.BytesIO(GREY))
    (sky,) = list_backgrounds(str(tmp_path)).names
    assert sky.name == "a.tar/SKY.PNG"
    assert sky.read() == GREY


def tar_of(path: Path, names: list[str], mode: str = "w") -> None:
    """A tar in which each file holds its name, padded so that no two lie at one offset."""
    path.write_bytes(tar([(name, name.encode() + b"\0" * 700) for name in names], mode))


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.TGZ", "w:gz")])
def test_hidden_members_mattes_and_masks_of_a_tar_are_no_backgrounds(tmp_path: Path, name: str, mode: str) -> None:
    """macOS writes ._0.jpg beside 0.jpg, WebDataset tars hold the maps of a picture beside it."""
    others = ["._0.jpg", "x/._1.jpg", ".cache/2.jpg", "0.alpha.png", "0.trimap.png", "0.mask.3.png", "0_mask.png"]
    others += ["1.SEG.png", "2-matte.jpg", "masks/0.png", "x/alpha/0.png", "0.depth.png"]
    good = ["./0.jpg", "0.input.jpg", "x/masked singer.jpg", "alphabet.png", "unmask.png", "seg/1.jpg"]
    tar_of(tmp_path / name, [*others, *good], mode)
    listed = list_backgrounds(str(tmp_path)).names
    assert [background.name for background in listed] == [f"{name}/{good_name}" for good_name in good]
    assert [background.read().rstrip(b"\0").decode() for background in listed] == good


def test_mattes_and_masks_of_a_folder_are_no_backgrounds(tmp_path: Path) -> None:
    for name in ("a.jpg", "a_mask.png", "a.alpha.png", "masks/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(GREY)
    assert [background.name for background in list_backgrounds(str(tmp_path)).names] == ["a.jpg"]


def test_a_compressed_tar_that_is_cut_off_is_named(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tgz", ["a.jpg", "b.jpg"], "w:gz")
    (tmp_path / "a.tgz").write_bytes((tmp_path / "a.tgz").read_bytes()[:-20])
    with pytest.raises(InputError, match=r"the backgrounds in .*a\.tgz cannot be read"):
        list_backgrounds(str(tmp_path))


def test_points_of_compressed_tars_are_bounded_for_all_of_them_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backgrounds, "SPACING", 100)
    for name in "ab":
        tar_of(tmp_path / f"{name}.tgz", [f"{i}.jpg" for i in range(9)], "w:gz")
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    for points, spacing in ((1000, 100), (2, total // 2)):
        monkeypatch.setattr(backgrounds, "POINTS", points)
        listed = list_backgrounds(str(tmp_path)).names
        assert {background.compressed.spacing for background in listed if background.compressed} == {spacing}
        assert len({id(background.compressed) for background in listed}) == 2  # pickled once for each tar
        assert [background.read().rstrip(b"\0").decode() for background in listed] == [f"{i}.jpg" for i in range(9)] * 2


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


def test_a_broken_background_is_passed_over_and_a_set_of_them_is_a_reject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    monkeypatch.setattr(transforms.outages, "FIRST_PAUSE", 0.0)
    # Not passed over: with another background, the sample would be another one when the folder is back.
    with pytest.raises(OutageError, match=r"^the background .*bad\.jpg: No such file or directory"):
        draw_background(names[:1], (8, 8), rng())


def test_workers_get_names_not_pixels(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i:02d}.png").write_bytes(encode(rng(i).integers(0, 255, (60, 60, 3), np.uint8)))
    listed = list_backgrounds(str(tmp_path))
    step = LayOnBackgrounds(listed, Composition(), 0)
    assert len(pickle.dumps(step)) < 40 * 300
    assert isinstance(listed.names[0], Background)
    assert step.stamp() == listed.fingerprint != ""
