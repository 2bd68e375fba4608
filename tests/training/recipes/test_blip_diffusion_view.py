import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from schemas.errors import InputError
from schemas.example import Example, Placement
from schemas.samples.blip_diffusion import FORMAT, PlacementField
from schemas.shards import Sample, write_tar
from tests.training.batches import equal_batches
from tests.training.pairs import PROMPTS, pair, raw_of, write_pairs
from training.configs.blip_diffusion import Config
from training.drops import draw
from training.geometry import window_of
from training.recipes.blip_diffusion.view import (
    Tokenizers,
    drop_table,
    fill_template,
    placed,
    released_text,
    texts,
    view,
)
from training.shards import Batch, batches, batches_once, find_shards, make_batch, read_texts, to_floats
from training.tokenizer import small_tokenizer

TOKENIZER = small_tokenizer(PROMPTS)
TOKENIZERS = Tokenizers(TOKENIZER, TOKENIZER)
CONFIG = Config(resolution=32, reference=16, batch=3, workers=0, seed=1)


def view_of(record: Example, config: Config = CONFIG) -> Batch:
    return to_floats(make_batch([(0, raw_of(record))], view, TOKENIZERS, config.plain()))


def take(data: Path, count: int, done: int = 0, config: Config = CONFIG, rank: int = 0, world: int = 1) -> list[Batch]:
    shards = find_shards(str(data), "blip-diffusion")
    start = done * world * config.batch
    return list(itertools.islice(batches(shards, view, TOKENIZERS, config, start, rank, world), count))


def number(word: str) -> int:
    (token,) = TOKENIZER(word, add_special_tokens=False).input_ids
    return int(token)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "blip", [4, 1, 5, 2])


def test_the_template_by_hand() -> None:
    """The text is BOS, 5 words, ", the ball is", 16 prompt tokens, EOS and padding."""
    ids, mask = fill_template("a red ball on grass", "ball", TOKENIZER)
    words = [number(word) for word in ("a", "red", "ball", "on", "grass", ",", "the", "ball", "is")]
    assert ids[:10] == [TOKENIZER.bos_token_id, *words]
    assert [place for place, inside in enumerate(mask) if inside] == list(range(10, 26))
    assert ids[26] == TOKENIZER.eos_token_id
    assert len(ids) == len(mask) == 77
    assert ids[27:] == [TOKENIZER.pad_token_id] * 50


def test_without_a_subject_the_text_is_the_caption() -> None:
    for caption in ("a red ball on grass.", ""):
        ids, mask = fill_template(caption, None, TOKENIZER)
        assert ids == TOKENIZER(caption, padding="max_length", max_length=77).input_ids
        assert not any(mask)


def test_the_full_stop_of_a_caption_is_removed_before_the_comma() -> None:
    assert fill_template("a red ball on grass. ", "ball", TOKENIZER) == fill_template(
        "a red ball on grass", "ball", TOKENIZER
    )


@pytest.mark.parametrize("words", [54, 55, 56, 90])
def test_a_long_caption_is_truncated_but_never_its_subject(words: int) -> None:
    """77 tokens less BOS and EOS, 4 of the suffix and 16 of the prompt leave 55 words."""
    ids, mask = fill_template(" ".join(["ball"] * words), "cup", TOKENIZER)
    kept = min(words, 55)
    assert ids[1 : kept + 1] == [number("ball")] * kept
    assert ids[kept + 1 : kept + 5] == [number(word) for word in (",", "the", "cup", "is")]
    assert (mask.index(True), sum(mask)) == (kept + 5, 16)
    assert ids[kept + 21] == TOKENIZER.eos_token_id
    assert len(ids) == len(mask) == 77


def test_a_subject_too_long_for_the_text_is_reported() -> None:
    raw = raw_of(pair("key", subject=" ".join(["cup"] * 57)))
    (line,) = make_batch([(0, raw)], view, TOKENIZERS, CONFIG.plain())["skipped"]
    assert line.startswith("key: of 77 tokens the subject's 60 leave no room for its prompt: 'cup cup")
    assert not make_batch([(0, raw_of(pair("key", subject=" ".join(["cup"] * 56))))], view, TOKENIZERS, CONFIG)[
        "skipped"
    ]


def test_the_released_template_by_hand() -> None:
    """The text is BOS, "a", 16 prompt tokens, the subject, the caption, EOS and padding."""
    ids, mask = fill_template("on grass", "ball", TOKENIZER, "released", reps=2)
    words = [number(word) for word in ("ball", "on", "grass", ",", "a", "ball", "on", "grass")]
    assert [place for place, inside in enumerate(mask) if inside] == list(range(2, 18))
    assert ids[:2] == [TOKENIZER.bos_token_id, number("a")]
    assert ids[18:27] == [*words, TOKENIZER.eos_token_id]
    assert ids[27:] == [TOKENIZER.pad_token_id] * 50
    assert fill_template("on grass", None, TOKENIZER, "released", reps=2) == fill_template("on grass", None, TOKENIZER)


def test_a_long_released_text_is_truncated_at_its_end() -> None:
    """77 tokens less BOS and EOS and 16 of the prompt leave 59 words."""
    ids, mask = fill_template(" ".join(["grass"] * 90), "ball", TOKENIZER, "released", reps=20)
    assert ids[18:26] == [number("ball"), *[number("grass")] * 7]
    assert (ids[76], len(ids), mask.index(True)) == (TOKENIZER.eos_token_id, 77, 2)
    assert ids[68:73] == [number(word) for word in ("grass", ",", "a", "ball", "grass")]  # 50 words, and again


def test_released_texts_are_simplified_as_by_lavis() -> None:
    assert released_text('On  Grass. "No 1"; (well-kept, #2)!', "Red Ball.") == "a red ball on grass no 1 well-kept, 2"
    assert released_text("", "ball") == "a ball"


def test_fine_tuning_has_the_published_defaults() -> None:
    config = Config(finetune=True)
    assert (config.steps, config.batch, config.warmup, config.learning_rate) == (40, 3, 0, 5e-6)
    assert (config.subject_dropped, config.unconditional, config.average, config.decay_all) == (0, 0, 0, False)
    assert (config.captions, config.mask_padding) == ("subject", True)
    assert Config(finetune=True, batch=2, captions="own").model_dump() == {
        **config.model_dump(), "batch": 2, "captions": "own",
    }  # fmt: skip
    assert (Config().batch, Config(finetune=False).steps, Config().subject_dropped) == (16, 500_000, 0.15)


@pytest.mark.parametrize(
    ("template", "words"), [("paper", ("a", "cup", ",", "the", "cup", "is")), ("released", ("a", "cup"))]
)
def test_fine_tuning_captions_each_picture_as_its_subject(template: Any, words: tuple[str, ...]) -> None:  # noqa: ANN401
    config = CONFIG.model_copy(update={"captions": "subject", "template": template})
    batch = view_of(pair("key", subject="cup"), config)
    kept = batch["input_ids"][0][~batch["subject_prompt_mask"][0]]
    assert kept[1 : len(words) + 2].tolist() == [*map(number, words), TOKENIZER.eos_token_id]
    assert batch["subject_prompt_mask"].sum() == 16
    assert batch["caption"] == ["a cup" if template == "paper" else ""]


def sample_drops(config: Config, count: int = 4000) -> list[tuple[str, str | None]]:
    table = drop_table(config)
    dropped = [draw(table, "sample", np.random.default_rng([1, i])) for i in range(count)]
    return [
        ("" if "caption" in names else "a red ball on grass", None if "subject" in names else "ball")
        for names in dropped
    ]


def test_subject_prompts_are_dropped_for_15_percent() -> None:
    results = sample_drops(Config())
    assert np.mean([subject is None for _, subject in results]) == pytest.approx(0.15, abs=0.02)
    assert {caption for caption, _ in results} == {"a red ball on grass"}


def test_whole_texts_are_dropped_at_their_rate() -> None:
    results = sample_drops(Config(subject_dropped=0.2, unconditional=0.1))
    assert np.mean([caption == "" for caption, _ in results]) == pytest.approx(0.1, abs=0.02)
    assert np.mean([subject is None for _, subject in results]) == pytest.approx(0.3, abs=0.03)
    assert all(subject is None for caption, subject in results if not caption)


def test_the_plain_view_drops_nothing() -> None:
    config = Config(subject_dropped=1.0, unconditional=1.0).plain()
    assert set(sample_drops(config, 50)) == {("a red ball on grass", "ball")}


def test_drops_differ_between_epochs() -> None:
    config = CONFIG.model_copy(update={"subject_dropped": 0.5})
    raw = raw_of(pair("key"))
    kept = [
        bool(make_batch([(epoch, raw)], view, TOKENIZERS, config)["subject_prompt_mask"].any())
        for epoch in [*range(20), *range(20)]
    ]
    assert kept[:20] == kept[20:]
    assert 3 < sum(kept[:20]) < 17


def test_the_batch_has_the_documented_tensors(dataset: Path) -> None:
    (batch,) = take(dataset, 1)
    expected = {
        "pixel_values": ((3, 3, 32, 32), torch.float32),
        "input_pixel_values": ((3, 3, 16, 16), torch.float32),
        "input_ids": ((3, 77), torch.int64),
        "subject_prompt_mask": ((3, 77), torch.bool),
        "subject_input_ids": ((3, 16), torch.int64),
        "subject_attention_mask": ((3, 16), torch.bool),
    }
    assert {n: (tuple(v.shape), v.dtype) for n, v in batch.items() if isinstance(v, torch.Tensor)} == expected
    assert batch["pixel_values"].min() < -0.9
    assert batch["input_pixel_values"].min() >= 0
    assert batch["input_pixel_values"][:, 2].min() > 0.98  # the bluer input, not the target
    assert batch["pixel_values"][:, 2].abs().max() < 0.02
    for text, ids, read in zip(
        batch["subject_text"], batch["subject_input_ids"], batch["subject_attention_mask"], strict=True
    ):
        assert read.tolist() == [True] * 3 + [False] * 13
        assert ids[1] == number(text)


def test_target_and_input_show_the_window_around_their_subject() -> None:
    """Red encodes the column. The target shows columns 8 to 47 of 60; the input, whose subject moved, 18 to 57."""
    batch = view_of(pair("key", box=(8, 5, 10, 10), placement=Placement("painted", shift=(40, 0))))
    target = (batch["pixel_values"][0, 0] + 1) / 2 * 59
    shown = batch["input_pixel_values"][0, 0] * 59
    assert target.mean(0)[[0, -1]].tolist() == pytest.approx([8, 47], abs=1)
    assert shown.mean(0)[[0, -1]].tolist() == pytest.approx([18.75, 56.25], abs=1)
    rows = (batch["pixel_values"][0, 1] + 1) / 2 * 39
    assert rows.mean(1)[[0, -1]].tolist() == pytest.approx([0, 39], abs=1)


def test_a_placed_box_by_hand() -> None:
    """Mirrored in 100 columns, scaled by 2 about its centre, then moved 3 right and 4 up."""
    placement = PlacementField(scale=2.0, shift=(3, -4), flip=True)
    assert placed((10, 20, 8, 6), placement, 100) == (100 - 18 - 4 + 3, 20 - 3 - 4, 16, 12)
    assert placed((10, 20, 8, 6), PlacementField(scale=1.0, shift=(0, 0), flip=False), 100) == (10, 20, 8, 6)


@pytest.mark.parametrize(("width", "height"), [(640, 480), (479, 643), (1021, 515)])
def test_a_picture_decoded_at_a_reduced_size_is_aligned_with_the_full_size(width: int, height: int) -> None:
    box = (width // 2, height // 2, 30, 30)
    picture = view_of(pair("key", size=(width, height), box=box))["pixel_values"][0]
    left, top, side = window_of(width, height, box)
    places = (np.arange(32) + 0.5) * side / 32 - 0.5
    columns = (picture[0].numpy() + 1) / 2 * (width - 1) - left
    rows = (picture[1].numpy() + 1) / 2 * (height - 1) - top
    assert np.abs(columns - places)[:, 1:-1].max() < side / 64
    assert np.abs(rows - places[:, None])[1:-1].max() < side / 64


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumed_within_an_epoch_gets_the_same_batches(dataset: Path, workers: int) -> None:
    config = CONFIG.model_copy(update={"workers": workers, "subject_dropped": 0.5})
    whole = take(dataset, 9, config=config)
    for done in range(9) if workers == 0 else (1, 6):
        assert all(
            equal_batches(a, b) for a, b in zip(whole[done:], take(dataset, 9 - done, done, config), strict=True)
        )


def test_processes_read_different_samples(dataset: Path) -> None:
    config = CONFIG.model_copy(update={"batch": 1})
    firsts = [take(dataset, 3, config=config, rank=rank, world=2) for rank in range(2)]
    keys = [{batch["keys"][0] for batch in taken} for taken in firsts]
    assert not keys[0] & keys[1]


def test_a_single_pass_yields_each_sample_once_without_drops(dataset: Path) -> None:
    config = CONFIG.model_copy(update={"batch": 5, "subject_dropped": 1.0})
    taken = list(batches_once(find_shards(str(dataset), "blip-diffusion"), view, TOKENIZERS, config))
    assert [len(batch["keys"]) for batch in taken] == [5, 5, 2]
    assert [key for batch in taken for key in batch["keys"]] == [f"key{i:03d}" for i in range(12)]
    assert all(batch["subject_prompt_mask"].sum(1).eq(16).all() for batch in taken)


def without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda raw: raw.pop(name)


def with_record(**fields: object) -> Callable[[dict[str, Any]], Any]:
    return lambda raw: raw.update(json=json.dumps({**json.loads(raw["json"]), **fields}).encode())


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (without("target.jpg"), "no JPEG"),
        (without("input.jpg"), "no JPEG"),
        (without("json"), "Invalid JSON"),
        (lambda raw: raw.update({"input.jpg": raw["input.jpg"][: len(raw["input.jpg"]) // 2]}), "truncated"),
        (with_record(height=20), "60 x 40 pixels, its record says 60 x 20"),
        (with_record(subject=3), "subject"),
    ],
)
def test_a_damaged_sample_is_reported_and_left_out_of_the_batch(
    damage: Callable[[dict[str, Any]], Any], why: str
) -> None:
    good, bad = raw_of(pair("good")), raw_of(pair("bad"))
    damage(bad)
    batch = make_batch([(0, good), (0, bad)], view, TOKENIZERS, CONFIG)
    (line,) = batch["skipped"]
    assert line.startswith("bad: ")
    assert why in line
    assert batch["keys"] == ["good"]
    assert batch["subject_text"] == ["ball"]


def test_texts_are_read_as_in_the_template_and_damaged_records_skipped(tmp_path: Path) -> None:
    samples = [FORMAT.pack(pair(f"key{i}", caption=f"{i} balls"))[0] for i in range(4)]
    samples[1] = Sample("key1", {**samples[1].members, "json": b"{"})
    with (tmp_path / "blip-diffusion-000000.tar").open("wb") as tar:
        write_tar(tar, samples)
    found = read_texts(find_shards(str(tmp_path), "blip-diffusion"), texts, limit=3)
    assert found == ["0 balls, the ball is", "2 balls, the ball is"]


def test_a_folder_of_another_recipe_is_reported(tmp_path: Path) -> None:
    (tmp_path / "fastcomposer-000000.tar").touch()
    with pytest.raises(
        InputError, match=r"expected blip-diffusion-000000\.tar \.\.\., as `subjectloom build blip-diffusion` writes"
    ):
        find_shards(str(tmp_path), "blip-diffusion")
