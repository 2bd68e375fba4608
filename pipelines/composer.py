"""Composer datasets: pictures decomposed into caption, CLIP embedding, colours and local maps.

Huang et al. 2023, "Composer: Creative and Controllable Image Synthesis with Composable Conditions", section 3.1, names
eight decompositions. Caption, semantics (a CLIP embedding), colour (a histogram of 180 colours), sketch, instances
(a segmentation map whose things are told apart) and depth are stored here; intensity and masking are drawn from the
picture at training time. Depth is stored where a model or the source gives it: add it to `maps`.

    subjectloom build composer --input PICTURES --output OUT --set maps=sketch,segmentation,depth
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


class ComposerConfig(MapsConfig):
    """What can be chosen about a Composer dataset."""

    maps: tuple[MapName, ...] = Field(
        default=("sketch", "segmentation"), min_length=1, description="the local maps that are stored"
    )
    palette_sigma: float = Field(
        default=10.0, ge=0, description="width of the colour histogram's smoothing, in units of CIELab; 0: none"
    )


def steps(config: ComposerConfig, models: "Models", listing: "Listing") -> "Sequence[Step]":
    """Return the steps: a picture is decomposed once, whatever the number of its captions."""
    from transforms.maps.describe import CountColors, EmbedPictures
    from transforms.text.several_captions import TakeCaptions

    return [
        *map_steps(config, models, listing),
        CountColors(config.palette_sigma),
        EmbedPictures(models.clip, models.hosting),
        TakeCaptions(config.captions),
    ]


RECIPE = Recipe(name="composer", config=ComposerConfig, settle=settle_maps, steps=steps, writes_captions=True)
