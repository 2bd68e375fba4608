"""One file per recipe: its config, and its steps in reading order."""

from collections.abc import Mapping
from typing import Any

from pipelines import blip_diffusion, captioned, fastcomposer, gligen, mip_adapter, paint_by_example
from pipelines.recipe import Recipe

RECIPES: Mapping[str, Recipe[Any]] = {
    "fastcomposer": fastcomposer.RECIPE,
    "blip-diffusion": blip_diffusion.RECIPE,
    "mip-adapter": mip_adapter.RECIPE,
    "captioned": captioned.RECIPE,
    "gligen": gligen.RECIPE,
    "paint-by-example": paint_by_example.RECIPE,
}
"""The recipes, by the names that commands take."""
