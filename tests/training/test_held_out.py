from pathlib import Path

import numpy as np
import pytest

from schemas.errors import ConfigError
from tests.datasets import example, write_dataset
from training.config import LoadConfig
from training.held_out import held_out_batches, split_held_out
from training.shards import Raw, Shards, batches, find_shards, read_samples

KEYS = [f"key{i:02d}" for i in range(20)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("held_out") / "data"
    write_dataset(folder, [[example(key) for key in KEYS[:13]], [example(key) for key in KEYS[13:]]])
    return str(folder)


def keys_of(shards: Shards) -> list[str]:
    return [raw["__key__"] for raw in read_samples(shards)]


def test_every_sample_is_trained_on_or_held_out(data: str) -> None:
    shards = find_shards(data, "fastcomposer")
    rest, apart = split_held_out(shards, 6, seed=1)
    assert len(keys_of(apart)) == 6
    assert sorted([*keys_of(rest), *keys_of(apart)]) == KEYS
    assert keys_of(split_held_out(shards, 6, seed=1)[1]) == keys_of(apart)
    assert keys_of(split_held_out(shards, 6, seed=2)[1]) != keys_of(apart)


def view(raw: Raw, rng: np.random.Generator, tools: object, config: LoadConfig) -> dict[str, object]:
    del rng, tools, config
    if raw["__key__"] == "key03":
        raise ValueError("cut off")
    return {"size": len(raw["jpg"])}


def test_no_batch_holds_a_sample_that_is_held_out(data: str) -> None:
    rest, apart = split_held_out(find_shards(data, "fastcomposer"), 6, seed=1)
    config = LoadConfig(batch=7, workers=0)
    stream = batches(rest, view, None, config)
    epoch = sorted(key for _, batch in zip(range(2), stream, strict=False) for key in batch["keys"])
    assert epoch == [key for key in keys_of(rest) if key != "key03"]
    assert not set(epoch) & set(keys_of(apart))


def test_batches_of_held_out_samples_hold_each_once_and_report_those_that_cannot_be_read(data: str) -> None:
    reported: list[str] = []
    shards = find_shards(data, "fastcomposer")
    found = held_out_batches(shards, view, None, LoadConfig(batch=8), reported.append)
    assert [key for batch in found for key in batch["keys"]] == [key for key in KEYS if key != "key03"]
    assert [len(batch["keys"]) for batch in found] == [7, 8, 4]
    assert reported == ["held out, but cannot be read: key03: cut off"]


def test_something_must_be_left_to_train_on(data: str) -> None:
    with pytest.raises(ConfigError, match="held_out 20: there are 20 samples"):
        split_held_out(find_shards(data, "fastcomposer"), 20, seed=1)


def test_something_must_be_left_of_each_dataset_that_is_mixed_by_weight(data: str, tmp_path: Path) -> None:
    write_dataset(tmp_path / "one", [[example("alone")]])
    shards = find_shards([f"{data}=0.5", f"{tmp_path / 'one'}=0.5"], "fastcomposer")

    def split_often() -> None:
        for seed in range(100):  # until the only sample of the second one is among the 20 of 21
            split_held_out(shards, 20, seed)

    with pytest.raises(ConfigError, match="held_out 20: nothing is left of one of the datasets"):
        split_often()
    rest, _ = split_held_out(shards, 1, seed=0)
    assert [group.slots for group in rest.groups] == [1, 1]
