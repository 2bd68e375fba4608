"""Train on a dataset: create the recipe's model, connect it to the data, run the loop, draw the curves."""

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from training.curves import write_curves
from training.diffusion import Parts
from training.loop import Metrics, RunConfig, this_process, train
from training.recipe import Training
from training.recipes import training_of
from training.shards import Shards, batches, batches_once, find_shards, read_texts
from transforms.models.presets import SAMPLE

SHOWN = 4
"""Number of samples for which a run draws sample pictures."""


def run_training(
    recipe: str, data: str, output: Path, config: RunConfig, *, preset: str, model: str | None, resume: bool
) -> Iterator[Metrics]:
    """Train a recipe's model on the dataset `data`, write everything to `output`, and yield each step's metrics.

    The run starts from the model in the folder `model`, by default from that of `preset`.

    Raises:
        SubjectloomError: the dataset, the model or the run's folder cannot be used, or a loss is not finite.
    """
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    training, shards = training_of(recipe), find_shards(data, recipe)
    trained = training.model(load_parts(training, shards, config, preset, model), config)
    training.prepare(trained, batches_once(shards, training.view, trained.tools, config), config)
    process = this_process()
    read = partial(batches, shards, training.view, trained.tools)
    show = next(read(config.plain().model_copy(update={"batch": SHOWN, "workers": 0})))

    def read_from(done: int) -> Iterator[dict[str, Any]]:
        return read(config, done, process.process_index, process.num_processes)

    origin = {"recipe": recipe, "data": fingerprint(shards), "preset": preset, "model": model}
    yield from train(trained, read_from, config, output, resume=resume, show=show, origin=origin)
    if process.is_main_process:
        write_curves(output)


def load_parts(training: Training, shards: Shards, config: RunConfig, preset: str, model: str | None) -> Parts:
    """Load the networks that a run starts from; those without weights get random ones from the config's seed."""
    torch.manual_seed(config.seed)
    if model:
        return training.load(model)
    if preset == "hub":
        return training.load()
    return training.small(SAMPLE / "autoencoder", read_texts(shards, training.texts), config.seed)


def fingerprint(shards: Shards) -> str:
    """Identify a dataset by the SHA-256 of its shards' names and, if they are local files, their sizes in bytes."""
    sizes = [Path(url).stat().st_size if Path(url).is_file() else "" for url in shards.urls]
    lines = "\n".join(f"{Path(url).name} {size}" for url, size in zip(shards.urls, sizes, strict=True))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"
