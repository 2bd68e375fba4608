"""ControlNet datasets: captioned pictures with a condition map, or several, taken from them.

Zhang, Rao and Agrawala 2023, "Adding Conditional Control to Text-to-Image Diffusion Models", section 4 and supplement:
an annotator turns each picture into a map of its edges, depth, normals, pose or segments, and the model learns to draw
the picture from map and caption. Thresholds are drawn at training time; here the map before them is stored.

    subjectloom build controlnet --input PICTURES --output OUT --set maps=canny
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.mapped import MapsConfig, map_steps, settle_maps
from pipelines.recipe import Recipe

if TYPE_CHECKING:
    from transforms.listing import Listing
    from transforms.models.presets import Models
    from transforms.step import Step


def steps(config: MapsConfig, models: "Models", listing: "Listing") -> "Sequence[Step]":
    """Return the steps: maps are made once for a picture, whatever the number of its captions."""
    from transforms.text.several_captions import TakeCaptions

    return [*map_steps(config, models, listing), TakeCaptions(config.captions)]


RECIPE = Recipe(name="controlnet", config=MapsConfig, settle=settle_maps, steps=steps, writes_captions=True)
