import functools
import http.server
import itertools
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from schemas.errors import InputError
from schemas.keys import rng_of
from schemas.samples.fastcomposer import FORMAT
from schemas.shards import Sample, read_tar, write_tar
from tests.training.batches import equal_batches
from tests.training.subjects import CONFIG, TOKENIZER, box_mask, example, find, take, write_shards
from training.recipes.fastcomposer import Config, texts, view
from training.shards import (
    LoadConfig,
    Pixels,
    Raw,
    _part,
    batches,
    make_batch,
    read_texts,
    shuffle,
    to_floats,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data") / "fc", [4, 1, 5, 2])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_run_resumed_within_an_epoch_gets_the_same_batches(dataset: Path, workers: int) -> None:
    config = CONFIG.model_copy(update={"workers": workers})
    whole = take(dataset, 12, config=config)
    for done in range(12) if workers == 0 else (1, 6):
        rest = take(dataset, 12 - done, done, config=config)
        assert all(equal_batches(a, b) for a, b in zip(whole[done:], rest, strict=True))


def test_skipping_epochs_by_the_index_gives_the_same_batches(tmp_path: Path) -> None:
    data = write_shards(tmp_path / "fc", [4, 1, 5, 2])
    config = CONFIG.model_copy(update={"batch": 1})
    places = (11, 12, 13, 30)  # about the end of an epoch of 12
    without = [take(data, 2, done, config) for done in places]
    names = [f"fastcomposer-{i:06d}.tar" for i, n in enumerate([4, 1, 5, 2]) for _ in range(n)]
    pq.write_table(pa.table({"shard": names}), data / "index.parquet")
    assert find(data).counts == (4, 1, 5, 2)
    for done, expected in zip(places, without, strict=True):
        assert all(equal_batches(a, b) for a, b in zip(expected, take(data, 2, done, config), strict=True))


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 2), (2, 0), (2, 2), (3, 2)])
def test_each_sample_appears_once_per_epoch_for_any_number_of_processes(
    dataset: Path, world: int, workers: int
) -> None:
    config = CONFIG.model_copy(update={"workers": workers, "batch": 1})
    keys: list[str] = []
    for rank in range(world):
        # Read until the longest part has finished its first epoch; shorter parts are then cut to theirs.
        parts = world * max(1, workers)
        counts = [len(part) for part in parts_of(dataset, config, rank, world, max(1, workers))]
        batch_count = max(counts) * max(1, workers)
        keys_of_part: list[list[str]] = [[] for _ in counts]
        for number, batch in enumerate(take(dataset, batch_count, config=config, rank=rank, world=world)):
            keys_of_part[number % len(counts)] += batch["keys"]
        assert parts >= len(counts)
        keys += [key for part, count in zip(keys_of_part, counts, strict=True) for key in part[:count]]
    assert sorted(keys) == [f"key{i:03d}" for i in range(12)]


def parts_of(dataset: Path, config: Config, rank: int, world: int, workers: int) -> list[list[str]]:
    shards = find(dataset)
    parts = world * workers
    return [
        [sample["__key__"] for sample in _part(shards, config.seed, 0, rank * workers + worker, parts)]
        for worker in range(workers)
    ]


def test_each_epoch_and_seed_has_its_own_order(dataset: Path) -> None:
    config = CONFIG.model_copy(update={"batch": 12})
    first, second = (batch["keys"] for batch in take(dataset, 2, config=config))
    other = take(dataset, 1, config=config.model_copy(update={"seed": 2}))[0]["keys"]
    assert sorted(first) == sorted(second) == sorted(other)
    assert first != second
    assert first != other


def test_shuffling_keeps_every_sample() -> None:
    numbers = [{"__key__": str(i)} for i in range(100)]
    for size in (1, 7, 100, 1000):
        drawn_keys = [s["__key__"] for s in shuffle(iter(numbers), size, np.random.default_rng(0))]
        assert sorted(drawn_keys, key=int) == [str(i) for i in range(100)]
    assert drawn_keys != [str(i) for i in range(100)]


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


def test_a_shard_truncated_between_two_samples_is_reported(tmp_path: Path) -> None:
    data = write_shards(tmp_path / "fc", [8])
    shard = data / "fastcomposer-000000.tar"
    with shard.open("rb") as stream:
        sizes = [entry.size for entry, _ in read_tar(stream)]
    shard.write_bytes(shard.read_bytes()[: sum(sizes[:5])])
    pq.write_table(pa.table({"shard": [shard.name] * 8}), data / "index.parquet")
    with pytest.raises(InputError, match=rf"the shard {shard} holds 5 samples, the index says 8; .*inspect"):
        take(data, 5)


def test_an_empty_shard_is_skipped(tmp_path: Path) -> None:
    data = write_shards(tmp_path / "fc", [3, 0, 4])
    for rank in range(3):
        assert len(take(data, 4, rank=rank, world=3)) == 4


@pytest.mark.parametrize("indexed", [False, True])
def test_fewer_samples_than_workers_are_reported(tmp_path: Path, indexed: bool) -> None:
    data = write_shards(tmp_path / "fc", [1])
    if indexed:
        pq.write_table(pa.table({"shard": ["fastcomposer-000000.tar"]}), data / "index.parquet")
    with pytest.raises(InputError, match="no sample for worker 2 of 2"):
        take(data, 1, rank=1, world=2)


def test_the_rank_set_by_a_launcher_selects_the_batches(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (expected,) = take(dataset, 1, rank=1, world=2)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert equal_batches(take(dataset, 1)[0], expected)
    assert not equal_batches(take(dataset, 1, rank=0)[0], expected)


@pytest.mark.skipif(not shutil.which("curl"), reason="webdataset reads http by curl")
def test_shards_are_read_from_a_web_server(dataset: Path) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(dataset))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/fastcomposer-"
        found = list(itertools.islice(batches(find(address + "{000000..000003}.tar"), view, TOKENIZER, CONFIG), 5))
        with pytest.raises(InputError, match=r"fastcomposer-9\.tar cannot be read: .*can it be reached\?"):
            next(batches(find(address + "9.tar"), view, TOKENIZER, CONFIG))
        server.shutdown()
    assert all(equal_batches(a, b) for a, b in zip(found, take(dataset, 5), strict=True))


def test_shards_are_read_from_addresses(dataset: Path) -> None:
    shards = find(f"pipe:cat {dataset}/fastcomposer-{{000000..000001}}.tar")
    assert len(shards.urls) == 2
    assert read_texts(shards, texts) == ["a red ball and a blue cup"] * 5
    config = CONFIG.model_copy(update={"batch": 5})
    (batch,) = itertools.islice(batches(shards, view, TOKENIZER, config), 1)
    assert sorted(batch["keys"]) == [f"key{i:03d}" for i in range(5)]


def test_pixels_are_scaled_to_their_range() -> None:
    levels = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert torch.equal(Pixels(levels, -1, 1).floats(), levels.float() / 127.5 - 1)
    assert torch.equal(Pixels(levels, 0, 1).floats(), levels.float() / 255)
    assert Pixels(torch.tensor([False, True]), 0, 1).floats().tolist() == [0, 1]
    assert Pixels(torch.tensor([False, True]), -1, 1).floats().tolist() == [-1, 1]


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
