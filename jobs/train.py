"""Train on a dataset: make the model, bind it to its data, run the loop, draw the curves."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from training.curves import write_curves
from training.data import Shards, batches, find_shards, read_captions
from training.fastcomposer import FastComposer, Parts, load_parts
from training.small import SIDE, small_parts
from training.train import Metrics, TrainConfig, this_process, train
from transforms.models.presets import SAMPLE

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # From nothing, on pictures of 64 pixels: minutes on a CPU.
    "sample": {
        "resolution": SIDE,
        "reference": SIDE,
        "steps": 400,
        "learning_rate": 1e-3,
        "warmup": 50,
        "average": 0.99,
        "localization_weight": 1e-2,
        "train_encoders": True,
        "checkpoint_every": 100,
        "sample_every": 100,
    },
    "hub": {"precision": "bf16", "gradient_checkpointing": True},
}
"""What a preset says of `TrainConfig`; `hub` is the published run, as it fits one large GPU."""
STABLE_DIFFUSION = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SHOWN = 4
"""Samples that the pictures of a run are drawn for."""


def run_training(
    data: str, output: Path, config: TrainConfig, *, preset: str, model: str | None, resume: bool
) -> Iterator[Metrics]:
    """Train a FastComposer model on the dataset `data`, leaving everything in `output`; yield each step's metrics.

    `model` is a folder in Stable Diffusion 1.5's layout; without it the preset's: a small one from nothing, or Stable
    Diffusion 1.5 itself.

    Raises:
        SubjectloomError: the dataset, the model or the run's folder cannot be used, or a loss is no number.
    """
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    shards = find_shards(data)
    fastcomposer = FastComposer(
        load_model(preset, model, shards, config.seed),
        localization_weight=config.localization_weight,
        mask_probability=config.mask_probability,
        trained_blocks=config.trained_blocks,
        train_encoders=config.train_encoders,
    )
    process = this_process()
    plain = config.plain().model_copy(update={"batch": SHOWN, "workers": 0})
    show = next(batches(shards, fastcomposer.tokenizer, plain))

    def read(done: int) -> Iterator[dict[str, Any]]:
        return batches(shards, fastcomposer.tokenizer, config, done, process.process_index, process.num_processes)

    yield from train(fastcomposer, read, config, output, resume=resume, show=show)
    if process.is_main_process:
        write_curves(output)


def load_model(preset: str, model: str | None, shards: Shards, seed: int) -> Parts:
    """Load the networks that a run starts from."""
    if model:
        return load_parts(model)
    if preset == "hub":
        torch.manual_seed(seed)  # the fuser's fresh weights
        return load_parts(STABLE_DIFFUSION)
    return small_parts(SAMPLE / "autoencoder", read_captions(shards), seed)
