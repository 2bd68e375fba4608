"""What a sample of each recipe is: its record, its members and its columns of the index."""

from collections.abc import Mapping

from schemas.errors import InputError
from schemas.samples import (
    blip_diffusion,
    captioned,
    composer,
    controlnet,
    fastcomposer,
    gligen,
    mip_adapter,
    paint_by_example,
    pairs,
    t2i_adapter,
)
from schemas.samples.base import SampleFormat

FORMATS: Mapping[str, SampleFormat] = {
    "fastcomposer": fastcomposer.FORMAT,
    "blip-diffusion": blip_diffusion.FORMAT,
    "mip-adapter": mip_adapter.FORMAT,
    "captioned": captioned.FORMAT,
    "gligen": gligen.FORMAT,
    "paint-by-example": paint_by_example.FORMAT,
    "controlnet": controlnet.FORMAT,
    "t2i-adapter": t2i_adapter.FORMAT,
    "composer": composer.FORMAT,
    "pairs": pairs.FORMAT,
}
"""The format of each recipe's samples, by the recipe's name."""


def format_of(recipe: str) -> SampleFormat:
    """Return the format of a recipe that `dataset.json` names.

    Raises:
        InputError: no recipe has that name.
    """
    if recipe not in FORMATS:
        raise InputError(f"the dataset's recipe is {recipe!r}, known are {', '.join(FORMATS)}: update Subjectloom")
    return FORMATS[recipe]
