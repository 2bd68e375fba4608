"""The recipes that can be trained: a module each, imported when it is needed."""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from schemas.errors import ConfigError, choices

if TYPE_CHECKING:  # it would load torch
    from training.recipe import Training

TRAININGS: Mapping[str, str] = {
    "fastcomposer": "training.recipes.fastcomposer",
    "blip-diffusion": "training.recipes.blip_diffusion",
    "mip-adapter": "training.recipes.mip_adapter",
    "captioned": "training.recipes.captioned",
    "gligen": "training.recipes.gligen",
    "paint-by-example": "training.recipes.paint_by_example",
    "controlnet": "training.recipes.controlnet",
    "t2i-adapter": "training.recipes.t2i_adapter",
    "composer": "training.recipes.composer",
}
"""Module of each recipe. It defines view, texts, load, small, Model, and from these and its config TRAINING."""


def training_of(recipe: str) -> "Training":
    """Import a recipe's module and return its `TRAINING`.

    Raises:
        ConfigError: there is no such recipe.
    """
    if recipe not in TRAININGS:
        raise ConfigError(f"there is no recipe {recipe!r}{choices(recipe, TRAININGS)}")
    training: Training = import_module(TRAININGS[recipe]).TRAINING
    return training
