"""Datasets of samples that hold only a number, and the keys that readers of them get."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from schemas.shards import Sample, write_tar
from training.config import LoadConfig
from training.shards import Raw, Shards, batches

CONFIG = LoadConfig(batch=1, workers=0, shuffle_buffer=8)
PREFIX = "captioned"


def write_keyed(folder: Path, sizes: Sequence[int], *, index: bool = True, first: int = 0, padding: int = 0) -> Path:
    """Write shards with these numbers of samples, keys from `first` on, each with `padding` random bytes."""
    folder.mkdir(parents=True)
    rows, numbers = [], itertools.count(first)
    rng = np.random.default_rng(first)
    for shard, size in enumerate(sizes):
        name = f"{PREFIX}-{shard:06d}.tar"
        keys = [f"key{next(numbers):05d}" for _ in range(size)]
        with (folder / name).open("wb") as tar:
            entries = write_tar(tar, [Sample(key, {"bin": rng.bytes(padding), "json": b"{}"}) for key in keys])
        rows += [{"key": e.key, "shard": name, "offset": e.offset, "size": e.size} for e in entries]
    if index:
        pq.write_table(pa.Table.from_pylist(rows[::-1]), folder / "index.parquet")  # in no particular order
    return folder


def view(raw: Raw, rng: np.random.Generator, tools: None, config: LoadConfig) -> dict[str, torch.Tensor]:  # noqa: ARG001
    return {"number": torch.tensor(int(raw["__key__"][3:]))}


def read_together(
    shards: Shards, count: int, world: int, config: LoadConfig = CONFIG, start: int = 0, tools: None = None
) -> list[int]:
    """The numbers that `world` processes read in `count` batches each, in the order of the positions."""
    streams = [batches(shards, view, tools, config, start, rank, world) for rank in range(world)]
    return [number for _ in range(count) for stream in streams for number in next(stream)["number"].tolist()]
