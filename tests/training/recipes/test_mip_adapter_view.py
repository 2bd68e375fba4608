import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from schemas.example import Example
from schemas.samples.mip_adapter import FORMAT, Record
from schemas.shards import Sample, write_tar
from tests.training.batches import equal_batches
from tests.training.objects import TWO, example, raw_of, write_objects
from training.configs.mip_adapter import Config
from training.drops import draw
from training.recipes.mip_adapter import drop_table, highest_scores, name_tokens, texts, view
from training.shards import Batch, batches, find_shards, make_batch, read_texts, to_floats
from training.tokenizer import small_tokenizer

TOKENIZER = small_tokenizer(["a red ball and a cup", "teddy bear"])
TOKENIZERS = (TOKENIZER,)
CONFIG = Config(resolution=32, reference=16, batch=3, workers=0, seed=1)
BALL = ("a red ball", (4, 6, 20, 16))


def views(samples: list[tuple[int, dict[str, Any]]], config: Config = CONFIG) -> Batch:
    return to_floats(make_batch(samples, view, TOKENIZERS, config))


def view_of(record: Example, config: Config = CONFIG) -> Batch:
    return views([(0, raw_of(record))], config)


def plain_view(record: Example, **fields: int) -> Batch:
    return view_of(record, CONFIG.plain().model_copy(update=fields))


def take(data: Path, count: int, done: int = 0, config: Config = CONFIG, rank: int = 0, world: int = 1) -> list[Batch]:
    shards = find_shards(str(data), "mip-adapter")
    start = done * world * config.batch
    return list(itertools.islice(batches(shards, view, TOKENIZERS, config, start, rank, world), count))


def number(word: str) -> int:
    (token,) = TOKENIZER(word, add_special_tokens=False).input_ids
    return int(token)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_objects(tmp_path_factory.mktemp("data") / "mip", [4, 1, 5, 2])


def test_the_batch_has_the_documented_tensors(dataset: Path) -> None:
    (batch,) = take(dataset, 1)
    expected = {
        "pixel_values": ((3, 3, 32, 32), torch.float32),
        "input_ids": ((3, 77), torch.int64),
        "sizes": ((3, 6), torch.int64),
        "image_kept": ((3,), torch.bool),
        "object_mask": ((3, 2), torch.bool),
        "object_pixel_values": ((3, 2, 3, 16, 16), torch.float32),
        "object_input_ids": ((3, 2, 16), torch.int64),
        "object_token_mask": ((3, 2, 16), torch.bool),
        "object_segmentation": ((3, 2, 32, 32), torch.float32),
        "object_bbox": ((3, 2, 4), torch.float32),
    }
    assert {n: (tuple(v.shape), v.dtype) for n, v in batch.items() if isinstance(v, torch.Tensor)} == expected
    assert -1 <= batch["pixel_values"].min() < -0.9
    assert 0.9 < batch["object_pixel_values"].max() <= 1


def test_each_name_is_tokenized_alone_and_its_words_are_marked() -> None:
    ids, words = name_tokens(["ball", "teddy bear", ""], TOKENIZERS)
    start, end = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id
    assert ids[0, :3].tolist() == [start, number("ball"), end]
    assert ids[1, :4].tolist() == [start, number("teddy"), number("bear"), end]
    assert ids[2, :2].tolist() == [start, end]
    places = [[place for place, is_word in enumerate(row) if is_word] for row in words.tolist()]
    assert places == [[1], [1, 2], []]


def test_a_long_name_is_truncated_but_keeps_its_start_and_end_tokens() -> None:
    ids, words = name_tokens([" ".join(["ball"] * 40)], TOKENIZERS)
    assert ids[0].tolist() == [TOKENIZER.bos_token_id, *[number("ball")] * 14, TOKENIZER.eos_token_id]
    assert words[0].tolist() == [False, *[True] * 14, False]


def test_the_text_of_an_object_is_its_name() -> None:
    batch = plain_view(example("key"))
    assert batch["object_input_ids"][0, :, 1].tolist() == [number("ball"), number("cup")]
    assert batch["object_token_mask"][0].sum(1).tolist() == [1, 1]
    caption = TOKENIZER("a red ball and a cup", padding="max_length", max_length=77).input_ids
    assert batch["input_ids"][0].tolist() == caption


@pytest.mark.parametrize("count", [1, 2, 3])
def test_unused_object_slots_are_empty(count: int) -> None:
    three = [("a ball", (2, 2, 10, 10)), ("a cup", (14, 2, 10, 10)), ("a bear", (28, 2, 8, 10))][:count]
    batch = plain_view(example("key", three), max_objects=3)
    assert batch["object_mask"][0].tolist() == [True] * count + [False] * (3 - count)
    for name in ("object_segmentation", "object_bbox", "object_pixel_values", "object_token_mask"):
        held = batch[name][0].flatten(1).any(1)
        assert held.tolist() == batch["object_mask"][0].tolist(), name


def test_the_objects_with_the_highest_scores_are_kept_in_order() -> None:
    three = [("a ball", (2, 2, 10, 10)), ("a cup", (14, 2, 10, 10)), ("a bear", (28, 2, 8, 10))]
    record = Record.from_example(example("key", three, scores=[0.6, 0.5, 0.9]))
    assert [thing.name for thing in highest_scores(record.objects, 2)] == ["ball", "bear"]
    assert [thing.name for thing in highest_scores(record.objects, 1)] == ["bear"]
    assert [thing.name for thing in highest_scores(record.objects, 9)] == ["ball", "cup", "bear"]
    equal = Record.from_example(example("key", three))
    assert [thing.name for thing in highest_scores(equal.objects, 2)] == ["ball", "cup"]


def test_a_reference_shows_its_object_centred_on_a_white_square() -> None:
    """The mask has 18 x 9 pixels from (5, 7) on and fills 16 x 8 of the square; blue is 51 in the whole picture."""
    batch = plain_view(example("key", [("a ball", (4, 6, 20, 11))], blue=51))
    reference = (batch["object_pixel_values"][0, 0] * 255).round()
    assert (reference[:, :4] == 255).all()
    assert (reference[:, 12:] == 255).all()
    assert (reference[2, 4:12] - 51).abs().max() <= 2
    columns = reference[0, 4:12] / 255 * 59
    assert columns.mean(0)[[0, -1]].tolist() == pytest.approx([5 + 0.06, 22 - 0.06], abs=0.7)
    rows = reference[1, 4:12] / 255 * 39
    assert rows.mean(1)[[0, -1]].tolist() == pytest.approx([7, 15], abs=0.7)


def test_a_hole_of_a_mask_shows_the_picture() -> None:
    record = example("key", [("a ball", (4, 6, 22, 22))], blue=51)
    mask = record.objects[0].mask.to_array()
    mask[9:25, 7:23] = False
    ring = replace(record.objects[0], mask=type(record.objects[0].mask).from_array(mask))
    batch = plain_view(replace(record, objects=(ring,)), reference=20)
    blue = (batch["object_pixel_values"][0, 0, 2] * 255).round()
    assert (blue[1:-1, 1:-1] - 51).abs().max() <= 2
    assert batch["object_segmentation"][0, 0].sum() < 0.4 * (20 * 32 / 40) ** 2  # holes belong to no object


def test_two_tokenizers_give_two_sets_of_ids() -> None:
    other = small_tokenizer(["a red ball and a cup", "teddy bear"])
    other.add_special_tokens({"pad_token": "!"})
    batch = to_floats(make_batch([(0, raw_of(example("key")))], view, (TOKENIZER, other), CONFIG.plain()))
    caption = [t("a red ball and a cup", padding="max_length").input_ids for t in (TOKENIZER, other)]
    assert batch["input_ids"].tolist() == [caption[0] + caption[1]]
    assert batch["object_input_ids"].shape == (1, 2, 32)
    assert batch["object_input_ids"][0, 0, 16:].tolist() == other("ball", padding="max_length", max_length=16).input_ids
    assert batch["object_token_mask"].shape == (1, 2, 16)
    assert batch["object_token_mask"].sum() == 2


def test_sizes_state_the_original_picture_and_where_the_window_lies() -> None:
    """Windows of 40 pixels are shown in 32; the second one must start in row 18 to hold the box."""
    assert plain_view(example("key"))["sizes"].tolist() == [[40, 60, 0, 8, 32, 32]]
    tall = example("key", [("a ball", (4, 50, 20, 8))], (40, 60))
    assert plain_view(tall)["sizes"].tolist() == [[60, 40, 14, 0, 32, 32]]


def test_the_surroundings_of_an_irregular_mask_are_white() -> None:
    record = example("key", [("a ball", (4, 6, 22, 22))])
    mask = record.objects[0].mask.to_array()
    mask[7:17, 5:15] = False
    ring = replace(record.objects[0], mask=type(record.objects[0].mask).from_array(mask))
    batch = plain_view(replace(record, objects=(ring,)))
    reference = batch["object_pixel_values"][0, 0]
    assert (reference[:, :7, :7] == 1).all()
    assert (reference[2, 9:, 9:] < 0.6).all()


def test_each_reference_is_mirrored_independently_half_of_the_time() -> None:
    flips = []
    for epoch in range(60):
        batch = views([(epoch, raw_of(example("key")))])
        flips.append([bool(reference[0, 8, 4] > reference[0, 8, 11]) for reference in batch["object_pixel_values"][0]])
    shares = np.mean(flips, axis=0)
    assert (np.abs(shares - 0.5) < 0.2).all()
    assert {tuple(pair) for pair in flips} == set(itertools.product([True, False], repeat=2))


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (40, 40), (640, 480), (479, 643)])
def test_picture_mask_and_box_get_the_same_geometry(size: tuple[int, int]) -> None:
    """The colours of the picture encode coordinates: those inside the cropped mask and box are the original ones."""
    width, height = size
    box = (width // 4, height // 4, width // 4, height // 3)
    lefts = set()
    for epoch in range(12):
        batch = views([(epoch, raw_of(example("key", [("a ball", box)], size)))])
        picture = (batch["pixel_values"][0].numpy() + 1) / 2
        columns, rows = picture[0] * (width - 1), picture[1] * (height - 1)
        shown = batch["object_segmentation"][0, 0].numpy() > 0
        slack = min(width, height) / 32 + 1
        assert columns[shown].min() == pytest.approx(box[0] + 1, abs=slack)
        assert columns[shown].max() == pytest.approx(box[0] + box[2] - 2, abs=slack)
        assert rows[shown].min() == pytest.approx(box[1] + 1, abs=slack)
        assert rows[shown].max() == pytest.approx(box[1] + box[3] - 2, abs=slack)
        x, y, w, h = batch["object_bbox"][0, 0].tolist()
        places = np.argwhere(shown)
        inner = 32 / min(width, height)  # the mask leaves a border of one pixel
        assert [y, x] == pytest.approx((places.min(0) - inner).tolist(), abs=1)
        assert [y + h, x + w] == pytest.approx((places.max(0) + 1 + inner).tolist(), abs=1)
        assert columns[0, 0] < columns[0, -1]  # never mirrored
        lefts.add(round(float(columns.min())))
        assert batch["sizes"][0].tolist() == pytest.approx(
            [height, width, rows.min() * 32 / min(size), columns.min() * 32 / min(size), 32, 32], abs=2
        )
    assert (len(lefts) > 3) == (width > height)


def test_an_object_outside_the_window_is_left_out() -> None:
    """In 120 x 20 pixels with an object at each end no window of 20 holds both, and the central one holds neither."""
    wide = example("key", [("a ball", (0, 2, 12, 12)), ("a cup", (104, 2, 12, 12))], (120, 20))
    batch = plain_view(wide)
    assert not batch["object_mask"].any()
    assert not batch["object_token_mask"].any()
    near = example("key", [("a ball", (0, 2, 12, 12)), ("a cup", (52, 2, 12, 12))], (120, 20))
    batch = plain_view(near)
    assert batch["object_mask"][0].tolist() == [True, False]
    assert batch["object_input_ids"][0, 0, 1] == number("cup")


def test_a_box_outside_the_picture_does_not_damage_the_sample() -> None:
    raw = raw_of(example("key", [BALL]))
    in_object(bbox=(900, -50, 20, 16))(raw)
    for config in (CONFIG, CONFIG.plain()):
        batch = views([(0, raw)], config)
        assert batch["keys"] == ["key"]
        assert not batch["object_bbox"][..., 2].any()


def sample_drops(config: Config, count: int = 4000) -> list[tuple[str, bool]]:
    table = drop_table(config)
    dropped = [draw(table, "sample", np.random.default_rng([1, i])) for i in range(count)]
    return [("" if "caption" in names else "a ball", "references" not in names) for names in dropped]


def test_pictures_and_texts_are_dropped_at_their_rates() -> None:
    config = Config(image_dropped=0.1, text_dropped=0.2, both_dropped=0.3)
    results = sample_drops(config)
    shares = {kind: results.count(kind) / len(results) for kind in set(results)}
    expected = {("a ball", False): 0.1, ("", True): 0.2, ("", False): 0.3, ("a ball", True): 0.4}
    assert shares == pytest.approx(expected, abs=0.03)
    published = sample_drops(Config())
    assert np.mean([caption == "" for caption, _ in published]) == pytest.approx(0.1, abs=0.02)
    assert np.mean([not kept for _, kept in published]) == pytest.approx(0.1, abs=0.02)


def test_dropped_conditions_are_missing_from_the_batch() -> None:
    empty = TOKENIZER("", padding="max_length", max_length=77).input_ids
    dropped = CONFIG.model_copy(update={"image_dropped": 0.0, "text_dropped": 0.0, "both_dropped": 1.0})
    batch = view_of(example("key"), dropped)
    assert batch["input_ids"][0].tolist() == empty
    assert batch["image_kept"].tolist() == [False]
    assert batch["object_mask"].all()
    batch = view_of(example("key"), dropped.plain())
    assert batch["input_ids"][0].tolist() != empty
    assert batch["image_kept"].tolist() == [True]


def test_the_plain_view_does_not_depend_on_the_epoch() -> None:
    raw = raw_of(example("key"))
    first, *others = (views([(epoch, raw)], CONFIG.plain()) for epoch in range(5))
    assert all(equal_batches(first, other) for other in others)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumed_within_an_epoch_gets_the_same_batches(dataset: Path, workers: int) -> None:
    config = CONFIG.model_copy(update={"workers": workers, "text_dropped": 0.3})
    whole = take(dataset, 9, config=config)
    for done in range(9) if workers == 0 else (5,):
        assert all(
            equal_batches(a, b) for a, b in zip(whole[done:], take(dataset, 9 - done, done, config), strict=True)
        )


def test_processes_read_different_samples(dataset: Path) -> None:
    config = CONFIG.model_copy(update={"batch": 1})
    firsts = [take(dataset, 3, config=config, rank=rank, world=2) for rank in range(2)]
    keys = [{batch["keys"][0] for batch in taken} for taken in firsts]
    assert not keys[0] & keys[1]


def in_object(**fields: object) -> Callable[[dict[str, Any]], Any]:
    def damage(raw: dict[str, Any]) -> None:
        record = json.loads(raw["json"])
        record["objects"][0].update(fields)
        raw["json"] = json.dumps(record).encode()

    return damage


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda raw: raw.pop("jpg"), "no JPEG"),
        (lambda raw: raw.pop("json"), "Invalid JSON"),
        (lambda raw: raw.update(jpg=raw["jpg"][: len(raw["jpg"]) // 2]), "truncated"),
        (in_object(text="a cat"), "'a cat' is not the text at 0 to 10 of the caption"),
        (in_object(area=3), "a mask has 252 pixels, its record says 3"),
        (
            in_object(segmentation={"size": [20, 60], "counts": "0"}),
            "the mask of 'a red ball' has 60 x 20 pixels, the picture 60 x 40",
        ),
        (in_object(name=3), "name"),
    ],
)
def test_a_damaged_sample_is_reported_and_left_out_of_the_batch(
    damage: Callable[[dict[str, Any]], Any], why: str
) -> None:
    good, bad = raw_of(example("good")), raw_of(example("bad"))
    damage(bad)
    batch = views([(0, good), (0, bad)])
    (line,) = batch["skipped"]
    assert line.startswith("bad: ")
    assert why in line
    assert batch["keys"] == ["good"]


def test_captions_and_names_are_read_and_damaged_records_skipped(tmp_path: Path) -> None:
    samples = [FORMAT.pack(example(f"key{i}", [BALL] if i else TWO))[0] for i in range(4)]
    samples[1] = Sample("key1", {**samples[1].members, "json": b"{"})
    with (tmp_path / "mip-adapter-000000.tar").open("wb") as tar:
        write_tar(tar, samples)
    found = read_texts(find_shards(str(tmp_path), "mip-adapter"), texts, limit=3)
    assert found == ["a red ball and a cup", "ball", "cup", "a red ball", "ball"]
