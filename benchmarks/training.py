"""Steps per second of a training run, by what is switched on; and whether the loader keeps up.

    python -m benchmarks.training

The variants take their steps in turn, in this process, from the same weights: what else the machine does slows all of
them alike. The model is the small FastComposer, with pictures of 64 pixels in batches of 8, read before the step. The
first variant updates the moving average parameter by parameter, the others by torch's functions for lists of tensors;
with kept latents, each step's pictures have been encoded before. The last row is about the loader alone, in one
process: how many samples it makes in the time in which a plain step trains on one.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import islice, repeat
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from accelerate import Accelerator
from diffusers import AutoencoderKL

from benchmarks.localization import TRAINING, examples_of
from benchmarks.tables import Row, Write, report
from tests.datasets import write_dataset
from training.configs.fastcomposer import PRESETS, Config
from training.latents import LatentCache, open_cache
from training.recipes.fastcomposer import Model, small, texts, view
from training.setup import set_up
from training.shards import Batch, Shards, batches, find_shards, read_texts
from training.tokenizer import small_tokenizer
from training.trainer import Trainer
from transforms.models.places import SAMPLE

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "moving average in a loop": {},
    "plain": {},
    "kept latents": {"latent_cache": "run"},
    "fused AdamW": {"optimizer": "adamw_fused"},
    "channels last": {"channels_last": True},
    "fused AdamW, kept latents": {"optimizer": "adamw_fused", "latent_cache": "run"},
}
"""Config fields of each variant; `compile` is left out, as compiling takes longer than all of the rest."""


def new_trainer(captions: list[str], config: Config, cache: LatentCache | None) -> Trainer:
    """Make a model and the state of its run."""
    model = Model(small(SAMPLE / "autoencoder", captions, seed=0), config)
    set_up(model, config)
    return Trainer.of(model, config, Accelerator(mixed_precision=config.precision), cache)


def seconds_of_steps(trainer: Trainer, stream: Iterator[Batch], first: int, steps: int, output: Path) -> float:
    """Seconds that `steps` steps take."""
    if trainer.accelerator.device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for step in range(first, first + steps):
        trainer.step(step, stream, output, None)  # its metrics are read, so that it has ended
    return time.perf_counter() - began


def loader_rate(shards: Shards, tokenizers: Any, config: Config, samples: int) -> float:  # noqa: ANN401
    """Samples per second of the loader alone, in this process."""
    stream = batches(shards, view, tokenizers, config, device="meta")
    next(stream)
    began = time.perf_counter()
    list(islice(stream, samples // config.batch))
    return samples // config.batch * config.batch / (time.perf_counter() - began)


def main(
    steps: Annotated[int, typer.Option(help="Steps measured in each round.")] = 4,
    rounds: Annotated[int, typer.Option(help="Measurements of each variant.")] = 5,
    write: Write = False,
) -> None:
    """Measure all variants in turn."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_dataset(data, [examples_of(TRAINING, 32, 256)])
        shards = find_shards(str(data), "fastcomposer")
        captions = read_texts(shards, texts)
        config = Config(**{**PRESETS["sample"], "batch": 8, "workers": 0, "mirror": False})
        tools = small_tokenizer(captions)
        vae = AutoencoderKL.from_pretrained(SAMPLE / "autoencoder")
        trainers: dict[str, Trainer] = {}
        streams: dict[str, Iterator[Batch]] = {}
        for name, fields in VARIANTS.items():
            changed = config.model_copy(update=dict(fields))
            cache = open_cache(Path(folder) / "latents", vae, "no", 1.0) if "latent_cache" in fields else None
            trainers[name] = new_trainer(captions, changed, cache)
            if name == "moving average in a loop" and (average := trainers[name].average):
                average.foreach = False
            streams[name] = batches(shards, view, tools, changed, latents=cache)
        times: dict[str, list[float]] = {name: [] for name in VARIANTS}
        for name, trainer in trainers.items():
            seconds_of_steps(trainer, streams[name], 0, 4, Path(folder))
        kept = {name: list(islice(streams[name], 4)) for name in VARIANTS}
        for number in range(rounds):
            for name, trainer in trainers.items():
                stream = (batch for group in repeat(kept[name]) for batch in group)
                times[name].append(seconds_of_steps(trainer, stream, 4 + number * steps, steps, Path(folder)))
        loader = loader_rate(shards, tools, config, 64)
    rates = {name: steps / statistics.median(measured) for name, measured in times.items()}
    rows = [
        Row(name, f"{rate:.2f} steps/s", f"{rate / rates['plain']:.2f} times plain") for name, rate in rates.items()
    ]
    need = rates["plain"] * config.batch
    rows.append(Row("the loader alone", f"{loader:.1f} samples/s", f"{loader / need:.1f} times what plain steps read"))
    report("training", __doc__ or "", rows, write=write)


if __name__ == "__main__":
    typer.run(main)
