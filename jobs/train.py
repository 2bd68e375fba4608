"""Train on a dataset: create the recipe's model, connect it to the data, run the loop, draw the curves."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from training.config import RunConfig
from training.curves import write_curves
from training.diffusion import LatentDiffusion, Parts
from training.held_out import held_out_batches, split_held_out
from training.latents import LatentCache, open_cache
from training.log import Metrics
from training.loop import this_process, train
from training.prompts import batch_of_prompts
from training.recipe import Training
from training.recipes import training_of
from training.shards import Batch, Shards, batches, batches_once, find_shards, read_texts
from transforms.models.places import SAMPLE

logger = logging.getLogger(__name__)

SHOWN = 4
"""Number of samples for which a run draws sample pictures."""


def run_training(
    recipe: str,
    data: str | Sequence[str],
    output: Path,
    config: RunConfig,
    *,
    preset: str,
    model: str | None,
    resume: bool,
    report: Callable[[str], None] = logger.warning,
) -> Iterator[Metrics]:
    """Train a recipe's model on datasets, write everything to `output`, and yield each step's metrics.

    Args:
        recipe: the recipe.
        data: a dataset or several, as `find_shards` reads them.
        output: the run's folder.
        config: how to train.
        preset: what the run starts from.
        model: folder of a model that it starts from instead.
        resume: continue from the newest checkpoint.
        report: called with a line if a resumed run reads another number of samples in a step.

    Raises:
        SubjectloomError: the dataset, the model or the run's folder cannot be used, or a loss is not finite.
    """
    training, process = training_of(recipe), this_process()
    with process.local_main_process_first():  # the others find the places of samples at addresses in the cache
        shards = find_shards(data, recipe)
    trained = load_model(training, shards, config, preset, model)
    places = [data] if isinstance(data, str) else list(data)
    origin = {"recipe": recipe, "data": fingerprint(shards), "data_path": places, "preset": preset, "model": model}
    if config.prompts:
        show = batch_of_prompts(recipe, training, shards, trained.tools, config)
    else:
        quick = config.plain().model_copy(update={"batch": SHOWN, "workers": 0})
        show = next(batches(shards, training.view, trained.tools, quick))
    held_out: list[Batch] = []
    if config.held_out:
        shards, apart = split_held_out(shards, config.held_out, config.seed)
        held_out = held_out_batches(apart, training.view, trained.tools, config, report)
    latents = open_latents(trained, config, output, report) if config.latent_cache else None
    read = partial(batches, shards, training.view, trained.tools, config, latents=latents)

    def read_from(start: int) -> Iterator[dict[str, Any]]:
        return read(start, process.process_index, process.num_processes, process.device)

    yield from train(
        trained,
        read_from,
        config,
        output,
        resume=resume,
        show=show,
        held_out=held_out,
        latents=latents,
        origin=origin,
        report=report,
    )
    if process.is_main_process:
        write_curves(output)


def open_latents(model: LatentDiffusion, config: RunConfig, output: Path, report: Callable[[str], None]) -> LatentCache:
    """Open the latents that a run reads and keeps, in the folder that the config names."""
    folder = output / "latents" if config.latent_cache == "run" else Path(config.latent_cache or "")
    precision = f"{config.precision}, tf32 {config.tf32}"
    return open_cache(folder, model.vae, precision, config.latent_cache_gb, this_process().num_processes, report)


def load_model(
    training: Training, shards: Shards, config: RunConfig, preset: str, model: str | None
) -> LatentDiffusion:
    """Create the model that a run starts from."""
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    trained = training.model(load_parts(training, shards, config, preset, model), config)
    training.prepare(trained, batches_once(shards, training.view, trained.tools, config), config)
    return trained


def load_parts(training: Training, shards: Shards, config: RunConfig, preset: str, model: str | None) -> Parts:
    """Load the networks that a run starts from; those without weights get random ones from the config's seed.

    The preset `sample` starts from the sample text-to-image model.
    """
    torch.manual_seed(config.seed)
    if model:
        return training.load(model)
    if preset == "hub":
        return training.load()
    return training.small(SAMPLE / "text_to_image", read_texts(shards, training.texts), config.seed)


def fingerprint(shards: Shards) -> str:
    """Identify datasets by the SHA-256 of their tars' names, the places of their samples, and their weights.

    Where the tars lie does not matter: a run can go on with a copy of them.
    """
    digest = hashlib.sha256(str([group.slots for group in shards.groups]).encode())
    for tar in shards.tars:
        digest.update(f"{tar.url.rpartition('/')[2]}\n".encode())
        digest.update(tar.places.tobytes())
    return f"sha256:{digest.hexdigest()}"
