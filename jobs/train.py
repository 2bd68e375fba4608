"""Train on a dataset: make the model, bind it to its data, run the loop, draw the curves."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from training.blip_data import each_once, pairs, read_prompts
from training.blip_diffusion import BlipDiffusion, BlipParts, load_blip_parts, without_subjects
from training.curves import write_curves
from training.data import batches, read_captions
from training.fastcomposer import FastComposer, Parts, load_parts
from training.mip_adapter import MipAdapter, MipParts, load_mip_parts
from training.mip_data import object_batches, read_texts
from training.shards import Shards, find_shards
from training.small import SIDE, small_blip_parts, small_mip_parts, small_parts
from training.train import (
    BlipTrainConfig,
    Metrics,
    MipTrainConfig,
    Model,
    RunConfig,
    TrainConfig,
    this_process,
    train,
)
from transforms.models.presets import SAMPLE

CONFIGS: Mapping[str, type[TrainConfig | BlipTrainConfig | MipTrainConfig]] = {
    "fastcomposer": TrainConfig,
    "blip-diffusion": BlipTrainConfig,
    "mip-adapter": MipTrainConfig,
}
"""What can be chosen about the training of each recipe."""

# From nothing, on pictures of 64 pixels: minutes on a CPU.
_SMALL: Mapping[str, Any] = {
    "resolution": SIDE,
    "reference": SIDE,
    "steps": 400,
    "learning_rate": 1e-3,
    "warmup": 50,
    "average": 0.99,
    "train_encoders": True,
    "checkpoint_every": 100,
    "sample_every": 100,
}
_LARGE: Mapping[str, Any] = {"precision": "bf16", "gradient_checkpointing": True}

PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "fastcomposer": {"sample": {**_SMALL, "localization_weight": 1e-2}, "hub": _LARGE},
    "blip-diffusion": {"sample": {**_SMALL, "unconditional": 0.1}, "hub": _LARGE},
    "mip-adapter": {"sample": {**_SMALL, "batch": 16}, "hub": _LARGE},
}
"""What the presets of each recipe say of its config; `hub` is the published run, as it fits one large GPU."""
STABLE_DIFFUSION = "stable-diffusion-v1-5/stable-diffusion-v1-5"
BLIP_DIFFUSION = "Salesforce/blipdiffusion"
SHOWN = 4
"""Samples that the pictures of a run are drawn for."""

Read = Callable[..., Iterator[dict[str, Any]]]
"""Yields batches, given a config, how many are done, this process's rank and how many processes there are."""


def run_training(
    recipe: str, data: str, output: Path, config: RunConfig, *, preset: str, model: str | None, resume: bool
) -> Iterator[Metrics]:
    """Train a recipe's model on the dataset `data`, leaving everything in `output`; yield each step's metrics.

    `model` is a folder to start from; without it the preset's: a small model from nothing, or the published one.

    Raises:
        SubjectloomError: the dataset, the model or the run's folder cannot be used, or a loss is no number.
    """
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    shards = find_shards(data, recipe)
    if isinstance(config, BlipTrainConfig):
        trained, read = bind_blip_diffusion(shards, config, load_blip(preset, model, shards, config.seed))
    elif isinstance(config, MipTrainConfig):
        trained, read = bind_mip_adapter(shards, config, load_mip(preset, model, shards, config.seed))
    else:
        assert isinstance(config, TrainConfig)
        trained, read = bind_fastcomposer(shards, config, load_model(preset, model, shards, config.seed))
    process = this_process()
    show = next(read(config.plain().model_copy(update={"batch": SHOWN, "workers": 0})))

    def read_on(done: int) -> Iterator[dict[str, Any]]:
        return read(config, done, process.process_index, process.num_processes)

    origin = {"recipe": recipe, "data": fingerprint(shards), "preset": preset, "model": model}
    yield from train(trained, read_on, config, output, resume=resume, show=show, origin=origin)
    if process.is_main_process:
        write_curves(output)


def fingerprint(shards: Shards) -> str:
    """Name a dataset by its shards: the SHA-256 of their names and, where they lie here, their sizes in bytes."""
    sizes = [Path(url).stat().st_size if Path(url).is_file() else "" for url in shards.urls]
    told = "\n".join(f"{Path(url).name} {size}" for url, size in zip(shards.urls, sizes, strict=True))
    return f"sha256:{hashlib.sha256(told.encode()).hexdigest()}"


def bind_fastcomposer(shards: Shards, config: TrainConfig, parts: Parts) -> tuple[Model, Read]:
    """Make a FastComposer model and what reads its batches."""
    model = FastComposer(
        parts,
        localization_weight=config.localization_weight,
        mask_probability=config.mask_probability,
        trained_blocks=config.trained_blocks,
        train_encoders=config.train_encoders,
    )
    return model, partial(batches, shards, model.tokenizer)


def bind_blip_diffusion(shards: Shards, config: BlipTrainConfig, parts: BlipParts) -> tuple[Model, Read]:
    """Make a BLIP-Diffusion model and what reads its batches; for fine-tuning it looks at all subjects first."""
    model = BlipDiffusion(without_subjects(parts), finetune=config.finetune, train_encoders=config.train_encoders)
    if config.finetune:
        model.remember(each_once(shards, model.tokenizer, model.subject_tokenizer, config))
    return model, partial(pairs, shards, model.tokenizer, model.subject_tokenizer)


def bind_mip_adapter(shards: Shards, config: MipTrainConfig, parts: MipParts) -> tuple[Model, Read]:
    """Make a MIP-Adapter model and what reads its batches."""
    model = MipAdapter(parts, merge=config.merge, train_encoders=config.train_encoders)
    return model, partial(object_batches, shards, model.tokenizer)


def load_model(preset: str, model: str | None, shards: Shards, seed: int) -> Parts:
    """Load the networks that a FastComposer run starts from."""
    if model:
        return load_parts(model)
    if preset == "hub":
        torch.manual_seed(seed)  # the fuser's fresh weights
        return load_parts(STABLE_DIFFUSION)
    return small_parts(SAMPLE / "autoencoder", read_captions(shards), seed)


def load_blip(preset: str, model: str | None, shards: Shards, seed: int) -> BlipParts:
    """Load the networks that a BLIP-Diffusion run starts from."""
    if model or preset == "hub":
        return load_blip_parts(model or BLIP_DIFFUSION)
    return small_blip_parts(SAMPLE / "autoencoder", read_prompts(shards), seed)


def load_mip(preset: str, model: str | None, shards: Shards, seed: int) -> MipParts:
    """Load the networks that a MIP-Adapter run starts from."""
    if model or preset == "hub":
        return load_mip_parts(model or STABLE_DIFFUSION)
    return small_mip_parts(SAMPLE / "autoencoder", read_texts(shards), seed)
