import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from schemas.errors import ConfigError, InputError
from schemas.keys import rng_of
from schemas.samples.fastcomposer import FORMAT
from schemas.shards import Sample, write_tar
from tests.training.batches import equal_batches
from tests.training.keyed import PREFIX, read_together, write_keyed
from tests.training.subjects import CONFIG, TOKENIZER, box_mask, example, find, take, write_shards
from training.config import LoadConfig
from training.names import split_weight
from training.recipes.fastcomposer import texts, view
from training.shards import Pixels, Raw, batches, find_shards, make_batch, read_texts, to_device, to_floats


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data") / "fc", [4, 1, 5, 2])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_run_resumed_within_an_epoch_gets_the_same_batches(dataset: Path, workers: int) -> None:
    config = CONFIG.model_copy(update={"workers": workers})
    whole = take(dataset, 12, config=config)
    for done in range(12) if workers == 0 else (1, 6):
        rest = take(dataset, 12 - done, done * config.batch, config)
        assert all(equal_batches(a, b) for a, b in zip(whole[done:], rest, strict=True))


@pytest.mark.parametrize(
    ("sizes", "world", "workers", "batch"),
    [
        ([20] * 17, 16, 0, 1),
        ([1000, 10, 10, 10], 4, 0, 8),
        ([4, 1, 5, 2], 3, 2, 2),
        ([1], 1, 2, 1),
        ([3], 4, 0, 1),
        ([1], 2, 0, 5),
    ],
)
def test_each_sample_is_read_once_per_epoch_for_any_number_of_readers(
    tmp_path: Path, sizes: list[int], world: int, workers: int, batch: int
) -> None:
    shards, total = find_shards(str(write_keyed(tmp_path / "data", sizes)), PREFIX), sum(sizes)
    config = LoadConfig(batch=batch, workers=workers)
    numbers = read_together(shards, -(-3 * total // (world * batch)), world, config)
    for epoch in range(3):
        assert sorted(numbers[epoch * total : (epoch + 1) * total]) == list(range(total))


def test_a_run_goes_on_with_other_numbers_of_processes_and_workers(tmp_path: Path) -> None:
    """10 batches of 3 samples in 2 processes, 4 of 2 in 3 processes of 2 workers, then 1 process of 1 worker."""
    shards = find_shards(str(write_keyed(tmp_path / "data", [40, 1, 59])), PREFIX)
    expected = read_together(shards, 100, 1, LoadConfig(batch=1, workers=0))
    first = read_together(shards, 10, 2, LoadConfig(batch=3, workers=0))
    second = read_together(shards, 4, 3, LoadConfig(batch=2, workers=2), start=60)
    third = read_together(shards, 16, 1, LoadConfig(batch=1, workers=1), start=84)
    assert [*first, *second, *third] == expected
    assert sorted(expected) == list(range(100))


def test_each_epoch_and_seed_has_its_own_order(dataset: Path) -> None:
    config = CONFIG.model_copy(update={"batch": 12})
    first, second = (batch["keys"] for batch in take(dataset, 2, config=config))
    other = take(dataset, 1, config=config.model_copy(update={"seed": 2}))[0]["keys"]
    assert sorted(first) == sorted(second) == sorted(other)
    assert first != second
    assert first != other


def test_the_shuffle_buffer_can_be_set(tmp_path: Path) -> None:
    """With a buffer of 1 only the blocks of 32 are shuffled: within them, samples stay in order."""
    shards = find_shards(str(write_keyed(tmp_path / "data", [64])), PREFIX)
    plain = read_together(shards, 64, 1, LoadConfig(batch=1, workers=0, shuffle_buffer=1))
    blocks = [*range(64)], [*range(32, 64), *range(32)]
    assert plain in blocks
    mixed = read_together(shards, 64, 1, LoadConfig(batch=1, workers=0, shuffle_buffer=64))
    assert mixed not in blocks
    assert sorted(mixed) == sorted(plain)


def test_datasets_are_read_as_one_or_mixed_by_weight(tmp_path: Path) -> None:
    first, second = (
        write_keyed(tmp_path / name, [size], first=start) for name, size, start in (("a", 6, 0), ("b", 30, 100))
    )
    together = find_shards([str(first), str(second)], PREFIX)
    assert sorted(read_together(together, 36, 1)) == [*range(6), *range(100, 130)]
    mixed = find_shards([f"{first}=0.75", f"{second}=0.25"], PREFIX)
    numbers = read_together(mixed, 120, 1)
    for start in range(0, 120, 4):
        assert sum(number < 100 for number in numbers[start : start + 4]) == 3
    assert sorted(number for number in numbers if number < 100) == sorted([*range(6)] * 15)
    assert sorted(number for number in numbers if number >= 100) == list(range(100, 130))
    assert read_together(mixed, 7, 3, LoadConfig(batch=2, workers=0), start=50)[:40] == read_together(
        mixed, 40, 1, LoadConfig(batch=1, workers=0), start=50
    )


def test_weights_are_checked(tmp_path: Path) -> None:
    data = str(write_keyed(tmp_path / "data", [3]))
    with pytest.raises(
        ConfigError, match=r"some of the datasets have a weight, some have none: write all as DATA=WEIGHT"
    ):
        find_shards([f"{data}=2", data], PREFIX)
    for weight in ("0", "-1", "nan", "inf"):
        with pytest.raises(ConfigError, match=rf"^{data}={weight}: a weight is a positive number$"):
            find_shards([f"{data}={weight}"], PREFIX)
    with pytest.raises(ConfigError, match=rf"^{data}=0.0001: this weight is less than a thousandth of all$"):
        find_shards([f"{data}=0.0001", f"{data}=1"], PREFIX)
    with_sign = write_keyed(tmp_path / "x=3", [3])
    assert split_weight(str(with_sign)) == (str(with_sign), None)
    assert split_weight(f"{with_sign}=4") == (str(with_sign), 4.0)
    assert split_weight("http://host/a.tar?key=abc") == ("http://host/a.tar?key=abc", None)


def write_damaged(folder: Path, damaged: Sequence[int], count: int) -> Path:
    folder.mkdir()
    mask = box_mask(40, 40, (4, 4, 20, 20))
    samples = [FORMAT.pack(example(f"key{i:03d}", [mask, ~mask]))[0] for i in range(count)]
    for i in damaged:
        samples[i] = Sample(samples[i].key, {**samples[i].members, "jpg": b"none"})
    with (folder / "fastcomposer-000000.tar").open("wb") as tar:
        write_tar(tar, samples)
    return folder


def test_a_batch_without_readable_samples_is_replaced_by_the_next(tmp_path: Path) -> None:
    """A run with batches of one sample passes damaged ones, and can be resumed from each batch."""
    config = CONFIG.model_copy(update={"batch": 1})
    sound = [batch["keys"] for batch in take(write_damaged(tmp_path / "sound", [], 6), 12, config=config)]
    data = write_damaged(tmp_path / "fc", [1, 2, 4], 6)
    damaged = {"key001", "key002", "key004"}
    whole = take(data, 11, config=config)
    for number, batch in enumerate(whole):
        assert batch["keys"] == next(keys for keys in sound[number:] if not damaged.intersection(keys))
        assert [line.split(":")[0] for line in batch["skipped"]] == [k for k in sound[number] if k in damaged]
    for done in range(8):
        assert all(equal_batches(a, b) for a, b in zip(whole[done:], take(data, 11 - done, done, config), strict=True))


def test_a_damaged_record_has_no_caption(tmp_path: Path) -> None:
    mask = box_mask(40, 40, (4, 4, 20, 20))
    samples = [FORMAT.pack(example(f"key{i}", [mask, ~mask]))[0] for i in range(3)]
    samples[1] = Sample("key1", {**samples[1].members, "json": b'{"key": "key1"}'})
    (tmp_path / "fc").mkdir()
    with (tmp_path / "fc" / "fastcomposer-000000.tar").open("wb") as tar:
        write_tar(tar, samples)
    assert read_texts(find(tmp_path / "fc"), texts) == ["a red ball and a blue cup"] * 2


def test_a_dataset_without_readable_samples_is_reported(tmp_path: Path) -> None:
    data = write_damaged(tmp_path / "fc", range(6), 6)
    with pytest.raises(InputError, match=r"no sample of 100 batches can be read: key00\d: .*no JPEG.*inspect"):
        take(data, 1)


def test_a_damaged_shard_is_reported_from_any_process(tmp_path: Path) -> None:
    data = write_shards(tmp_path / "fc", [3])
    shard = data / "fastcomposer-000000.tar"
    shard.write_bytes(b"no tar at all" * 100)
    for workers in (0, 1):
        with pytest.raises(InputError, match=rf"^the shard {shard} cannot be read: .*inspect"):
            take(data, 1, config=CONFIG.model_copy(update={"workers": workers}))


def test_a_folder_without_shards_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no shard: expected fastcomposer-000000\.tar"):
        find(tmp_path)
    with pytest.raises(InputError, match=r"no shard .*nowhere-000000\.tar"):
        find(tmp_path / "nowhere-{000000..000003}.tar")


def test_an_empty_shard_is_skipped(tmp_path: Path) -> None:
    data = write_shards(tmp_path / "fc", [3, 0, 4])
    for rank in range(3):
        assert len(take(data, 4, rank=rank, world=3)) == 4
    with pytest.raises(InputError, match=r"empty holds no sample$"):
        find(write_shards(tmp_path / "empty", [0]))


def test_the_rank_set_by_a_launcher_selects_the_batches(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (expected,) = take(dataset, 1, rank=1, world=2)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert equal_batches(take(dataset, 1)[0], expected)
    assert not equal_batches(take(dataset, 1, rank=0)[0], expected)


def test_shards_are_read_from_a_pipe(dataset: Path) -> None:
    shards = find(f"pipe:cat {dataset}/fastcomposer-{{000000..000001}}.tar")
    assert len(shards.tars) == 2
    assert read_texts(shards, texts) == ["a red ball and a blue cup"] * 5
    config = CONFIG.model_copy(update={"batch": 5})
    (batch,) = take(shards, 1, config=config)
    assert sorted(batch["keys"]) == [f"key{i:03d}" for i in range(5)]


def test_pixels_are_scaled_to_their_range() -> None:
    levels = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert torch.equal(Pixels(levels, -1, 1).floats(), levels.float() / 127.5 - 1)
    assert torch.equal(Pixels(levels, 0, 1).floats(), levels.float() / 255)
    assert Pixels(torch.tensor([False, True]), 0, 1).floats().tolist() == [0, 1]
    assert Pixels(torch.tensor([False, True]), -1, 1).floats().tolist() == [-1, 1]


def test_pixels_are_pinned_as_bytes_and_become_floats_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """`DataLoader` pins what has a method for it; no pixel is a float before it is on the device."""
    pinned = torch.tensor([0, 255], dtype=torch.uint8)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda *_: pinned)
    batch = pin_memory({"pixel_values": Pixels(pinned.clone(), -1, 1), "keys": ["a"]})
    assert batch["pixel_values"] == Pixels(pinned, -1, 1)
    moved = to_device(batch, "meta")["pixel_values"]
    assert (moved.dtype, moved.device.type) == (torch.float32, "meta")


def test_batches_are_put_on_the_device(dataset: Path) -> None:
    (batch,) = itertools.islice(batches(find(dataset), view, TOKENIZER, CONFIG, device="meta"), 1)
    assert {value.device.type for value in batch.values() if isinstance(value, torch.Tensor)} == {"meta"}
    assert batch["pixel_values"].dtype == torch.float32


def test_values_are_stacked_by_their_type() -> None:
    def view(raw: Raw, rng: np.random.Generator, tools: str, config: LoadConfig) -> dict[str, object]:
        return {
            "depth": Pixels(torch.full((2,), int(raw["level"]), dtype=torch.uint8), 0, 10),
            "index": torch.tensor(config.batch),
            "text": tools,
            "drawn": float(rng.random()),
        }

    samples = [
        (epoch, {"__key__": key, "level": level}) for epoch, key, level in ((0, "a", 0), (0, "b", 255), (1, "a", 51))
    ]
    batch = to_floats(make_batch(samples, view, "tool", LoadConfig(batch=5, seed=3)))
    assert batch["keys"] == ["a", "b", "a"]
    assert batch["depth"].tolist() == [[0, 0], [10, 10], [2, 2]]
    assert batch["index"].tolist() == [5, 5, 5]
    assert batch["text"] == ["tool"] * 3
    expected = [rng_of(3, stage, key).random() for stage, key in (("view 0", "a"), ("view 0", "b"), ("view 1", "a"))]
    assert batch["drawn"] == expected
