"""Captioned datasets: pictures with their captions as they are, for any text-to-image training.

    subjectloom build captioned --input PICTURES --output OUT

The smallest recipe: it has no step between reading and writing, and reads the source's captions only.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.recipe import BuildConfig, Recipe

if TYPE_CHECKING:
    from transforms.listing import Listing
    from transforms.models.presets import Models
    from transforms.step import Step


def settle(config: BuildConfig, _models: "Models", _listing: "Listing") -> BuildConfig:
    """Return the config: it leaves nothing open."""
    return config


def steps(_config: BuildConfig, _models: "Models", _listing: "Listing") -> "Sequence[Step]":
    """Return no step."""
    return []


RECIPE = Recipe(name="captioned", config=BuildConfig, settle=settle, steps=steps)
