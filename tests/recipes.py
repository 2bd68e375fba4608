"""What a recipe would do with a source, without running it."""

from typing import Any

from pipelines import RECIPES
from transforms.listing import Listing
from transforms.models.presets import Models


def plan(recipe: str, config: Any, models: Models, listing: Listing) -> tuple[Any, set[str]]:  # noqa: ANN401
    """Return the settled config and the kinds of models that the recipe's steps load."""
    settled = RECIPES[recipe].settle(config, models, listing)
    steps = RECIPES[recipe].steps(settled, models, listing)
    return settled, {kind for step in steps for kind in step.checkpoints()}
