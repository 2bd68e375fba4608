"""The cards of the recipes that have one of their own; every other recipe has the default card."""

from collections.abc import Mapping

from jobs.report.card import Card, default_card
from jobs.report.cards import blip_diffusion, fastcomposer, gligen, mapped, mip_adapter
from schemas.samples.base import SampleFormat

CARDS: Mapping[str, Card] = {
    "fastcomposer": fastcomposer.CARD,
    "blip-diffusion": blip_diffusion.CARD,
    "mip-adapter": mip_adapter.CARD,
    "gligen": gligen.CARD,
    **mapped.CARDS,
}
"""The cards by recipe."""


def card_of(sample_format: SampleFormat) -> Card:
    """Return the card of a recipe, or the default one for its format."""
    return CARDS.get(sample_format.recipe) or default_card(sample_format)
