"""From a dataset's shards to batches of tensors: read, shuffled, divided, cropped, drawn.

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
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from tarfile import TarError
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import webdataset
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, ValidationError
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import CLIPTokenizer
from webdataset import tariterators

from schemas import mip_adapter
from schemas.dataset import StrictModel
from schemas.errors import InputError, RecordError
from schemas.fastcomposer import Record, Subject
from schemas.mip_adapter import ObjectField
from schemas.rejects import Reason
from training.geometry import Square, decode, open_jpeg, to_pixels
from training.references import cut_out, disturb, to_square
from training.tokenizer import locate

Batch = dict[str, Any]
Raw = Mapping[str, Any]
"""A sample as webdataset reads it: `__key__`, `__url__` and its members, `jpg`, `json`."""
Make = Callable[[Sequence[tuple[int, Raw]]], Batch]
"""Makes a batch of (epoch, sample) pairs; it holds `keys` and `skipped`, and no tensor where none could be read."""

SMALLEST = 1 / 4096
"""Share of the square below which a subject is gone: one pixel of the 64 x 64 latents of Stable Diffusion."""
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


class DataConfig(LoadConfig):
    """What a FastComposer batch is made of; rates as in the published run (mit-han-lab/fastcomposer)."""

    max_subjects: int = Field(default=4, gt=0, description="subjects of a sample; more are drawn from at random")
    unconditional: float = Field(default=0.1, ge=0, le=1, description="share of samples without caption and subjects")
    text_only: float = Field(
        default=0.0, ge=0, le=1, description="share of samples without subjects; the published script has 0"
    )
    subject_kept: float = Field(default=0.9, ge=0, le=1, description="probability that a subject stays")
    labels: tuple[str, ...] = Field(default=(), description="classes of the subjects; none: all. Published: person")
    augment: bool = Field(default=True, description="mirror pictures, disturb references")

    def plain(self) -> "DataConfig":
        """Nothing dropped and nothing disturbed: for looking at, and for measuring."""
        kept = {"unconditional": 0.0, "text_only": 0.0, "subject_kept": 1.0, "augment": False}
        return self.model_copy(update=kept)


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


def read_captions(shards: Shards, limit: int = 10_000) -> list[str]:
    """Read the captions of the first `limit` samples; those that cannot be read are left out."""
    captions = []
    for raw in islice(read_samples(shards), limit):
        with suppress(ValidationError):
            captions.append(_record(raw).caption)
    return captions


def read_samples(shards: Shards) -> Iterator[Raw]:
    """Read all samples once, in their order."""
    for url in shards.urls:
        yield from _read(url)


def batches(
    shards: Shards,
    tokenizer: CLIPTokenizer,
    config: DataConfig,
    done: int = 0,
    rank: int | None = None,
    world: int | None = None,
) -> Iterator[Batch]:
    """Yield FastComposer's batches, as `load` does.

    A batch holds

        keys                   list of B str
        pixel_values           [B, 3, R, R] float32 in [-1, 1]
        input_ids              [B, L] int64
        subject_token_mask     [B, L] bool, where a subject's token stands
        subject_token_index    [B, M] int64, its position; 0 beyond the sample's subjects
        subject_mask           [B, M] bool, which of the M are subjects
        subject_pixel_values   [B, M, 3, r, r] float32 in [0, 1], references (CLIP's mean and spread are the encoder's)
        subject_segmentation   [B, M, R, R] float32, 0 or 1
        num_subjects           [B] int64
        skipped                list of str: samples that could not be read, and why; the batch is that much smaller,
                               and one of which nothing is left gives place to the next

    Raises:
        InputError: a shard cannot be read, or of `PATIENCE` batches not one sample.
    """
    make = partial(make_batch, tokenizer=tokenizer, config=config)
    yield from map(as_floats, load(shards, make, config, done, rank, world))


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


def make_batch(samples: Sequence[tuple[int, Raw]], tokenizer: CLIPTokenizer, config: DataConfig) -> Batch:
    """Make a batch of (epoch, sample) pairs, pictures, references and masks as bytes; `as_floats` finishes it."""
    return stack(samples, partial(view, tokenizer=tokenizer, config=config))


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


def view(raw: Raw, epoch: int, tokenizer: CLIPTokenizer, config: DataConfig) -> dict[str, torch.Tensor]:
    """Make one sample's tensors, pixels as bytes: a function of (sample, seed, epoch)."""
    record = _record(raw)
    opened = open_jpeg(raw.get("jpg", b""), record.width, record.height)
    rng = rng_of(config.seed, epoch, record.key)
    square = Square(record.width, record.height, config.resolution, config.augment and bool(rng.random() < 0.5))
    caption, subjects = drop(record, config, rng)
    ids, places = locate(caption, subjects, tokenizer)
    kept = []
    for subject, place in zip(subjects, places, strict=True):
        check(subject, record)
        if place is not None:
            mask = subject.segmentation.to_mask()
            pixels = to_pixels(mask, subject.area)
            shown = square.of_mask(pixels)
            if shown.mean() >= SMALLEST:
                kept.append(_Kept(place, mask.bbox, pixels, shown))
    picture = decode(opened, square, [one.bbox for one in kept], config.reference)
    return _tensors(kept, ids, square, picture, config, rng)


def rng_of(seed: int, epoch: int, key: str) -> np.random.Generator:
    """Make the generator of all that is drawn about a sample in an epoch."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return np.random.default_rng([seed, epoch, int.from_bytes(digest, "big")])


def check(subject: Subject | ObjectField, record: Record | mip_adapter.Record) -> None:
    """Raise a RecordError where a subject or object does not fit the caption or the picture of its record."""
    if record.caption[subject.start : subject.end] != subject.text:
        where = f"{subject.start} to {subject.end} of the caption"
        raise RecordError(Reason.MISMATCHED_ANNOTATION, f"{subject.text!r} does not stand at {where}")
    height, width = subject.segmentation.size
    if (width, height) != (record.width, record.height):
        stated = f"{width} x {height} pixels, the picture {record.width} x {record.height}"
        raise RecordError(Reason.MISMATCHED_ANNOTATION, f"the mask of {subject.text!r} has {stated}")


@dataclass(frozen=True)
class _Kept:
    """A subject of a sample: its token, box and mask [H, W] bool in the picture, and mask in the square."""

    place: int
    bbox: tuple[int, int, int, int]
    mask: NDArray[np.bool_]
    shown: NDArray[np.bool_]


def drop(record: Record, config: DataConfig, rng: np.random.Generator) -> tuple[str, list[Subject]]:
    """Draw what a sample shows of its caption and its subjects, these in the order of their phrases' ends.

    One draw decides over caption and subjects, then one over each subject, as published; subjects beyond
    `max_subjects` are left out at random.
    """
    draw = rng.random()
    if draw < config.unconditional:
        return "", []
    if draw < config.unconditional + config.text_only:
        return record.caption, []
    subjects = [subject for subject in record.subjects if not config.labels or subject.label in config.labels]
    subjects = [subject for subject in subjects if rng.random() < config.subject_kept]
    if len(subjects) > config.max_subjects:
        chosen = rng.choice(len(subjects), config.max_subjects, replace=False)
        subjects = [subjects[i] for i in sorted(chosen)]
    return record.caption, sorted(subjects, key=lambda subject: subject.end)


def _tensors(
    kept: Sequence[_Kept],
    ids: Sequence[int],
    square: Square,
    picture: Image.Image,
    config: DataConfig,
    rng: np.random.Generator,
) -> dict[str, torch.Tensor]:
    most, side, small = config.max_subjects, config.resolution, config.reference
    index = np.zeros(most, np.int64)
    segmentation = np.zeros((most, side, side), bool)
    references = np.zeros((most, small, small, 3), np.uint8)
    pixels = np.asarray(picture)
    for j, one in enumerate(kept):
        crop = cut_out(pixels, one.mask, one.bbox, rng)
        references[j] = disturb(crop, small, rng) if config.augment else np.asarray(to_square(crop, small))
        index[j] = one.place
        segmentation[j] = one.shown
    marks = np.zeros(len(ids), bool)
    marks[index[: len(kept)]] = True
    shown = torch.from_numpy(np.ascontiguousarray(square.of_picture(picture).transpose(2, 0, 1)))
    return {
        "pixel_values": shown,
        "input_ids": torch.tensor(ids),
        "subject_token_mask": torch.from_numpy(marks),
        "subject_token_index": torch.from_numpy(index),
        "subject_mask": torch.arange(most) < len(kept),
        "subject_pixel_values": torch.from_numpy(references).permute(0, 3, 1, 2),
        "subject_segmentation": torch.from_numpy(segmentation),
        "num_subjects": torch.tensor(len(kept)),
    }


def _record(raw: Raw) -> Record:
    return Record.model_validate_json(raw.get("json", b""))
