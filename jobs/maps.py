"""Condition maps for drawing: given as pictures, or taken from photographs as in a recipe's build."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from jobs.map_files import MapFile
from jobs.references import read_photograph, run_steps
from pipelines import RECIPES
from schemas.errors import InputError, RecordError
from schemas.maps import MAPS
from schemas.rejects import Reject
from schemas.samples import FORMATS
from training.configs.maps import MapsConfig
from training.generate import batch_of
from training.map_view import given_map
from training.recipes import training_of
from training.shards import Batch, to_device
from transforms.listing import Listing
from transforms.models.presets import check_downloads, resolve


def batch_of_maps(
    recipe: str,
    model: Any,  # noqa: ANN401 - the recipe's model
    config: MapsConfig,
    maps: Sequence[MapFile],
    preset: str,
) -> Batch:
    """Make a batch of maps without a prompt, on the model's device, and give the model their weights.

    Args:
        recipe: whose model it is.
        model: set up for drawing.
        config: as the model was trained with, with the resolution of the pictures.
        maps: checked by `check_maps`.
        preset: its models take maps from photographs.

    Raises:
        InputError: a file is no picture, or a map cannot be taken from it.
        ConfigError: the preset has no model for a map.
    """
    shown = {
        given.name: take_map(recipe, model, config, given, preset)
        if given.taken
        else read_map(given, config.resolution)
        for given in maps
    }
    model.map_weights = {given.name: given.weight for given in maps}
    return to_device(model.batch_of_maps(shown, config.resolution), model.unet.device)


def read_map(given: MapFile, side: int) -> Tensor:
    """Read a picture of a map, as the model is shown it: [C, side, side] float32 in [0, 1].

    Raises:
        InputError: it is no picture.
    """
    try:
        with Image.open(given.file) as opened:
            pixels = np.asarray(opened.convert("RGBA" if given.name == "masked" else "RGB"))
    except OSError as error:
        raise InputError(f"{given.file}: it is no picture that can be read") from error
    return given_map(pixels, given.name, side)


def take_map(recipe: str, model: Any, config: MapsConfig, given: MapFile, preset: str) -> Tensor:  # noqa: ANN401
    """Take a map from a photograph by the steps of the recipe's build and its view, as the model is shown it.

    Raises:
        InputError: the photograph cannot be read, or the map cannot be taken from it.
        ConfigError: the preset has no model for it.
    """
    described, models, listing = RECIPES[recipe], resolve(preset, {}), Listing("folder", ())
    kind = config.stored_as(given.name)
    wanted = (kind,) if kind in MAPS else ("canny",)  # a sample has some map, also where another thing is taken
    settled = described.settle(described.config(maps=wanted), models, listing)
    steps = described.steps(settled, models, listing)
    check_downloads({kind: checkpoint for step in steps for kind, checkpoint in step.checkpoints().items()})
    (record,) = run_steps(steps, [read_photograph("a photograph", given.file, None)])
    refused = f"{given.file}: the map {given.name!r} cannot be taken from it: "
    if isinstance(record, Reject):
        raise InputError(refused + record.detail)
    try:
        sample, _ = FORMATS[recipe].pack(record)
    except RecordError as error:
        raise InputError(refused + error.detail) from error
    raw = {"__key__": sample.key, "__url__": "", **sample.members}
    batch = batch_of(training_of(recipe), [raw], model, config.with_map(given.name))
    entry: Tensor = batch[model.entry_of(given.name)]
    return entry[0].cpu()
