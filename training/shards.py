"""From a dataset's shards to batches, of any recipe: read, shuffled, divided among workers and processes.

Everything is a function of (seed, epoch, key), and the order of (seed, epoch, part), where a part is what one worker
of one process reads. So a run that goes on after its n-th batch gets the same (n + 1)-th, and it skips the n without
decoding a picture.

A part reads whole shards, others in each epoch; where a dataset has fewer shards than there are parts, each part reads
all of them and keeps every so-many-th sample. Parts begin their next epoch on their own, none waits for another.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tarfile import TarError
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import webdataset
from pydantic import Field
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset import tariterators

from schemas.dataset import StrictModel
from schemas.errors import InputError, RecordError

Batch = dict[str, Any]
Raw = Mapping[str, Any]
"""A sample as webdataset reads it: `__key__`, `__url__` and its members, `jpg`, `json`."""
Make = Callable[[Sequence[tuple[int, Raw]]], Batch]
"""Makes a batch of (epoch, sample) pairs; it holds `keys` and `skipped`, and no tensor where none could be read."""

SHUFFLED = 500
"""Samples, undecoded, that a worker keeps in hand to draw the next one from."""
PATIENCE = 100
"""Epochs without a sample, or batches of which nothing can be read, in a row, after which a worker gives up."""


class LoadConfig(StrictModel):
    """What the batches of every recipe have in common."""

    resolution: int = Field(default=512, gt=0, multiple_of=8, description="side of the pictures, in pixels")
    reference: int = Field(default=224, gt=0, description="side of what an image encoder is shown, in pixels")
    batch: int = Field(default=16, gt=0, description="samples per process and micro-batch")
    workers: int = Field(default=2, ge=0, description="processes that load for each process that trains")
    seed: int = Field(default=42, ge=0, description="of weights, batches and noise")


@dataclass(frozen=True)
class Shards:
    """Where the samples are: addresses of tars, and how many samples each holds where an index tells."""

    urls: tuple[str, ...]
    counts: tuple[int, ...] | None


def find_shards(data: str, recipe: str = "fastcomposer") -> Shards:
    """Find the shards of a dataset of `recipe`.

    Args:
        data: its folder, or the tars themselves as webdataset writes them: a path, `http://...`, `pipe:...`, with
            braces, "shard-{000000..000009}.tar", for many.
        recipe: what the folder's tars are named by.

    Raises:
        InputError: there is none.
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
    """Read all samples once, in their order."""
    for url in shards.urls:
        yield from _read(url)


def load(
    shards: Shards, make: Make, config: LoadConfig, done: int = 0, rank: int | None = None, world: int | None = None
) -> Iterator[Batch]:
    """Yield the batches that `make` makes without end, epoch after epoch, from the one after the first `done`.

    Process `rank` of `world` gets batches of its own; by default they are those of torch.distributed or, before it is
    set up, of its launcher. They and `config` must be the same where a run goes on.

    Raises:
        InputError: a shard cannot be read, or of `PATIENCE` batches not one sample.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive the fork
    here = rank_and_world()
    rank, world = here[0] if rank is None else rank, here[1] if world is None else world
    stream = _Stream(shards, make, config, done, rank, world)
    loader = DataLoader(stream, batch_size=None, num_workers=config.workers, pin_memory=torch.cuda.is_available())
    for batch in loader:
        if "error" in batch:
            raise InputError(batch["error"])
        yield batch


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and how many processes there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class _Stream(IterableDataset[Batch]):
    """What one worker reads: its part of the samples, in batches."""

    def __init__(self, shards: Shards, make: Make, config: LoadConfig, done: int, rank: int, world: int) -> None:
        self.shards, self.make, self.config = shards, make, config
        self.done, self.rank, self.world = done, rank, world

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        if info:
            torch.set_num_threads(1)
        # Batches come from the workers in turn. The first one asked is whose turn it is after `done`.
        turn = (worker + self.done) % workers
        skipped = len(range(turn, self.done, workers))
        part, parts = self.rank * workers + turn, self.world * workers
        samples = _samples(self.shards, self.config.seed, part, parts, skipped * self.config.batch)
        try:
            yield from self._batches(samples)
        except InputError as error:  # as a value: across processes an exception loses its one line
            yield {"error": str(error)}

    def _batches(self, samples: Iterator[tuple[int, Raw]]) -> Iterator[Batch]:
        # The n-th batch is made of the n-th samples, so that a run can go on by counting. In place of one of which
        # nothing can be read stands the next one, and that comes again in its own turn.
        ahead: deque[Batch] = deque()
        while True:
            while not any(batch["keys"] for batch in ahead):
                if len(ahead) == PATIENCE:
                    why = f"{ahead[0]['skipped'][0]}. `subjectloom inspect` says what is wrong"
                    raise InputError(f"no sample of {PATIENCE} batches can be read: {why}")
                chosen = [next(samples) for _ in range(self.config.batch)]
                ahead.append(self.make(chosen))
            batch = ahead.popleft()
            yield batch if batch["keys"] else {**ahead[-1], "skipped": batch["skipped"]}


def _samples(shards: Shards, seed: int, part: int, parts: int, skip: int) -> Iterator[tuple[int, Raw]]:
    """Yield (epoch, sample) of a part, shuffled, epoch after epoch, without the first `skip`."""
    epoch = barren = 0
    while barren < PATIENCE:
        rng = np.random.default_rng([seed, epoch, part])
        seen = _count(shards, seed, epoch, part, parts)
        if seen is not None and seen <= skip:
            skip -= seen
        else:
            seen = 0
            for sample in shuffle(_part(shards, seed, epoch, part, parts), SHUFFLED, rng):
                seen += 1
                if skip:
                    skip -= 1
                else:
                    yield epoch, sample
        barren = 0 if seen else barren + 1
        epoch += 1
    raise InputError(f"no sample for worker {part + 1} of {parts}: the dataset has fewer samples than readers")


def _order(shards: Shards, seed: int, epoch: int, part: int, parts: int) -> tuple[list[int], int, int]:
    """Which shards a part reads in an epoch, and that it keeps sample `first`, `first` + `step` and so on of them."""
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


def _read(url: str, count: int | None = None) -> Iterator[Raw]:
    advice = "is that its address, and can it be reached?" if ":" in url else "`subjectloom inspect` says what is wrong"
    seen = 0
    try:
        with closing(webdataset.gopen(url)) as stream:
            files = tariterators.tar_file_iterator(stream)
            for sample in tariterators.group_by_keys({"__url__": url, **file} for file in files):
                seen += 1
                yield sample
    except (OSError, EOFError, ValueError, TarError) as error:
        raise InputError(f"the shard {url} cannot be read: {error}; {advice}") from error
    if count is not None and seen != count:  # a tar cut off between two members ends like a whole one
        raise InputError(f"the shard {url} holds {seen} samples, the index says {count}; {advice}")


def shuffle(samples: Iterator[Raw], size: int, rng: np.random.Generator) -> Iterator[Raw]:
    """Yield all `samples`, each drawn from the `size` that are in hand."""
    hand: list[Raw] = []
    for sample in samples:
        hand.append(sample)
        if len(hand) == size:
            chosen = int(rng.integers(size))
            hand[chosen], hand[-1] = hand[-1], hand[chosen]
            yield hand.pop()
    for chosen in rng.permutation(len(hand)):
        yield hand[chosen]


def stack(samples: Sequence[tuple[int, Raw]], make_view: Callable[[Raw, int], dict[str, Any]]) -> Batch:
    """Make a batch of what `make_view` makes of (sample, epoch): tensors stacked, anything else in a list.

    Samples that cannot be read are told in `skipped`; where none is left there is no tensor.
    """
    views, skipped = [], []
    for epoch, raw in samples:
        key = raw["__key__"]
        try:
            views.append({"key": key, **make_view(raw, epoch)})
        except (RecordError, ValueError) as error:  # pydantic's and pycocotools' are ValueErrors
            skipped.append(f"{key}: {' '.join(str(error).split())[:200]}")
    columns = {name: [one[name] for one in views] for name in (views[0] if views else ())}
    stacked = {
        name: torch.stack(values) if isinstance(values[0], torch.Tensor) else values for name, values in columns.items()
    }
    return {"keys": stacked.pop("key", []), **stacked, "skipped": skipped}


def as_floats(batch: Batch) -> Batch:
    """Finish a batch of any recipe, by its tensors' names: the picture to [-1, 1], others to [0, 1], masks to 0 or 1.

    Between processes pixels travel as bytes: four times less to copy, a third of a worker's time.
    """
    finished = dict(batch)
    for name, value in batch.items():
        if name == "pixel_values":
            finished[name] = value.float().div_(127.5).sub_(1)
        elif name.endswith("_pixel_values"):
            finished[name] = value.float().div_(255)
        elif name.endswith("_segmentation"):
            finished[name] = value.float()
    return finished


def rng_of(seed: int, epoch: int, key: str) -> np.random.Generator:
    """Make the generator of all that is drawn about a sample in an epoch."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return np.random.default_rng([seed, epoch, int.from_bytes(digest, "big")])
