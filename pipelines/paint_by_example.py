"""Paint by Example datasets: pictures with boxes, whose insides are both the reference and what is to be drawn.

Yang et al. 2023, "Paint by Example: Exemplar-based Image Editing with Diffusion Models", on Open Images: boxes that
cover 2 to 80 % of their picture. Everything else about a sample is random, and drawn by the view that training reads.

    subjectloom build paint-by-example --input PICTURES --output OUT
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from pipelines.recipe import BuildConfig, Recipe
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from transforms.listing import Listing
    from transforms.models.presets import Models
    from transforms.step import Step


class PaintByExampleConfig(BuildConfig):
    """What can be chosen about a Paint by Example dataset; the defaults are the published ones."""

    min_area: float = Field(default=0.02, ge=0, le=1, description="smallest box, as a share of the picture's area")
    max_area: float = Field(default=0.8, ge=0, le=1, description="largest box, as a share of the picture's area")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_area > self.max_area:
            raise ValueError(f"min_area {self.min_area} must not be above max_area {self.max_area}")
        return self


def settle(config: PaintByExampleConfig, _models: "Models", _listing: "Listing") -> PaintByExampleConfig:
    """Return the config: it leaves nothing open; refuse to choose among captions, which are not used."""
    if config.captions != "first":
        raise ConfigError("samples of paint-by-example do not use captions: leave out --captions")
    return config


def steps(config: PaintByExampleConfig, models: "Models", listing: "Listing") -> "Sequence[Step]":
    """Return the steps: boxes and masks of the source, or a segmenter's."""
    from transforms.regions.boxes import TakeBoxes
    from transforms.regions.segment import SegmentPictures

    is_annotated = listing.has_boxes or listing.has_segments
    segment = [] if is_annotated else [SegmentPictures(models.segmenter, hosting=models.hosting)]
    return [*segment, TakeBoxes(config.min_area, config.max_area)]


RECIPE = Recipe(
    name="paint-by-example",
    config=PaintByExampleConfig,
    settle=settle,
    steps=steps,
    draws=False,
    needs_captions=lambda _: False,
)
