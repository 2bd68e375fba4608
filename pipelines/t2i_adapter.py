"""T2I-Adapter datasets: captioned pictures with several condition maps, for adapters that are used alone or together.

Mou et al. 2023, "T2I-Adapter: Learning Adapters to Dig out More Controllable Ability for Text-to-Image Diffusion
Models", section 4.1: sketches, segmentation, key points, depth. CoAdapter trains on several maps of one picture. The
spatial colour palette and the style picture are made from the picture itself at training time, and not stored.

    subjectloom build t2i-adapter --input PICTURES --output OUT --set maps=canny,sketch
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from pipelines.mapped import MapName, MapsConfig, map_steps, settle_maps
from pipelines.recipe import Recipe

if TYPE_CHECKING:
    from transforms.listing import Listing
    from transforms.models.presets import Models
    from transforms.step import Step


class T2IAdapterConfig(MapsConfig):
    """What can be chosen about a T2I-Adapter dataset."""

    maps: tuple[MapName, ...] = Field(default=("canny", "sketch"), min_length=1, description="the maps that are stored")


def steps(config: T2IAdapterConfig, models: "Models", listing: "Listing") -> "Sequence[Step]":
    """Return the steps: maps are made once for a picture, whatever the number of its captions."""
    from transforms.text.several_captions import TakeCaptions

    return [*map_steps(config, models, listing), TakeCaptions(config.captions)]


RECIPE = Recipe(name="t2i-adapter", config=T2IAdapterConfig, settle=settle_maps, steps=steps, writes_captions=True)
