"""One file per recipe: its config, and its steps in reading order."""

from collections.abc import Mapping
from typing import Any

from pipelines import (
    blip_diffusion,
    captioned,
    composer,
    controlnet,
    fastcomposer,
    gligen,
    mip_adapter,
    paint_by_example,
    t2i_adapter,
)
from pipelines.recipe import Recipe

RECIPES: Mapping[str, Recipe[Any]] = {
    "fastcomposer": fastcomposer.RECIPE,
    "blip-diffusion": blip_diffusion.RECIPE,
    "mip-adapter": mip_adapter.RECIPE,
    "captioned": captioned.RECIPE,
    "gligen": gligen.RECIPE,
    "paint-by-example": paint_by_example.RECIPE,
    "controlnet": controlnet.RECIPE,
    "t2i-adapter": t2i_adapter.RECIPE,
    "composer": composer.RECIPE,
}
"""The recipes, by the names that commands take."""
