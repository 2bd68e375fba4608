"""Captioned datasets: pictures with their captions as they are, for any text-to-image training.

    subjectloom build captioned --input PICTURES --output OUT

The smallest recipe: between reading and writing it only chooses among several captions of a picture.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.recipe import BuildConfig, Recipe, refuse_most_linked

if TYPE_CHECKING:
    from transforms.listing import Listing
    from transforms.models.presets import Models
    from transforms.step import Step


def settle(config: BuildConfig, _models: "Models", _listing: "Listing") -> BuildConfig:
    """Return the config: it leaves nothing open; refuse to compare links."""
    refuse_most_linked(config)
    return config


def steps(config: BuildConfig, _models: "Models", _listing: "Listing") -> "Sequence[Step]":
    """Return the one step."""
    from transforms.text.several_captions import TakeCaptions

    return [TakeCaptions(config.captions)]


RECIPE = Recipe(name="captioned", config=BuildConfig, settle=settle, steps=steps)
