"""Read datasets as batches: shuffled, mixed by weight, and divided among processes and workers, for any recipe.

What one sample becomes is the recipe's `view`. Everything a view draws is a function of (seed, epoch, key), and the
order of the samples is one sequence for all processes, a function of the seed (`training.order`). Its positions go to
batches in turn, here for two processes and batches of three samples:

    position    0 1 2   3 4 5   6 7 8   9 10 11  12 ...
    process 0   first           second           third
    process 1           first           second

In every epoch each sample is therefore read exactly once, by whatever number of processes and workers, and a run is
resumed at the position that it has reached, with the same number of them or another. A batch may span two epochs.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from schemas.errors import ConfigError, InputError, RecordError
from schemas.keys import rng_of
from training import tars
from training.config import LoadConfig
from training.latents import LatentCache, look_up
from training.names import split_weight
from training.order import Group, Order, slots_of
from training.tars import Tar

Batch = dict[str, Any]
"""Name to tensor with the samples along the first axis, or to a list with a value per sample. Always holds `keys`, the
samples' keys, and `skipped`, a line for each sample that could not be read."""
Raw = tars.Raw
"""A sample as webdataset reads it: `__key__`, `__url__` and its members by their endings, as `jpg` and `json`."""
Tools = Any
"""What a recipe's view needs besides sample and config: as a rule the model's tokenizer."""
View = Callable[[Raw, np.random.Generator, Tools, Any], Mapping[str, Any]]
"""A recipe's view, called with sample, generator, tools and config: the values of one sample by name, each a tensor,
`Pixels` or anything else. Raises a RecordError or a ValueError for a sample that cannot be used."""

PATIENCE = 100
"""Number of consecutive batches without a readable sample after which a worker stops."""
AT_ONCE = 64
"""Samples that are read at a time where all are read in order."""


@dataclass(frozen=True)
class Pixels:
    """Pixels as they are passed between processes, and the range that they represent.

    Bytes take a quarter of the memory of floats: copying floats would take a third of a worker's time.

    Attributes:
        values: uint8 from 0 to 255, or bool, of any shape.
        low: the float that 0 or False represents.
        high: the float that 255 or True represents.
    """

    values: Tensor
    low: float
    high: float

    def floats(self, device: torch.device | str | None = None) -> Tensor:
        """Convert to float32 in [`low`, `high`], on `device`, by default where the pixels are."""
        moved = _move(self.values, device or self.values.device)
        # NumPy asks for huge pages, torch does not: a batch of floats takes a fourth of the time.
        on_cpu = moved.device.type == "cpu"
        floats = torch.from_numpy(moved.numpy().astype(np.float32)) if on_cpu else moved.float()
        divisor = (1 if moved.dtype == torch.bool else 255) / (self.high - self.low)
        if divisor != 1:
            floats.div_(divisor)
        return floats.add_(self.low) if self.low else floats

    def pin_memory(self) -> "Pixels":
        """Copy to pinned memory, as `DataLoader` asks for: a GPU fetches the pixels from there meanwhile."""
        return Pixels(self.values.pin_memory(), self.low, self.high)


@dataclass(frozen=True, eq=False)
class Shards:
    """The tars of one or several datasets.

    Attributes:
        tars: all of them, the datasets one after the other.
        groups: the datasets, if they are mixed by weight; otherwise one of all.
    """

    tars: tuple[Tar, ...]
    groups: tuple[Group, ...]

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Number of samples up to the end of each tar."""
        return tuple(np.cumsum([len(tar.places) for tar in self.tars]).tolist())

    def read(self, numbers: Sequence[int]) -> list[Raw]:
        """Read samples by their numbers, which count through all tars.

        Raises:
            InputError: one cannot be read.
        """
        found = np.searchsorted(self.ends, numbers, side="right").tolist()
        starts = [self.ends[tar] - len(self.tars[tar].places) for tar in found]
        pairs = zip(found, numbers, starts, strict=True)
        return tars.read_at([(self.tars[tar], number - start) for tar, number, start in pairs])


def find_shards(data: str | Sequence[str], recipe: str) -> Shards:
    """Find the samples of a dataset of `recipe`, or of several.

    Args:
        data: the dataset's folder, or its tars, as a path or an address that fsspec opens (`http://...`, `s3://...`,
            `gs://...`), with braces for several, as in "shard-{000000..000009}.tar". Of several datasets each may have
            a weight, as in "photos=0.7": its share of the samples that are read. Without weights they are read as one.
            What cannot be read in parts, `pipe:...` or a web server without byte ranges, is copied to a temporary
            folder first.
        recipe: prefix of the names of the folder's tars.

    Raises:
        InputError: there is no shard or no sample, or a tar cannot be read.
        ConfigError: some of the datasets have a weight and some have none, or one is below a thousandth of all.
    """
    named = [split_weight(name) for name in ([data] if isinstance(data, str) else data)]
    datasets = [tars.find_tars(name, recipe) for name, _ in named]
    sizes = [tuple(len(tar.places) for tar in dataset) for dataset in datasets]
    for (name, _), counts in zip(named, sizes, strict=True):
        if not sum(counts):
            raise InputError(f"{name} holds no sample")
    weights = [weight for _, weight in named if weight is not None]
    if weights and len(weights) < len(named):
        raise ConfigError("some of the datasets have a weight, some have none: write all as DATA=WEIGHT, or none")
    slots = slots_of(weights) if weights else ()
    if 0 in slots:
        name, weight = named[slots.index(0)]
        raise ConfigError(f"{name}={weight:g}: this weight is less than a thousandth of all")
    groups = map(Group, sizes, slots) if weights else [Group(sum(sizes, ()))]
    return Shards(tuple(tar for dataset in datasets for tar in dataset), tuple(groups))


def read_samples(shards: Shards) -> Iterator[Raw]:
    """Yield every sample once, in the order of the shards."""
    for start in range(0, shards.ends[-1], AT_ONCE):
        yield from shards.read(range(start, min(start + AT_ONCE, shards.ends[-1])))


def read_texts(shards: Shards, texts: Callable[[Raw], Sequence[str]], limit: int = 10_000) -> list[str]:
    """Collect `texts` of the first `limit` samples, leaving out samples whose record is invalid."""
    found: list[str] = []
    for raw in islice(read_samples(shards), limit):
        with suppress(ValidationError):
            found += texts(raw)
    return found


def batches(  # noqa: PLR0913 - what a batch depends on
    shards: Shards,
    view: View,
    tools: Tools,
    config: LoadConfig,
    start: int = 0,
    rank: int | None = None,
    world: int | None = None,
    device: torch.device | str = "cpu",
    *,
    latents: LatentCache | None = None,
) -> Iterator[Batch]:
    """Yield batches without end, epoch after epoch.

    A batch holds what `view` returns for its samples, stacked. Its pixels cross to the device as bytes and are
    converted to floats there. A sample that cannot be read makes its batch smaller; a batch of which no sample can be
    read is replaced by the next one of its process.

    Args:
        shards: the datasets.
        view: makes the values of one sample.
        tools: passed on to `view`.
        config: passed on to `view`.
        start: number of samples that all processes together have read before; with the same seed and shuffle buffer,
            the batches go on with the samples that follow.
        rank: number of this process, by default that of torch.distributed or of its launcher.
        world: number of processes, by default likewise. Each process gets batches of its own.
        device: where the tensors of a batch are put.
        latents: latents of the pictures, which are looked up.

    Raises:
        InputError: a shard cannot be read, or no sample of `PATIENCE` consecutive batches.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive the fork
    here = rank_and_world()
    rank, world = here[0] if rank is None else rank, here[1] if world is None else world
    order = Order(shards.groups, config.seed, config.shuffle_buffer)
    make = partial(make_batch, view=view, tools=tools, config=config, latents=latents)
    numbered = _Batches(shards, order, make, start + rank * config.batch, world * config.batch, config.batch)
    pinned = torch.device(device).type == "cuda"
    loader = DataLoader(numbered, batch_size=None, sampler=count(), num_workers=config.workers, pin_memory=pinned)
    for batch in loader:
        if "error" in batch:
            raise InputError(batch["error"])
        yield to_device(batch, device)


def batches_once(shards: Shards, view: View, tools: Tools, config: LoadConfig) -> Iterator[Batch]:
    """Yield every sample once, in the order of the shards, under the plain config; the last batch may be smaller."""
    samples = ((0, raw) for raw in read_samples(shards))
    while group := list(islice(samples, config.batch)):
        batch = make_batch(group, view, tools, config.plain())
        if batch["keys"]:
            yield to_floats(batch)


def make_batch(
    samples: Sequence[tuple[int, Raw]],
    view: View,
    tools: Tools,
    config: LoadConfig,
    latents: LatentCache | None = None,
) -> Batch:
    """Make a batch of (epoch, sample) pairs, whose pixels `to_floats` converts.

    Tensors and pixels are stacked, other values are collected in lists. If no sample can be read, the batch holds
    `keys` and `skipped` alone. With `latents` it also holds what `look_up` finds of its pictures.
    """
    views, skipped = [], []
    for epoch, raw in samples:
        key = raw["__key__"]
        try:
            views.append({"keys": key, **view(raw, rng_of(config.seed, f"view {epoch}", key), tools, config)})
        except (RecordError, ValueError) as error:  # pydantic's and pycocotools' errors are ValueErrors
            skipped.append(f"{key}: {' '.join(str(error).split())[:200]}")
    names = views[0] if views else ()
    stacked = {name: _stack([values[name] for values in views]) for name in names}
    found = look_up(latents, stacked["pixel_values"].values) if latents and views else {}
    return {"keys": [], **stacked, **found, "skipped": skipped}


def _stack(values: list[Any]) -> Any:  # noqa: ANN401 - whatever a view returns
    first = values[0]
    if isinstance(first, Pixels):
        return Pixels(torch.stack([pixels.values for pixels in values]), first.low, first.high)
    return torch.stack(values) if isinstance(first, Tensor) else values


def to_floats(batch: Batch) -> Batch:
    """Convert a batch's pixels to float32."""
    return to_device(batch, "cpu")


def to_device(batch: Mapping[str, Any], device: torch.device | str) -> Batch:
    """Move a batch's tensors and pixels to `device`; pixels become float32 there."""

    def move(value: Any) -> Any:  # noqa: ANN401 - whatever a view returns
        if isinstance(value, Pixels):
            return value.floats(device)
        return _move(value, device) if isinstance(value, Tensor) else value

    return {name: move(value) for name, value in batch.items()}


def _move(tensor: Tensor, device: torch.device | str) -> Tensor:
    # What comes back to the processor must have arrived before it is read.
    return tensor.to(device, non_blocking=tensor.device.type == "cpu")


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the number of processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@dataclass(eq=False)
class _Batches(Dataset[Batch]):
    """The batches of one process by their number: of `size` samples, from position `first` every `step` positions."""

    shards: Shards
    order: Order
    make: Callable[[Sequence[tuple[int, Raw]]], Batch]
    first: int
    step: int
    size: int

    def __getitem__(self, number: int) -> Batch:
        try:
            return self._readable(number)
        except InputError as error:  # passed on as a value: an exception from another process would be several lines
            return {"error": str(error)}

    def _readable(self, number: int) -> Batch:
        first = batch = self._batch(number)
        for later in range(number + 1, number + PATIENCE):
            if batch["keys"]:
                break
            batch = self._batch(later)
        if batch["keys"]:
            return {**batch, "skipped": first["skipped"]}
        why = f"{first['skipped'][0]}. `subjectloom inspect` says what is wrong"
        raise InputError(f"no sample of {PATIENCE} batches can be read: {why}")

    def _batch(self, number: int) -> Batch:
        places = self.order.places(self.first + number * self.step, self.size)
        samples = self.shards.read([place.sample for place in places])
        return self.make([(place.epoch, sample) for place, sample in zip(places, samples, strict=True)])
