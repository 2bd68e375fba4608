import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO

from jobs.exports.coco import export_coco
from jobs.exports.fastcomposer import (
    KEPT_SHARE,
    Exported,
    Region,
    export_fastcomposer,
    square_window,
    visible,
)
from jobs.exports.folder import new_folder
from schemas.errors import InputError
from schemas.example import Example, Segment
from schemas.masks import Mask, label_map
from schemas.samples.fastcomposer import Record
from tests.datasets import JOB, box_mask, example, write_dataset
from transforms.dataset import prepare_output

LANDSCAPE = example("wide", [("a dog", (70, 10, 20, 20)), ("a cat", (4, 4, 10, 10))], size=(96, 48))
PORTRAIT = example("tall", [("a dog", (5, 60, 20, 20)), ("a cat", (30, 80, 10, 12))], size=(48, 96))
SQUARE = example("even", [("a dog", (5, 5, 20, 20))], size=(48, 48))


def regions_of(picture: Example) -> list[Region]:
    return [Region(s, s.segmentation.to_mask().to_array()) for s in Record.from_example(picture).subjects]


def published_loader(root: Path, split: str, side: int = 64) -> Iterator[dict[str, Any]]:
    """Load a folder as FastComposer's loader does, but without flip and augmentation, and with black for noise."""
    for image_id in (root / f"image_ids_{split}.txt").read_text().splitlines():
        path = root / image_id[:5] / image_id
        image = Image.open(path.with_suffix(".jpg"))
        pixels = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        info = json.loads(path.with_suffix(".json").read_text())
        segmap = np.load(path.with_suffix(".npy"))
        assert segmap.dtype == np.uint8
        assert segmap.shape == pixels.shape[1:]
        width, height = image.size
        scale = side / min(width, height)
        size = (round(width * scale), round(height * scale))
        small = np.asarray(Image.fromarray(segmap).resize(size, Image.Resampling.NEAREST))
        assert size[0] >= size[1], "a portrait picture takes the branch that mixes ids"
        left = (size[0] - size[1]) // 2
        target = small[:, left : left + size[1]]
        references = {}
        for segment in info["segments"]:
            h1, w1, h2, w2 = segment["bbox"]  # the loader's names
            masked = np.where(segmap == segment["id"], pixels, 0)
            references[segment["word"]] = masked[:, w1:w2, h1:h2]
        yield {
            "id": int(image_id),
            "caption": info["caption"],
            "segments": info["segments"],
            "target": target,
            "references": references,
        }


def test_the_published_loader_sees_each_subject_whole_and_nothing_else(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", [[LANDSCAPE, SQUARE]])
    exported = export_fastcomposer(str(tmp_path / "data"), tmp_path / "out", held_out=0)
    assert exported == Exported(written=2, held_out=0, without_subject=0, dropped={})
    even, wide = published_loader(tmp_path / "out", "train")
    assert [even["id"], wide["id"]] == [0, 1]
    assert wide["caption"] == "a dog and a cat"
    pixels = LANDSCAPE.pixels().transpose(2, 0, 1)
    np.testing.assert_array_equal(wide["references"]["a dog"], pixels[:, 10:30, 70:90])
    np.testing.assert_array_equal(wide["references"]["a cat"], pixels[:, 4:14, 4:14])
    assert [(s["id"], s["bbox"], s["start"], s["end"], s["word"], s["coco_label"]) for s in wide["segments"]] == [
        (1, [70, 10, 90, 30], 0, 5, "a dog", "dog"),
        (2, [4, 4, 14, 14], 10, 15, "a cat", "cat"),
    ]


def test_without_square_the_loaders_crop_loses_a_subject_and_with_it_none_that_is_kept(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", [[LANDSCAPE, PORTRAIT]])
    export_fastcomposer(str(tmp_path / "data"), tmp_path / "plain", held_out=0)
    exported = export_fastcomposer(str(tmp_path / "data"), tmp_path / "square", square=True, held_out=0)
    assert exported.dropped == {"outside the square": 1}
    with pytest.raises(AssertionError, match="portrait"):
        list(published_loader(tmp_path / "plain", "train"))
    # The cat of the landscape picture ends at x 14; the loader keeps 24 to 72.
    (tmp_path / "plain" / "image_ids_train.txt").write_text("000000001\n")
    (plain,) = published_loader(tmp_path / "plain", "train")
    assert 2 not in plain["target"]
    tall, wide = published_loader(tmp_path / "square", "train")
    assert [s["word"] for s in tall["segments"]] == ["a dog", "a cat"]
    assert [s["word"] for s in wide["segments"]] == ["a dog"]
    for loaded, size in ((tall, [400, 120]), (wide, [400])):
        # 48 pixels become 64 on each side.
        areas = [int((loaded["target"] == segment["id"]).sum()) for segment in loaded["segments"]]
        np.testing.assert_allclose(areas, np.array(size) * (64 / 48) ** 2, rtol=0.1)


def test_square_pictures_show_the_same_pixels_and_the_square_ones_keep_their_bytes(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", [[LANDSCAPE, SQUARE]])
    export_fastcomposer(str(tmp_path / "data"), tmp_path / "out", square=True, held_out=0)
    assert (tmp_path / "out" / "00000" / "000000000.jpg").read_bytes() == SQUARE.image
    cut = np.asarray(Image.open(tmp_path / "out" / "00000" / "000000001.jpg")).astype(int)
    (left,) = {70 + 20 - segment["bbox"][2] for segment in next(iter_json(tmp_path / "out", "000000001"))["segments"]}
    assert cut.shape == (48, 48, 3)
    assert np.abs(cut - LANDSCAPE.pixels()[:, left : left + 48]).mean() < 1.5


def iter_json(root: Path, *ids: str) -> Iterator[dict[str, Any]]:
    for image_id in ids:
        yield json.loads((root / image_id[:5] / f"{image_id}.json").read_text())


def test_a_picture_whose_subjects_all_fall_outside_is_left_out_and_counted(tmp_path: Path) -> None:
    train = example("train", [("a long train", (0, 10, 96, 20))], size=(96, 48))
    write_dataset(tmp_path / "data", [[train, SQUARE]])
    exported = export_fastcomposer(str(tmp_path / "data"), tmp_path / "out", square=True, held_out=0)
    assert exported == Exported(written=1, held_out=0, without_subject=1, dropped={"outside the square": 1})
    assert (tmp_path / "out" / "image_ids.txt").read_text() == "000000000\n"


@given(
    hnp.arrays(bool, st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 12))).filter(
        lambda masks: bool(masks.any((1, 2)).all())
    )
)
def test_the_square_keeps_as_many_subjects_as_any_place_does(masks: NDArray[np.bool_]) -> None:
    (rows, columns), kept = square_window(masks)
    height, width = masks.shape[1:]
    side = min(height, width)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (side, side)
    assert 0 <= rows.start <= height - side
    assert 0 <= columns.start <= width - side

    def shares(y: int, x: int) -> NDArray[np.float64]:
        window = masks[:, y : y + side, x : x + side]
        return np.asarray(window.sum((1, 2)) / masks.sum((1, 2)))

    places = [shares(y, x) for y in range(height - side + 1) for x in range(width - side + 1)]
    best = max(((s >= KEPT_SHARE).sum(), s.sum().round(9)) for s in places)
    chosen = shares(rows.start, columns.start)
    assert ((chosen >= KEPT_SHARE).sum(), chosen.sum().round(9)) == best
    np.testing.assert_array_equal(kept, chosen >= KEPT_SHARE)


def test_one_whole_subject_counts_more_than_two_that_are_cut() -> None:
    masks = np.zeros((3, 4, 12), bool)
    masks[0, 0, 0:5] = masks[1, 1, 0:5] = True  # a square of 4 keeps four fifths of each
    masks[2, 2, 10] = True
    (_, columns), kept = square_window(masks)
    assert columns.start <= 10 < columns.stop
    assert kept.tolist() == [False, False, True]


def test_if_all_places_are_equally_good_the_middle_is_taken() -> None:
    masks = np.zeros((1, 4, 11), bool)
    masks[0, 2, 5] = True
    assert square_window(masks)[0] == (slice(0, 4), slice(3, 7))


def test_where_subjects_overlap_the_smaller_is_in_front_and_boxes_follow_what_is_left() -> None:
    picture = example("a", [("a house", (0, 0, 40, 40)), ("a door", (30, 10, 10, 30))])
    dropped: Counter[str] = Counter()
    house, door = visible(regions_of(picture), dropped)
    labels = label_map([house.mask, door.mask])
    assert labels.dtype == np.uint8
    expected = np.zeros((48, 64), int)
    expected[0:40, 0:40] = 1
    expected[10:40, 30:40] = 2
    np.testing.assert_array_equal(labels, expected)
    assert (house.bbox, door.bbox) == ([0, 0, 40, 40], [30, 10, 40, 40])
    assert dropped.total() == 0


def test_a_subject_that_others_cover_is_left_out_and_counted() -> None:
    picture = example(
        "a", [("a wall", (0, 0, 20, 10)), ("a left half", (0, 0, 10, 10)), ("a right half", (10, 0, 10, 10))]
    )
    dropped: Counter[str] = Counter()
    shown = visible(regions_of(picture), dropped)
    assert [r.subject.text for r in shown] == ["a left half", "a right half"]
    assert +dropped == Counter({"covered by others": 1})


def test_of_two_phrases_with_the_same_end_the_better_match_stays() -> None:
    regions = regions_of(example("a", [("a dog", (0, 0, 5, 5)), ("a cat", (10, 0, 5, 5))]))
    same_end = [regions[0], dataclasses.replace(regions[1], subject=regions[1].subject.model_copy(update={"end": 5}))]
    dropped: Counter[str] = Counter()
    assert [r.subject.text for r in visible(same_end, dropped)] == ["a cat"]
    assert +dropped == Counter({"phrase ends with another's": 1})


def test_more_subjects_than_a_byte_can_number_are_left_out_and_counted() -> None:
    picture = example("a", [(f"a {i:03d}", (i % 64, i // 64, 1, 1)) for i in range(300)])
    dropped: Counter[str] = Counter()
    shown = visible(regions_of(picture), dropped)
    assert [r.subject.text for r in shown] == [f"a {i:03d}" for i in range(255)]
    assert label_map([r.mask for r in shown]).max() == 255
    assert +dropped == Counter({"beyond 255 in a picture": 45})


def test_a_label_with_an_underscore_gets_a_space_for_the_trainers_command_line(tmp_path: Path) -> None:
    segment = Segment("potted_plant", 0.9, Mask.from_array(box_mask(48, 48, (5, 5, 20, 20))))
    caption = example("ü", [("a Topfpflänzchen 🪴", (5, 5, 20, 20))], size=(48, 48))
    write_dataset(tmp_path / "data", [[dataclasses.replace(caption, key="a", segments=(segment,))]])
    export_fastcomposer(str(tmp_path / "data"), tmp_path / "out", held_out=0)
    text = (tmp_path / "out" / "00000" / "000000000.json").read_bytes()
    assert text.isascii(), "the loader reads it in the machine's encoding"
    assert json.loads(text)["segments"][0]["coco_label"] == "potted plant"
    assert json.loads(text)["segments"][0]["word"] == "a Topfpflänzchen 🪴"


def held_out_ids(root: Path) -> list[str]:
    return (root / "image_ids_test.txt").read_text().splitlines()


def test_a_tenth_is_held_out_by_the_seed_and_the_splits_share_nothing(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", [[example(f"k{i:02d}") for i in range(15)], [example(f"m{i}") for i in range(8)]])
    for name, seed, held_out in (("a", 0, None), ("b", 0, None), ("c", 1, None), ("d", 0, 7)):
        export_fastcomposer(str(tmp_path / "data"), tmp_path / name, seed=seed, held_out=held_out)
    assert len(held_out_ids(tmp_path / "a")) == 2
    assert held_out_ids(tmp_path / "a") == held_out_ids(tmp_path / "b") != held_out_ids(tmp_path / "c")
    assert len(held_out_ids(tmp_path / "d")) == 7
    listed = (tmp_path / "a" / "image_ids.txt").read_text().splitlines()
    train = (tmp_path / "a" / "image_ids_train.txt").read_text().splitlines()
    assert listed == [f"{i:09d}" for i in range(23)]
    assert sorted(train + held_out_ids(tmp_path / "a")) == listed


def test_a_folder_that_holds_something_is_refused_and_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", [[SQUARE]])
    (tmp_path / "out").mkdir()
    export_coco(str(tmp_path / "data"), tmp_path / "out")
    with pytest.raises(InputError, match=r"out exists already: name a new or an empty folder"):
        export_coco(str(tmp_path / "data"), tmp_path / "out")
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "broken") as folder:
        (folder / "nowhere" / "file").write_text("half")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]


def test_only_a_finished_dataset_of_the_recipe_is_exported(tmp_path: Path) -> None:
    prepare_output(str(tmp_path / "data"), JOB)
    with pytest.raises(InputError, match="is not finished"):
        export_coco(str(tmp_path / "data"), tmp_path / "out")
    write_dataset(tmp_path / "data", [[SQUARE]], overwrite=True)
    info = json.loads((tmp_path / "data" / "dataset.json").read_text())
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(info | {"recipe": "mip-adapter"}))
    with pytest.raises(InputError, match="holds a mip-adapter dataset: this format takes fastcomposer"):
        export_coco(str(tmp_path / "data"), tmp_path / "out")


def test_pycocotools_loads_the_coco_export_and_decodes_the_same_masks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path / "data", [[LANDSCAPE], [SQUARE, example("other", license="CC BY 4.0")]])
    exported = export_coco(str(tmp_path / "data"), tmp_path / "out")
    assert (exported.images, exported.annotations, exported.categories) == (3, 4, 2)
    coco = COCO(str(tmp_path / "out" / "annotations" / "instances.json"))
    captions = COCO(str(tmp_path / "out" / "annotations" / "captions.json"))
    capsys.readouterr()
    assert {c["name"] for c in coco.loadCats(coco.getCatIds())} == {"dog", "cat"}
    assert (sorted(coco.anns), sorted(coco.imgs)) == ([1, 2, 3, 4], [1, 2, 3]), "0 means no match to pycocotools"
    (wide,) = (image for image in coco.loadImgs(coco.getImgIds()) if image["file_name"] == "wide.jpg")
    assert (wide["width"], wide["height"], wide["source"]) == (96, 48, "pictures/wide.jpg")
    assert (tmp_path / "out" / "images" / "wide.jpg").read_bytes() == LANDSCAPE.image
    dog, cat = coco.loadAnns(coco.getAnnIds(imgIds=[wide["id"]]))
    assert (dog["bbox"], dog["area"], dog["text"], coco.cats[cat["category_id"]]["name"]) == (
        [70, 10, 20, 20], 400, "a dog", "cat",
    )  # fmt: skip
    np.testing.assert_array_equal(coco.annToMask(dog), box_mask(96, 48, (70, 10, 20, 20)))
    assert captions.imgToAnns[wide["id"]][0]["caption"] == "a dog and a cat"
    assert [license_["name"] for license_ in coco.dataset["licenses"]] == ["CC0", "CC BY 4.0"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["annotations", "images"]


def test_a_dataset_of_rejects_alone_exports_to_an_empty_coco(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path / "data", [[]])
    export_coco(str(tmp_path / "data"), tmp_path / "out")
    assert COCO(str(tmp_path / "out" / "annotations" / "instances.json")).getImgIds() == []
    capsys.readouterr()
