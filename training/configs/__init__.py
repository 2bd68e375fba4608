"""The training configs of the recipes, without torch: a config is checked before anything slow is imported."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from schemas.errors import ConfigError, choices
from training.config import RunConfig

CONFIGS: Mapping[str, str] = {
    "fastcomposer": "training.configs.fastcomposer",
    "blip-diffusion": "training.configs.blip_diffusion",
    "mip-adapter": "training.configs.mip_adapter",
    "captioned": "training.configs.captioned",
    "gligen": "training.configs.gligen",
    "paint-by-example": "training.configs.paint_by_example",
    "controlnet": "training.configs.controlnet",
    "t2i-adapter": "training.configs.t2i_adapter",
    "composer": "training.configs.composer",
}
"""Module of each recipe. It defines Config and PRESETS."""


def config_of(recipe: str) -> tuple[type[RunConfig], Mapping[str, Mapping[str, Any]]]:
    """Return the class of a recipe's config, and the fields of it that each preset changes.

    Raises:
        ConfigError: there is no such recipe.
    """
    if recipe not in CONFIGS:
        raise ConfigError(f"there is no recipe {recipe!r}{choices(recipe, CONFIGS)}")
    module = import_module(CONFIGS[recipe])
    return module.Config, module.PRESETS


def owners_of_fields() -> dict[str, str]:
    """Return a recipe that has the field, by the field's name."""
    return {field: recipe for recipe in reversed(list(CONFIGS)) for field in config_of(recipe)[0].model_fields}
