"""The folder for MIP-Adapter's published trainer, read by a reimplementation of its loader."""

import json
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from jobs.exports.mip_adapter import Exported, crop_window, export_mip_adapter, label_of, refusal, show_objects
from schemas.errors import InputError
from schemas.example import Example
from schemas.images import decode_image
from schemas.masks import BBox
from schemas.samples.mip_adapter import FORMAT, Record
from tests.datasets import box_mask, example, write_dataset
from tests.jobs.conftest import Run
from tests.objects import TWO, disc_mask, example_of_objects


class Refused(Exception):  # noqa: N818 - what the loader does, not an error
    """The loader would use a random other picture instead."""


def overlap(a: list[int], b: list[int]) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(wide, 0) * max(high, 0) / smaller


def choose_start(rng: np.random.Generator, low: int, high: int, length: int, side: int) -> int | None:
    """A random start of a window of `side` in `length` that holds [low, high); None if there is none."""
    starts = range(max(0, high - side), min(low, length - side) + 1)
    return int(rng.choice(starts)) if starts else None


def published_loader(root: Path, key: str, rng: np.random.Generator) -> dict[str, Any]:
    """Load a picture as MIP-Adapter's loader does, but without flip, resizing of references and tokens."""
    info = json.loads((root / "jsons" / f"{key}.json").read_text())
    pixels = np.asarray(Image.open(root / "images" / f"{key}.png").convert("RGB"))
    labels = np.asarray(Image.open(root / "masks" / f"{key}.png"))
    assert labels.dtype == np.uint8
    height, width = labels.shape
    assert [width, height] == info["original_size"]
    boxed = sorted((e for e in info["final_masks"] if "box" in e), key=lambda e: -e["logit"])
    kept: list[dict[str, Any]] = []
    for entry in boxed:
        x1, y1, x2, y2 = entry["box"]
        w, h = x2 - x1, y2 - y1
        inside = Counter(labels[y1:y2, x1:x2].ravel().tolist())
        (dominant, count), *_ = inside.most_common(1)
        if not (0.08 < w * h / (width * height) < 0.7 and 0.3 < w / h < 3 and entry["logit"] > 0.3):
            continue
        if " " in entry["label"] or entry["label"] not in info["text"]:
            continue
        if not (2 <= len(inside) <= 5 and count / (w * h) >= 0.6 and (labels == dominant).sum() <= w * h):
            continue
        if any(overlap(entry["box"], other["box"]) > 0.8 for other in kept):
            continue
        kept.append(entry | {"dominant": dominant})
    side = min(width, height)
    edges = np.array([e["box"] for e in boxed]).reshape(-1, 4)
    left = choose_start(rng, edges[:, 0].min(), edges[:, 2].max(), width, side) if len(edges) else None
    top = choose_start(rng, edges[:, 1].min(), edges[:, 3].max(), height, side) if len(edges) else None
    if left is None or top is None:
        left, top = (width - side) // 2, (height - side) // 2
    references = []
    for entry in kept:
        x1, x2 = (min(max(v - left, 0), side) for v in entry["box"][0::2])
        y1, y2 = (min(max(v - top, 0), side) for v in entry["box"][1::2])
        area = (x2 - x1) * (y2 - y1) * (512 / side) ** 2
        if area <= 200 or not 0.3 < (y2 - y1) / (x2 - x1) < 3:
            continue
        window = slice(top + y1, top + y2), slice(left + x1, left + x2)
        mask = labels[window] == entry["dominant"]
        cut = np.where(mask[..., None], pixels[window], 255)
        references.append({"name": entry["label"], "value": entry["value"], "mask": mask, "window": window, "cut": cut})
    references = references[:2]
    if len(references) != 2 or references[0]["name"] == references[1]["name"]:
        raise Refused(key)
    target = pixels[top : top + side, left : left + side]
    return {"text": info["text"], "target": target, "references": references, "entries": info["final_masks"]}


def keys_of(root: Path, name: str) -> list[str]:
    found: list[str] = json.loads((root / name).read_text())
    return found


def is_accepted(root: Path, key: str) -> bool:
    """Whether the loader accepts a picture and masks each reference with its own pixels, wherever its window lies."""
    outcomes = []
    for seed in range(3):
        try:
            loaded = published_loader(root, key, np.random.default_rng(seed))
        except Refused:
            outcomes.append(False)
            continue
        labels = np.asarray(Image.open(root / "masks" / f"{key}.png"))
        shown = [np.array_equal(r["mask"], labels[r["window"]] == r["value"]) for r in loaded["references"]]
        outcomes.append(all(shown))
    assert len(set(outcomes)) == 1, "the loader's draw decides"
    return outcomes[0]


def test_the_published_loader_reads_each_object_of_the_sample(tmp_path: Path) -> None:
    picture = example_of_objects("sa_1", scores=(0.7, 0.8))
    write_dataset(tmp_path / "data", [[picture]], sample_format=FORMAT)
    exported = export_mip_adapter(str(tmp_path / "data"), tmp_path / "out")
    assert exported == Exported(1, 1, 0, {}, {}, {})
    selected = pickle.loads((tmp_path / "out" / "selected_indexes.pkl").read_bytes())
    assert selected == keys_of(tmp_path / "out", "selected_indexes.json") == ["sa_1"]
    loaded = published_loader(tmp_path / "out", "sa_1", np.random.default_rng(0))
    assert loaded["text"] == "a red dog and a cat"
    assert loaded["target"].shape == (120, 120, 3)
    assert loaded["entries"] == [
        {"value": 0, "label": "background"},
        {"value": 1, "label": "dog", "logit": 0.7, "box": [20, 20, 80, 90]},
        {"value": 2, "label": "cat", "logit": 0.8, "box": [90, 30, 140, 90]},
    ]
    cat, dog = loaded["references"]  # the higher logit first
    assert (cat["name"], dog["name"]) == ("cat", "dog")
    pixels = picture.pixels()
    for reference, (_, (x, y, w, h)) in zip((dog, cat), TWO, strict=True):
        window = slice(y, y + h), slice(x, x + w)
        assert reference["window"] == window
        mask = disc_mask(160, 120, (x, y, w, h))[window]
        np.testing.assert_array_equal(reference["mask"], mask)
        np.testing.assert_array_equal(reference["cut"], np.where(mask[..., None], pixels[window], 255))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "images" / "sa_1.png")), pixels)


def random_example(rng: np.random.Generator, key: str) -> Example:
    """A picture of up to four objects of any size, place, score and cover, some with the same name."""
    size = (int(rng.integers(60, 160)), int(rng.integers(60, 120)))
    objects: list[tuple[str, BBox]] = []
    masks = []
    for _ in range(int(rng.integers(1, 5))):
        w, h = (int(rng.integers(side // 6, side * 2 // 3)) for side in size)
        box = (int(rng.integers(0, size[0] - w + 1)), int(rng.integers(0, size[1] - h + 1)), w, h)
        objects.append((f"a {rng.choice(['dog', 'cat', 'hat', 'sofa'])}", box))
        kind = rng.integers(8)
        mask = disc_mask(*size, box) if kind else box_mask(*size, box)
        masks.append(mask if kind < 7 else mask & (rng.random(size[::-1]) < 0.3))
    scores = rng.uniform(0.25, 1, len(objects)).round(4).tolist()
    return example_of_objects(key, objects, size, masks, scores)


def test_the_selected_pictures_are_those_that_the_loader_accepts_with_the_right_masks(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    pictures = [random_example(rng, f"k{number:03d}") for number in range(150)]
    write_dataset(tmp_path / "data", [pictures], sample_format=FORMAT)
    exported = export_mip_adapter(str(tmp_path / "data"), tmp_path / "out")
    keys = keys_of(tmp_path / "out", "indexes.json")
    selected = keys_of(tmp_path / "out", "selected_indexes.json")
    assert selected == [key for key in keys if is_accepted(tmp_path / "out", key)]
    assert (exported.written, exported.selected) == (len(keys), len(selected))
    assert exported.written == exported.selected + sum(exported.refused.values())
    assert len(selected) > 10
    assert len(exported.refused) >= 2, exported.refused
    assert len(exported.refused_objects) >= 7, exported.refused_objects


def judge(picture: Example) -> tuple[str, dict[str, int]]:
    refused: Counter[str] = Counter()
    shown, labels = show_objects(Record.from_example(picture), Counter())
    return refusal(shown, labels, refused), dict(+refused)


FEW = "with fewer than two objects that pass"
DOG, CAT = TWO
DISC = disc_mask(160, 120, DOG[1])
SPREAD = box_mask(160, 120, (85, 25, 60, 70)) & ~box_mask(160, 120, (90, 30, 5, 5))
GATES: dict[str, tuple[Example, str, str]] = {
    "small": (example_of_objects("k", [DOG, ("a cat", (90, 30, 38, 40))]), FEW, "too small or too large"),
    "large": (
        example_of_objects("k", [("a dog", (20, 0, 119, 114)), ("a cat", (20, 60, 50, 60))]),
        FEW, "too small or too large",
    ),
    "long": (example_of_objects("k", [DOG, ("a cat", (90, 10, 28, 100))]), FEW, "too long"),
    "unsure": (example_of_objects("k", [DOG, CAT], scores=(0.9, 0.3)), FEW, "too unsure"),
    "alone": (
        example_of_objects("k", [DOG, CAT], masks=[DISC, box_mask(160, 120, CAT[1])]),
        FEW, "alone in their boxes, or among too many",
    ),
    "thin": (
        example_of_objects("k", [DOG, CAT], masks=[DISC, box_mask(160, 120, (90, 30, 50, 30))]),
        FEW, "without anything that fills their boxes",
    ),
    "spread": (example_of_objects("k", [DOG, CAT], masks=[DISC, SPREAD]), FEW, "spread beyond their boxes"),
    "inside": (
        example_of_objects("k", [("a dog", (20, 10, 90, 100)), ("a hat", (45, 40, 40, 40))], scores=(0.9, 0.8)),
        FEW, "inside another's box",
    ),
    "cut": (
        example_of_objects("k", [("a dog", (70, 20, 50, 70)), ("a cat", (160, 20, 40, 50))], size=(200, 100)),
        FEW, "cut by the loader's square",
    ),
    "one name": (example_of_objects("k", [DOG, ("a blue dog", CAT[1])]), "with two objects of one name", ""),
    "another's pixels": (
        example_of_objects(
            "k", [DOG, CAT, ("a hat", (90, 30, 50, 40))], scores=(0.9, 0.9, 0.2),
            masks=[DISC, box_mask(160, 120, (90, 75, 50, 10)), box_mask(160, 120, (90, 30, 50, 40))],
        ),
        "whose reference would show something else", "too unsure",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", GATES)
def test_each_gate_refuses_its_case(case: str) -> None:
    picture, reason, reason_of_object = GATES[case]
    found, refused = judge(picture)
    assert found == reason
    assert refused == ({reason_of_object: 1} if reason_of_object else {})


def test_a_picture_that_passes_all_gates_is_taken() -> None:
    assert judge(example_of_objects("k")) == ("", {})


def test_the_two_of_highest_logit_are_used() -> None:
    three = [("a dog", (20, 10, 40, 50)), ("a blue dog", (20, 65, 40, 50)), ("a cat", (90, 30, 40, 50))]
    assert judge(example_of_objects("k", three, scores=(0.7, 0.8, 0.9)))[0] == ""
    assert judge(example_of_objects("k", three, scores=(0.9, 0.8, 0.7)))[0] == "with two objects of one name"


@pytest.mark.parametrize(
    ("box", "expected"),
    [((0, 0, 30, 40), (0, 0, 100, 100)), ((150, 0, 200, 90), (100, 0, 200, 100)), ((20, 0, 120, 9), (20, 0, 120, 100))],
)
def test_the_square_holds_the_boxes_where_it_can(
    box: tuple[int, int, int, int], expected: tuple[int, int, int, int]
) -> None:
    assert crop_window([box], (100, 200)) == expected


def test_a_square_too_small_for_the_boxes_lies_in_the_middle() -> None:
    assert crop_window([(0, 0, 30, 40), (120, 0, 140, 9)], (100, 201)) == (50, 0, 150, 100)
    assert crop_window([(0, 0, 30, 40), (0, 120, 9, 140)], (201, 100)) == (0, 50, 100, 150)


def map_of(picture: Example) -> tuple[list[str], NDArray[np.uint8], dict[str, int]]:
    dropped: Counter[str] = Counter()
    shown, labels = show_objects(Record.from_example(picture), dropped)
    assert [thing.value for thing in shown] == list(range(1, len(shown) + 1))
    return [thing.label for thing in shown], labels, dict(+dropped)


def test_where_masks_overlap_the_smaller_is_in_front_whatever_the_order() -> None:
    house, door = box_mask(60, 50, (0, 0, 40, 40)), box_mask(60, 50, (30, 10, 10, 30))
    pair = [("a door", (30, 10, 10, 30)), ("a house", (0, 0, 40, 40))]
    labels, drawn, dropped = map_of(example_of_objects("k", pair, (60, 50), [door, house]))
    assert (labels, dropped) == (["door", "house"], {})
    np.testing.assert_array_equal(drawn, np.where(door, 1, np.where(house, 2, 0)))


def test_an_object_that_others_cover_leaves_no_gap_in_the_numbers() -> None:
    wall, left, right = ((0, 0, 20, 10), (0, 0, 10, 10), (10, 0, 10, 10))
    names = ("a left", "a wall", "a right")
    objects = [*zip(names, (left, wall, right), strict=True)]
    masks = [box_mask(30, 20, box) for _, box in objects]
    labels, drawn, dropped = map_of(example_of_objects("k", objects, (30, 20), masks))
    assert (labels, dropped) == (["left", "right"], {"covered by others": 1})
    np.testing.assert_array_equal(drawn, box_mask(30, 20, left) * 1 + box_mask(30, 20, right) * 2)


def test_more_objects_than_a_byte_can_number_are_left_out_and_counted() -> None:
    many = [(f"a {i:03d}", (i % 64, i // 64, 1, 1)) for i in range(300)]
    masks = [box_mask(64, 48, box) for _, box in many]
    labels, drawn, dropped = map_of(example_of_objects("k", many, (64, 48), masks))
    assert labels == [f"{i:03d}" for i in range(255)]
    assert drawn.max() == 255
    assert dropped == {"beyond 255 in a picture": 45}


@pytest.mark.parametrize(
    ("text", "label"),
    [("a red dog", "dog"), ("the dog's", "dog's"), ('"a dog!"', "dog"), ("a T-shirt,", "T-shirt"), ("", ""), ("…", "")],
)
def test_a_label_is_the_last_word_without_punctuation(text: str, label: str) -> None:
    assert label_of(text, f"there is {text} here") == label


def test_an_object_that_no_word_of_the_caption_names_is_left_out_and_counted(tmp_path: Path) -> None:
    pictures = example_of_objects("k1"), example_of_objects("k2", TWO[:1])
    strange = [replace(p, phrases=(replace(p.phrases[0], text="a wolf"), *p.phrases[1:])) for p in pictures]
    assert label_of("a wolf", pictures[0].caption) == ""
    write_dataset(tmp_path / "data", [strange], sample_format=FORMAT)
    exported = export_mip_adapter(str(tmp_path / "data"), tmp_path / "out")
    assert (exported.written, exported.without_object) == (1, 1)
    assert exported.dropped == {"without a word of the caption": 2}
    assert sorted(path.name for path in (tmp_path / "out" / "images").iterdir()) == ["k1.png"]
    entries = json.loads((tmp_path / "out" / "jsons" / "k1.json").read_text())["final_masks"]
    assert [(entry["value"], entry["label"]) for entry in entries] == [(0, "background"), (1, "cat")]


def test_the_json_is_ascii_and_the_pickle_holds_nothing_but_strings(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", [[example_of_objects("k", [("ein Bär", DOG[1]), CAT])]], sample_format=FORMAT)
    export_mip_adapter(str(tmp_path / "data"), tmp_path / "out")
    text = (tmp_path / "out" / "jsons" / "k.json").read_bytes()
    assert text.isascii()
    assert json.loads(text)["final_masks"][1]["label"] == "Bär"

    class Plain(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> object:
            raise AssertionError(f"{module}.{name}")

    with (tmp_path / "out" / "selected_indexes.pkl").open("rb") as stream:
        assert Plain(stream).load() == ["k"]


def test_only_a_mip_adapter_dataset_is_exported(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", [[example("a")]])
    with pytest.raises(InputError, match="holds a fastcomposer dataset: this format takes mip-adapter datasets"):
        export_mip_adapter(str(tmp_path / "data"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_prints_what_the_loader_will_refuse(tmp_path: Path, run: Run) -> None:
    small, one_name = replace(GATES["small"][0], key="k2"), replace(GATES["one name"][0], key="k3")
    write_dataset(tmp_path / "data", [[example_of_objects("k1"), small, one_name]], sample_format=FORMAT)
    status, printed = run("export", tmp_path / "data", tmp_path / "out", "--format", "mip-adapter")
    assert status == 0
    assert "3 pictures in" in printed
    assert "1 of them in selected_indexes.pkl" in printed
    assert "0 pictures left without an object; no object left out" in printed
    assert (
        "its loader's gates: 1 object too small or too large; 1 picture with fewer than two objects that pass, "
        "1 picture with two objects of one name" in printed
    )


def test_the_pictures_are_not_encoded_with_loss(tmp_path: Path) -> None:
    picture = example_of_objects("k")
    write_dataset(tmp_path / "data", [[picture]], sample_format=FORMAT)
    export_mip_adapter(str(tmp_path / "data"), tmp_path / "out")
    stored = np.asarray(Image.open(tmp_path / "out" / "images" / "k.png"))
    np.testing.assert_array_equal(stored, decode_image(picture.image))
