"""What a recipe states about its training: the type of each recipe module's `TRAINING`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.config import RunConfig
from training.diffusion import LatentDiffusion, Parts
from training.shards import Batch, Raw, View


def prepare_nothing(model: LatentDiffusion, batches: Iterable[Batch], config: RunConfig) -> None:
    """Leave a model as it is before training."""


@dataclass(frozen=True)
class Training:
    """How a recipe is trained.

    Attributes:
        config: class of the config, a `RunConfig`; under its `plain()` the view draws nothing at random.
        presets: `sample` and `hub`, each with the fields of `config` that it changes.
        view: makes the values of one sample.
        texts: the texts of one sample, from which a small tokenizer's vocabulary is built.
        load: loads parts from a folder or the hub's name of one; without an argument, the published weights.
        small: makes small parts from the folder of a small Stable Diffusion, or of an autoencoder alone, texts and a
            seed; see `training.small.small_parts`.
        model: creates the model from parts and config.
        prepare: called before training with the model, all samples once as batches, and the config.
    """

    config: type[RunConfig]
    presets: Mapping[str, Mapping[str, Any]]
    view: View
    texts: Callable[[Raw], Sequence[str]]
    load: Callable[..., Parts]
    small: Callable[[Path, Sequence[str], int], Parts]
    model: Callable[[Any, Any], LatentDiffusion]
    prepare: Callable[[Any, Iterable[Batch], Any], None] = prepare_nothing
