"""Read a dataset's shards as batches: shuffled, and divided among workers and processes, for any recipe.

What one sample becomes is the recipe's `view`. Everything a view draws is a function of (seed, epoch, key), and the
order of the samples is a function of (seed, epoch, part), where a part is what one worker of one process reads. A run
that is resumed after n batches therefore gets the same batch n + 1, and skips the first n without decoding a picture.

A part reads whole shards, a different selection in each epoch. If a dataset has fewer shards than there are parts,
each part reads all of them and keeps every `parts`-th sample. Parts start their next epoch independently.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from tarfile import TarError
from typing import Any, Self

import numpy as np
import pyarrow.parquet as pq
import torch
import webdataset
from pydantic import Field, ValidationError
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset import tariterators

from schemas.errors import InputError, RecordError
from schemas.keys import rng_of
from schemas.strict import StrictModel

Batch = dict[str, Any]
"""Name to tensor with the samples along the first axis, or to a list with a value per sample. Always holds `keys`, the
samples' keys, and `skipped`, a line for each sample that could not be read."""
Raw = Mapping[str, Any]
"""A sample as webdataset reads it: `__key__`, `__url__` and its members by their endings, as `jpg` and `json`."""
Tools = Any
"""What a recipe's view needs besides sample and config: as a rule the model's tokenizer."""
View = Callable[[Raw, np.random.Generator, Tools, Any], Mapping[str, Any]]
"""A recipe's view, called with sample, generator, tools and config: the values of one sample by name, each a tensor,
`Pixels` or anything else. Raises a RecordError or a ValueError for a sample that cannot be used."""

SHUFFLE_BUFFER = 500
"""Undecoded samples that a worker holds in memory and draws the next one from."""
PATIENCE = 100
"""Number of consecutive epochs without a sample, or of batches without a readable one, after which a worker stops."""


class LoadConfig(StrictModel):
    """Fields that the batches of every recipe have in common."""

    resolution: int = Field(default=512, gt=0, multiple_of=8, description="side of the pictures, in pixels")
    reference: int = Field(default=224, gt=0, description="side of what an image encoder is shown, in pixels")
    batch: int = Field(default=16, gt=0, description="samples per process and micro-batch")
    workers: int = Field(default=2, ge=0, description="processes that load for each process that trains")
    seed: int = Field(default=42, ge=0, description="of weights, batches and noise")

    def plain(self) -> Self:
        """A copy of this config under which a view draws nothing at random, for measuring and for sample pictures."""
        return self


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

    def floats(self) -> Tensor:
        """Convert to float32 in [`low`, `high`]."""
        largest = 1 if self.values.dtype == torch.bool else 255
        return self.values.float().div_(largest / (self.high - self.low)).add_(self.low)


@dataclass(frozen=True)
class Shards:
    """A dataset's tars by address, and the number of samples in each if an index states them."""

    urls: tuple[str, ...]
    counts: tuple[int, ...] | None


def find_shards(data: str, recipe: str) -> Shards:
    """Find the shards of a dataset of `recipe`.

    Args:
        data: the dataset's folder, or its tars in webdataset's notation: a path, `http://...` or `pipe:...`, with
            braces for several, as in "shard-{000000..000009}.tar".
        recipe: prefix of the names of the folder's tars.

    Raises:
        InputError: there is no shard.
    """
    folder = Path(data)
    if folder.is_dir():
        paths = sorted(folder.glob(f"{recipe}-[0-9]*.tar"))
        if not paths:
            raise InputError(
                f"{data} holds no shard: expected {recipe}-000000.tar ..., as `subjectloom build {recipe}` writes"
            )
        counts = _counts(folder / "index.parquet", [path.name for path in paths])
        return Shards(tuple(map(str, paths)), counts)
    urls = tuple(webdataset.shardlists.expand_urls(data))
    missing = [url for url in urls if ":" not in url and not Path(url).is_file()]
    if missing:
        raise InputError(f"no shard {missing[0]}: name the folder of a dataset, or its tars")
    return Shards(urls, None)


def _counts(index: Path, names: Sequence[str]) -> tuple[int, ...] | None:
    if not index.is_file():
        return None
    shards = pq.read_table(index, columns=["shard"]).column("shard").value_counts()
    found = {entry["values"].as_py(): entry["counts"].as_py() for entry in shards}
    return tuple(found.get(name, 0) for name in names)


def read_samples(shards: Shards) -> Iterator[Raw]:
    """Yield every sample once, in the order of the shards."""
    for url in shards.urls:
        yield from _read(url)


def read_texts(shards: Shards, texts: Callable[[Raw], Sequence[str]], limit: int = 10_000) -> list[str]:
    """Collect `texts` of the first `limit` samples, leaving out samples whose record is invalid."""
    found: list[str] = []
    for raw in islice(read_samples(shards), limit):
        with suppress(ValidationError):
            found += texts(raw)
    return found


def batches(
    shards: Shards,
    view: View,
    tools: Tools,
    config: LoadConfig,
    done: int = 0,
    rank: int | None = None,
    world: int | None = None,
) -> Iterator[Batch]:
    """Yield batches without end, epoch after epoch, starting after the first `done`.

    A batch holds what `view` returns for its samples, stacked, with `Pixels` converted to floats. A sample that cannot
    be read makes its batch smaller; a batch of which no sample can be read is replaced by the next one.

    Args:
        shards: the dataset.
        view: makes the values of one sample.
        tools: passed on to `view`.
        config: passed on to `view`. With `done` it must be the same for a run that is resumed.
        done: number of batches to skip.
        rank: number of this process, by default that of torch.distributed or of its launcher.
        world: number of processes, by default likewise. Each process gets batches of its own.

    Raises:
        InputError: a shard cannot be read, or no sample of `PATIENCE` consecutive batches.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive the fork
    here = rank_and_world()
    rank, world = here[0] if rank is None else rank, here[1] if world is None else world
    make = partial(make_batch, view=view, tools=tools, config=config)
    stream = _Stream(shards, make, config, done, rank, world)
    loader = DataLoader(stream, batch_size=None, num_workers=config.workers, pin_memory=torch.cuda.is_available())
    for batch in loader:
        if "error" in batch:
            raise InputError(batch["error"])
        yield to_floats(batch)


def batches_once(shards: Shards, view: View, tools: Tools, config: LoadConfig) -> Iterator[Batch]:
    """Yield every sample once, in the order of the shards, under the plain config; the last batch may be smaller."""
    samples = ((0, raw) for raw in read_samples(shards))
    while group := list(islice(samples, config.batch)):
        batch = make_batch(group, view, tools, config.plain())
        if batch["keys"]:
            yield to_floats(batch)


def make_batch(samples: Sequence[tuple[int, Raw]], view: View, tools: Tools, config: LoadConfig) -> Batch:
    """Make a batch of (epoch, sample) pairs, whose pixels `to_floats` converts.

    Tensors and pixels are stacked, other values are collected in lists. If no sample can be read, the batch holds
    `keys` and `skipped` alone.
    """
    views, skipped = [], []
    for epoch, raw in samples:
        key = raw["__key__"]
        try:
            views.append({"keys": key, **view(raw, rng_of(config.seed, f"view {epoch}", key), tools, config)})
        except (RecordError, ValueError) as error:  # pydantic's and pycocotools' errors are ValueErrors
            skipped.append(f"{key}: {' '.join(str(error).split())[:200]}")
    names = views[0] if views else ()
    return {"keys": [], **{name: _stack([values[name] for values in views]) for name in names}, "skipped": skipped}


def _stack(values: list[Any]) -> Any:  # noqa: ANN401 - whatever a view returns
    first = values[0]
    if isinstance(first, Pixels):
        return Pixels(torch.stack([pixels.values for pixels in values]), first.low, first.high)
    return torch.stack(values) if isinstance(first, Tensor) else values


def to_floats(batch: Batch) -> Batch:
    """Convert a batch's pixels to float32."""
    return {name: value.floats() if isinstance(value, Pixels) else value for name, value in batch.items()}


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the number of processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@dataclass(eq=False)
class _Stream(IterableDataset[Batch]):
    """What one worker reads: its part of the samples, in batches."""

    shards: Shards
    make: Callable[[Sequence[tuple[int, Raw]]], Batch]
    config: LoadConfig
    done: int
    rank: int
    world: int

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        if info:
            torch.set_num_threads(1)
        # Batches come from the workers in turn; worker 0 takes the turn that follows the first `done` batches.
        turn = (worker + self.done) % workers
        skipped = len(range(turn, self.done, workers))
        part, parts = self.rank * workers + turn, self.world * workers
        samples = _samples(self.shards, self.config.seed, part, parts, skipped * self.config.batch)
        try:
            yield from self._batches(samples)
        except InputError as error:  # passed on as a value: an exception from another process would be several lines
            yield {"error": str(error)}

    def _batches(self, samples: Iterator[tuple[int, Raw]]) -> Iterator[Batch]:
        # Batch n comes from the n-th group of samples, so that a run can be resumed by counting. A batch of which
        # nothing can be read is replaced by the next one, which is then yielded a second time in its own turn.
        ahead: deque[Batch] = deque()
        while True:
            while not any(batch["keys"] for batch in ahead):
                if len(ahead) == PATIENCE:
                    why = f"{ahead[0]['skipped'][0]}. `subjectloom inspect` says what is wrong"
                    raise InputError(f"no sample of {PATIENCE} batches can be read: {why}")
                ahead.append(self.make([next(samples) for _ in range(self.config.batch)]))
            batch = ahead.popleft()
            yield batch if batch["keys"] else {**ahead[-1], "skipped": batch["skipped"]}


def _samples(shards: Shards, seed: int, part: int, parts: int, skip: int) -> Iterator[tuple[int, Raw]]:
    """Yield (epoch, sample) of a part, shuffled, epoch after epoch, without the first `skip`."""
    epoch = empty_epochs = 0
    while empty_epochs < PATIENCE:
        rng = np.random.default_rng([seed, epoch, part])
        count = _count(shards, seed, epoch, part, parts)
        if count is not None and count <= skip:
            skip -= count
        else:
            count = 0
            for sample in shuffle(_part(shards, seed, epoch, part, parts), SHUFFLE_BUFFER, rng):
                count += 1
                if skip:
                    skip -= 1
                else:
                    yield epoch, sample
        empty_epochs = 0 if count else empty_epochs + 1
        epoch += 1
    raise InputError(f"no sample for worker {part + 1} of {parts}: the dataset has fewer samples than readers")


def _order(shards: Shards, seed: int, epoch: int, part: int, parts: int) -> tuple[list[int], int, int]:
    """Return the shards that a part reads in an epoch, and `first`, `step`: it keeps samples first, first + step..."""
    order = np.random.default_rng([seed, epoch]).permutation(len(shards.urls)).tolist()
    return (order[part::parts], 0, 1) if len(order) >= parts else (order, part, parts)


def _count(shards: Shards, seed: int, epoch: int, part: int, parts: int) -> int | None:
    if shards.counts is None:
        return None
    chosen, first, step = _order(shards, seed, epoch, part, parts)
    return len(range(first, sum(shards.counts[shard] for shard in chosen), step))


def _part(shards: Shards, seed: int, epoch: int, part: int, parts: int) -> Iterator[Raw]:
    chosen, first, step = _order(shards, seed, epoch, part, parts)
    counts = shards.counts or [None] * len(shards.urls)
    samples = (sample for shard in chosen for sample in _read(shards.urls[shard], counts[shard]))
    yield from (sample for number, sample in enumerate(samples) if number % step == first)


def _read(url: str, expected: int | None = None) -> Iterator[Raw]:
    advice = "is that its address, and can it be reached?" if ":" in url else "`subjectloom inspect` says what is wrong"
    count = 0
    try:
        with closing(webdataset.gopen(url)) as stream:
            files = tariterators.tar_file_iterator(stream)
            for sample in tariterators.group_by_keys({"__url__": url, **file} for file in files):
                count += 1
                yield sample
    except (OSError, EOFError, ValueError, TarError) as error:
        raise InputError(f"the shard {url} cannot be read: {error}; {advice}") from error
    if expected is not None and count != expected:  # a tar cut off between two members ends like a whole one
        raise InputError(f"the shard {url} holds {count} samples, the index says {expected}; {advice}")


def shuffle(samples: Iterator[Raw], size: int, rng: np.random.Generator) -> Iterator[Raw]:
    """Yield all `samples`, each drawn at random from a buffer of `size`."""
    buffer: list[Raw] = []
    for sample in samples:
        buffer.append(sample)
        if len(buffer) == size:
            chosen = int(rng.integers(size))
            buffer[chosen], buffer[-1] = buffer[-1], buffer[chosen]
            yield buffer.pop()
    for chosen in rng.permutation(len(buffer)):
        yield buffer[chosen]
