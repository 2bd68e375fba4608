import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from schemas.example import Example
from schemas.samples.fastcomposer import FORMAT, Record
from tests.training.batches import equal_batches
from tests.training.subjects import CONFIG, TOKENIZER, box_mask, example, pixels_of, raw_of, take, write_shards
from training.configs.fastcomposer import Config
from training.geometry import crop_height, decode, open_jpeg
from training.recipes.fastcomposer import choose, view
from training.references import cut_out, to_square
from training.shards import Batch, make_batch, to_floats
from training.tokenizer import locate


def view_of(record: Example, config: Config) -> Batch:
    return to_floats(make_batch([(0, raw_of(record))], view, TOKENIZER, config))


@pytest.mark.parametrize(
    ("height", "width"), [(60, 60), (60, 96), (96, 60), (64, 256), (33, 71), (520, 776), (776, 520)]
)
@pytest.mark.parametrize("mirrored", [False, True])
def test_picture_and_mask_get_the_same_geometry(height: int, width: int, mirrored: bool) -> None:
    """The colours of the picture encode coordinates: those inside the cropped mask are the original ones."""
    left, top, right, bottom = width * 3 // 8, height // 4, width * 5 // 8, height * 3 // 4
    mask = box_mask(height, width, (left, top, right - left, bottom - top))
    seeds = (seed for seed in range(99))
    for seed in seeds:
        config = CONFIG.model_copy(
            update={"resolution": 64, "seed": seed, "unconditional": 0.0, "subject_kept": 1.0, "batch": 1}
        )
        batch = view_of(example("key", [mask], spans=[(0, 10)]), config)
        picture = batch["pixel_values"][0].numpy()
        shown = batch["subject_segmentation"][0, 0].numpy() > 0
        inner = picture[0][:, 24:40].mean(0)
        if (inner[0] > inner[-1]) == mirrored:
            break
    else:
        pytest.fail("no seed mirrors" if mirrored else "each seed mirrors")
    column = (picture[0][shown] + 1) / 2 * (width - 1)
    row = (picture[1][shown] + 1) / 2 * (height - 1)
    slack = max(height / 64, width / 64) + 1
    assert left - slack <= column.min() <= left + slack
    assert right - 1 - slack <= column.max() <= right - 1 + slack
    assert top - slack <= row.min() <= top + slack
    assert bottom - 1 - slack <= row.max() <= bottom - 1 + slack


@pytest.mark.parametrize(("width", "height"), [(640, 480), (479, 643), (1021, 515)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_picture_decoded_at_a_reduced_size_is_aligned_with_the_full_size(
    width: int, height: int, mirrored: bool
) -> None:
    pixels = pixels_of(height, width)
    box = (width // 3, height // 5, width // 4, height // 3)
    jpeg = raw_of(example("key", [box_mask(height, width, box)], spans=[(0, 10)]))["jpg"]
    square = crop_height(width, height, 64, mirrored=mirrored)
    small = decode(open_jpeg(jpeg, width, height), square, [box], 24)
    assert small.width < width / 1.9
    assert np.abs(square.crop_picture(small).astype(int) - square.crop_picture(Image.fromarray(pixels))).max() <= 3
    mask = box_mask(height, width, box)
    shown = to_square(cut_out(np.asarray(small), mask, box, None), 24)
    whole = to_square(cut_out(pixels, mask, box, None), 24)
    assert (cut_out(np.asarray(small), np.ones_like(mask), (0, 0, width, height), None) == small).all()
    inner = np.abs(np.asarray(shown).astype(int) - np.asarray(whole))[
        6:18, 10:14, :2
    ]  # the pixels at its edge may be white
    assert inner.max() <= 12


def test_wide_pictures_are_cropped_and_tall_pictures_padded() -> None:
    whole = np.ones((40, 80), bool)
    wide = view_of(example("key", [whole], spans=[(0, 10)]), CONFIG.plain())
    red = (wide["pixel_values"][0, 0] + 1) * 127.5
    assert 60 < red.min() < 70  # the columns 20 to 59 of 80
    assert 185 < red.max() < 195
    tall = view_of(example("key", [whole.T], spans=[(0, 10)]), CONFIG.plain())
    picture, shown = tall["pixel_values"][0], tall["subject_segmentation"][0, 0]
    assert (picture[:, :, :8] == -1).all()
    assert (picture[:, :, 24:] == -1).all()
    assert (picture[2, :, 8:24] > -0.2).all()
    assert torch.equal(shown[0], (torch.arange(32) >= 8).float() * (torch.arange(32) < 24))


def test_adjacent_masks_do_not_overlap_in_tall_pictures() -> None:
    """The published loader blends the ids of masks where it pads."""
    left = box_mask(61, 37, (0, 0, 18, 61))
    batch = view_of(example("key", [left, ~left]), CONFIG.plain())
    first, second = batch["subject_segmentation"][0, :2]
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert (first * second).sum() == 0
    assert ((first + second) == (batch["pixel_values"][0, 2] > -0.9)).all()


def test_a_subject_outside_the_crop_is_dropped_with_its_reference() -> None:
    edge, middle = box_mask(40, 120, (0, 0, 30, 40)), box_mask(40, 120, (50, 5, 20, 20))
    batch = view_of(example("key", [edge, middle]), CONFIG.plain())
    assert batch["num_subjects"].tolist() == [1]
    assert batch["subject_mask"].tolist() == [[True, False, False, False]]
    cup = batch["subject_token_index"][0, 0]
    assert TOKENIZER.decode([batch["input_ids"][0, cup]]).strip() == "cup"
    assert batch["subject_token_mask"][0].nonzero().flatten().tolist() == [cup]
    assert batch["subject_segmentation"][0, 0].any()
    assert not batch["subject_segmentation"][0, 1:].any()
    assert not batch["subject_pixel_values"][0, 1:].any()


def test_a_reference_is_the_subject_with_noise_around() -> None:
    mask = box_mask(64, 64, (16, 16, 32, 32))
    mask[16:32, 16:32] = False
    batch = view_of(example("key", [mask], spans=[(0, 10)]), CONFIG.plain())
    reference = batch["subject_pixel_values"][0, 0]
    assert (reference[2, 9:, :] * 255 - 128).abs().max() < 3  # the subject's own blue
    noise = reference[:, :7, :7]
    assert noise.std() > 0.15
    columns = 16 + (torch.arange(9, 16) + 0.5) * 2 - 0.5  # columns of the picture at these columns of the reference
    assert torch.allclose(reference[0, 12, 9:], columns / 63, atol=0.02)


def test_augmented_references_differ_between_epochs() -> None:
    raw = raw_of(example("key", [box_mask(64, 64, (8, 8, 40, 40))], spans=[(0, 10)]))
    config = CONFIG.model_copy(update={"unconditional": 0.0, "subject_kept": 1.0})
    first, again, later = (to_floats(make_batch([(epoch, raw)], view, TOKENIZER, config)) for epoch in (0, 0, 1))
    assert equal_batches(first, again)
    assert not torch.equal(first["subject_pixel_values"], later["subject_pixel_values"])
    assert all(b["subject_pixel_values"].min() >= 0 and b["subject_pixel_values"].max() <= 1 for b in (first, later))


def record_of(caption: str, spans: Sequence[tuple[int, int]]) -> Record:
    mask = box_mask(8, 8, (0, 0, 8, 8))
    return Record.from_example(example("key", [mask] * len(spans), caption, spans))


@pytest.mark.parametrize(
    ("caption", "phrase", "nth", "token"),
    [
        ("a ball by a ball", "a ball", 1, 5),  # the second of two equal phrases
        ("a ball by a ball", "a ball", 0, 2),
        ("A Red  BALL", "A Red  BALL", 0, 3),  # two spaces, capitals
        ("🐴🐴 a red ball", "a red ball", 0, 11),  # a horse is four bytes
        ("naïve cafe\u0301, a cup", "a cup", 0, 14),
        ("(a ball)", "a ball", 0, 3),
        ("a ball.", "a ball", 0, 2),
    ],
)
def test_the_last_token_of_a_phrase_carries_its_subject(caption: str, phrase: str, nth: int, token: int) -> None:
    start = -1
    for _ in range(nth + 1):
        start = caption.index(phrase, start + 1)
    ids, (place,) = locate(caption, record_of(caption, [(start, start + len(phrase))]).subjects, TOKENIZER)
    assert len(ids) == 77
    assert place == token
    assert phrase.lower().endswith(TOKENIZER.decode([ids[token]]).strip())


def test_a_subject_beyond_77_tokens_is_dropped() -> None:
    caption = "a red ball " + "and " * 72 + "a blue cup"
    last = caption.index("a blue cup")
    subjects = record_of(caption, [(0, 10), (last, last + 10)]).subjects
    ids, places = locate(caption, subjects, TOKENIZER)
    assert places == [3, None]
    assert (len(ids), ids[-1]) == (77, TOKENIZER.eos_token_id)
    for ands, place in ((2, None), (3, 75)):  # the last of the 77 tokens is EOS
        shorter = caption.replace("and " * ands, "", 1)
        start = shorter.index("a blue cup")
        assert locate(shorter, record_of(shorter, [(start, start + 10)]).subjects, TOKENIZER)[1] == [place]


def test_of_two_subjects_that_end_on_the_same_token_the_first_is_kept() -> None:
    subjects = record_of("a red ball", [(0, 10), (2, 10)]).subjects
    assert locate("a red ball", subjects, TOKENIZER)[1] == [3, None]


def sample_choices(config: Config, count: int = 2000, subjects: int = 2) -> list[tuple[str, list[str]]]:
    spans = [(0, 10), (15, 25)] * (subjects // 2)
    record = record_of("a red ball and a blue cup", spans)
    results = [choose(record, config, np.random.default_rng([1, i])) for i in range(count)]
    return [(caption, [subject.label for subject in kept]) for caption, kept in results]


def test_captions_and_subjects_are_dropped_at_their_rates() -> None:
    results = sample_choices(Config(unconditional=0.1, text_only=0.2, subject_kept=0.9))
    assert np.mean([caption == "" for caption, _ in results]) == pytest.approx(0.1, abs=0.03)
    assert all(not kept for caption, kept in results if not caption)
    captioned = [kept for caption, kept in results if caption]
    none = 0.2 + 0.7 * 0.1**2
    assert np.mean([not kept for kept in captioned]) == pytest.approx(none / 0.9, abs=0.03)
    assert np.mean([len(kept) for kept in captioned]) == pytest.approx(0.7 * 1.8 / 0.9, abs=0.05)


def test_the_plain_view_drops_nothing() -> None:
    assert all(len(kept) == 2 for _, kept in sample_choices(Config().plain(), 50))


def test_surplus_subjects_are_dropped_at_random_and_the_order_is_kept() -> None:
    config = Config(unconditional=0.0, subject_kept=1.0, max_subjects=3)
    results = [kept for _, kept in sample_choices(config, 300, subjects=6)]
    assert {len(kept) for kept in results} == {3}
    assert {label for kept in results for label in kept} == {f"class{i}" for i in range(6)}


def test_subjects_of_other_classes_are_left_out() -> None:
    results = sample_choices(Config(labels=("class1",)).plain(), 5)
    assert {tuple(kept) for _, kept in results} == {("class1",)}


def test_the_batch_has_the_documented_tensors(tmp_path: Path) -> None:
    (batch,) = take(write_shards(tmp_path / "fc", [4, 1]), 1)
    expected = {
        "pixel_values": ((3, 3, 32, 32), torch.float32),
        "input_ids": ((3, 77), torch.int64),
        "subject_token_mask": ((3, 77), torch.bool),
        "subject_token_index": ((3, 4), torch.int64),
        "subject_mask": ((3, 4), torch.bool),
        "subject_pixel_values": ((3, 4, 3, 16, 16), torch.float32),
        "subject_segmentation": ((3, 4, 32, 32), torch.float32),
        "num_subjects": ((3,), torch.int64),
    }
    assert {n: (tuple(v.shape), v.dtype) for n, v in batch.items() if isinstance(v, torch.Tensor)} == expected
    assert -1 <= batch["pixel_values"].min() <= batch["pixel_values"].max() <= 1


def test_a_sample_that_cannot_be_read_is_reported_and_left_out_of_the_batch() -> None:
    mask = box_mask(40, 40, (4, 4, 20, 20))
    good, bad = (raw_of(example(key, [mask, ~mask])) for key in ("good", "bad"))
    bad["json"] = b'{"key": 3}'
    batch = make_batch([(0, good), (0, bad)], view, TOKENIZER, CONFIG.plain())
    assert batch["keys"] == ["good"]
    assert len(batch["pixel_values"].values) == 1
    assert [line.split(":")[0] for line in batch["skipped"]] == ["bad"]
    assert set(make_batch([(0, bad)], view, TOKENIZER, CONFIG)) == {"keys", "skipped"}


def without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda raw: raw.pop(name)


def with_picture(change: Callable[[bytes], bytes]) -> Callable[[dict[str, Any]], Any]:
    return lambda raw: raw.update(jpg=change(raw["jpg"]))


def with_record(**fields: object) -> Callable[[dict[str, Any]], Any]:
    return lambda raw: raw.update(json=json.dumps({**json.loads(raw["json"]), **fields}).encode())


def with_subject(**fields: object) -> Callable[[dict[str, Any]], Any]:
    def change(raw: dict[str, Any]) -> None:
        first, *others = json.loads(raw["json"])["subjects"]
        with_record(subjects=[{**first, **fields}, *others])(raw)

    return change


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (without("jpg"), "no JPEG"),
        (without("json"), "Invalid JSON"),
        (with_picture(lambda _: b""), "no JPEG"),
        (with_picture(lambda jpeg: jpeg[: len(jpeg) // 2]), "truncated"),
        (with_picture(lambda _: b"%!PS-Adobe-3.0 EPSF-3.0"), "no JPEG"),
        (with_picture(lambda _: huge_jpeg()), "huge"),
        (with_record(height=20), "40 x 40 pixels, its record says 40 x 20"),
        (with_record(width=0), "40 x 40 pixels, its record says 0 x 40"),
        (with_subject(start=3, end=13), "'a red ball' is not the text at 3 to 13 of the caption"),
        (with_subject(segmentation={"size": [20, 20], "counts": "P6"}), "mask of 'a red ball' has 20 x 20 pixels"),
        (with_subject(segmentation={"size": [40, 40], "counts": "aPT1"}), "Invalid RLE"),
        (with_subject(segmentation={"size": [40, 40], "counts": "0Pb1"}), "has 1600 pixels, its record says 400"),
        (with_subject(segmentation={"size": [40, 40], "counts": "\u00e9"}), "can't encode"),
        (with_subject(area=401), "has 400 pixels, its record says 401"),
    ],
)
def test_a_damaged_sample_is_reported(damage: Callable[[dict[str, Any]], Any], why: str) -> None:
    mask = box_mask(40, 40, (4, 4, 20, 20))
    bad = raw_of(example("bad", [mask, ~mask]))
    damage(bad)
    (line,) = make_batch([(0, bad)], view, TOKENIZER, CONFIG.plain())["skipped"]
    assert line.startswith("bad: ")
    assert why in line


def huge_jpeg() -> bytes:
    """A JPEG whose header states 60,000 x 60,000 pixels: more than Pillow opens."""
    stored = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stored, "JPEG")
    frame = stored.getvalue().index(b"\xff\xc0") + 5
    return stored.getvalue()[:frame] + (60_000).to_bytes(2, "big") * 2 + stored.getvalue()[frame + 4 :]


def test_a_wrong_box_changes_nothing() -> None:
    """The place of a subject is taken from its mask."""
    record = example("key", [box_mask(40, 40, (4, 4, 20, 20))], spans=[(0, 10)])
    raw = raw_of(record)
    with_subject(bbox=[500, 500, 0, 0])(raw)
    assert equal_batches(
        to_floats(make_batch([(0, raw)], view, TOKENIZER, CONFIG.plain())), view_of(record, CONFIG.plain())
    )


def test_written_members_are_what_the_loader_reads() -> None:
    sample, _ = FORMAT.pack(example("key", [np.ones((8, 8), bool)], spans=[(0, 10)]))
    assert set(sample.members) == {"jpg", "json"}
