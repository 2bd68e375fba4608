"""Samples per processor second of the loader, beside the published trainer's steps over the same dataset's export.

    python -m benchmarks.loader

The peer is a `torch.utils.data.Dataset` over the folder that `subjectloom export --format fastcomposer` writes, with
the steps of mit-han-lab/fastcomposer's loader, reimplemented: a sample is a JPEG, a JSON and a `.npy` file, and
torchvision's transforms run one after the other on the picture in full size, which is copied for each subject. Both
run in turn, in this process, on scenes of 768 pixels at a resolution of 512. Decoding the JPEGs alone is the upper
bound. The processor's time is measured, so that what else the machine does hardly matters.

The last rows are about the way to the device: a batch crosses as bytes, and its floats take time where they are made,
which is not the training process if the device is a GPU.
"""

import io
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, read_image
from torchvision.transforms import v2

from benchmarks.localization import TRAINING, examples_of
from benchmarks.tables import Row, Write, report
from jobs.exports.fastcomposer import export_fastcomposer
from tests.datasets import write_dataset
from training.configs.fastcomposer import Config
from training.recipes.fastcomposer import texts, view
from training.shards import Batch, Pixels, batches, find_shards, make_batch, read_samples, read_texts, to_device
from training.tokenizer import small_tokenizer

RESOLUTION, REFERENCE, MOST = 512, 224, 4


class PublishedSteps(Dataset[dict[str, torch.Tensor]]):
    """The published loader's steps, in its order (fastcomposer/data.py and transforms.py)."""

    def __init__(self, folder: Path, captions: list[str]) -> None:
        self.folder = folder
        self.ids = (folder / "image_ids_train.txt").read_text().split()
        self.tokenizer = small_tokenizer(captions)
        self.resize = v2.Resize(RESOLUTION, antialias=True)
        self.disturb = v2.Compose(
            [
                v2.RandomApply([v2.RandomAffine(30, interpolation=v2.InterpolationMode.BILINEAR)], 0.75),
                v2.RandomApply([v2.ColorJitter(0.5, 0.5, 0.5, 0.5)], 0.5),
                v2.RandomApply([v2.GaussianBlur(5, (0.1, 2.0))], 0.5),
                v2.RandomGrayscale(0.1),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([v2.ElasticTransform()], 0.5),
            ]
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        """Load and transform a sample."""
        path = self.folder / self.ids[number][:5] / self.ids[number]
        image = read_image(f"{path}.jpg", ImageReadMode.RGB)
        record = json.loads(path.with_suffix(".json").read_text())
        labels = torch.from_numpy(np.load(f"{path}.npy"))
        picture, small = self._target(image, labels)
        segments = [segment for segment in record["segments"] if torch.rand(()) < 0.9]
        chosen = torch.randperm(len(segments))[:MOST].tolist()
        segments = sorted((segments[i] for i in chosen), key=lambda segment: segment["end"])
        caption = record["caption"]
        for segment in reversed(segments):
            caption = f"{caption[: segment['end']]}<|image|>{caption[segment['end'] :]}"
        ids = self.tokenizer(caption.replace("<|image|>", ""), padding="max_length", truncation=True).input_ids
        noise = torch.randint(0, 255, image.shape, dtype=torch.uint8)
        references = torch.zeros(MOST, 3, REFERENCE, REFERENCE)
        masks = torch.zeros(MOST, RESOLUTION, RESOLUTION)
        for j, segment in enumerate(segments):
            x1, y1, x2, y2 = segment["bbox"]
            outside, shown = labels != segment["id"], image.clone()
            shown[:, outside] = noise[:, outside]
            references[j] = self.disturb(self._square(shown[:, y1:y2, x1:x2])).float() / 255
            masks[j] = (small == segment["id"]).float()
        return {
            "pixel_values": picture.float() / 127.5 - 1,
            "input_ids": torch.tensor(ids),
            "object_pixel_values": references,
            "object_segmaps": masks,
        }

    def _target(self, image: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        both = torch.cat([self.resize(image), self._nearest(labels)[None]])
        if torch.rand(()) < 0.5:
            both = both.flip(-1)
        both = v2.functional.center_crop(both, [min(both.shape[-2:])] * 2)
        return both[:3], both[3]

    def _nearest(self, labels: torch.Tensor) -> torch.Tensor:
        return v2.functional.resize(labels[None], [RESOLUTION], interpolation=v2.InterpolationMode.NEAREST)[0]

    def _square(self, crop: torch.Tensor) -> torch.Tensor:
        if torch.rand(()) < 0.5:
            zoom = 1 + float(torch.rand(()))
            crop = v2.functional.resize(crop, [int(length * zoom) for length in crop.shape[-2:]], antialias=True)
            crop = crop[:, : crop.shape[2]]
        height, width = crop.shape[-2:]
        side = max(height, width)
        left, top = (side - width) // 2, (side - height) // 2
        square = F.pad(crop, (left, side - width - left, top, side - height - top))
        return v2.functional.resize(square, [REFERENCE, REFERENCE], antialias=True)


def rate(stream: Iterator[Any], samples: int, per_item: int) -> float:
    """Samples per processor second over `samples`, after a warm-up of a quarter as many."""
    for _ in range(max(1, samples // 4 // per_item)):
        next(stream)
    began = time.process_time()
    for _ in range(samples // per_item):
        next(stream)
    return samples / (time.process_time() - began)


def decode_alone(jpegs: list[bytes]) -> Iterator[None]:
    """Decode pictures without end, at full size, and do nothing with them."""
    while True:
        for jpeg in jpegs:
            Image.open(io.BytesIO(jpeg)).convert("RGB")
            yield


def device_rows(batch: Batch) -> Iterator[Row]:
    """What of a batch crosses to the device, and how long its floats take in the training process."""
    pixels = [value for value in batch.values() if isinstance(value, Pixels)]
    sent = sum(value.values.nbytes for value in pixels)
    yield Row(
        "pixels that cross to the device",
        f"{sent / 1e6:.0f} MB",
        f"{sum(p.values.numel() for p in pixels) * 4 / 1e6:.0f} MB as floats",
    )
    for device in ("cpu", "meta"):
        seconds = []
        for _ in range(9):
            began = time.process_time()
            to_device(batch, device)
            seconds.append(time.process_time() - began)
        where = "on the processor" if device == "cpu" else "on another device"
        yield Row(
            f"floats of a batch of {len(batch['keys'])}, {where}",
            f"{statistics.median(seconds) * 1000:.1f} ms",
            "of the training process",
        )


def main(
    samples: Annotated[int, typer.Option(help="Samples measured in each round.")] = 96,
    size: Annotated[int, typer.Option(help="Side of the scenes, in pixels.")] = 768,
    rounds: Annotated[int, typer.Option(help="Measurements of each loader.")] = 3,
    write: Write = False,
) -> None:
    """Measure both loaders in turn."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data, exported = Path(folder) / "data", Path(folder) / "exported"
        examples = examples_of(TRAINING, 48, size)
        write_dataset(data, [examples])
        export_fastcomposer(str(data), exported, held_out=0)
        shards = find_shards(str(data), "fastcomposer")
        captions = read_texts(shards, texts)
        config = Config(unconditional=0.0, batch=8, workers=0)
        devices = {"this loader, floats on the processor": "cpu", "this loader, floats on another device": "meta"}
        rates: dict[str, list[float]] = {name: [] for name in ("published steps", *devices, "decoding alone")}
        for _ in range(rounds):
            peer = DataLoader(PublishedSteps(exported, captions), 8, shuffle=True)
            rates["published steps"].append(rate(chain.from_iterable(repeat(peer)), samples, 8))
            for name, device in devices.items():
                stream = batches(shards, view, small_tokenizer(captions), config, device=device)
                rates[name].append(rate(stream, samples, 8))
            rates["decoding alone"].append(rate(decode_alone([example.image for example in examples]), samples, 1))
        shown = [(0, raw) for raw in islice(read_samples(shards), 16)]
        batch = make_batch(shown, view, small_tokenizer(captions), config)
    peers = rates["published steps"]
    rows = [
        Row(
            name,
            f"{statistics.median(measured):.1f} samples per processor second",
            f"{statistics.median(a / b for a, b in zip(measured, peers, strict=True)):.2f} times the published steps",
        )
        for name, measured in rates.items()
    ]
    rows.append(Row("subjects per scene", f"{np.mean([len(e.matches) for e in examples]):.1f}"))
    rows += [*device_rows(batch)]
    report("loader", __doc__ or "", rows, write=write)


if __name__ == "__main__":
    typer.run(main)
