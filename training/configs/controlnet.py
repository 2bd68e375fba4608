"""How ControlNet is trained: the config, and what the presets change."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, field_validator

from training.config import HUB_RUN
from training.configs.maps import SAMPLE_MAPS_RUN, MapsConfig, check_map


class Config(MapsConfig):
    """How to train a ControlNet. The defaults are the published ones (lllyasviel/ControlNet)."""

    batch: int = Field(default=4, gt=0, description="samples per process and micro-batch")
    map: str = Field(default="canny", description="the map that it learns to obey: any that the dataset holds")
    empty_prompts: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of samples without caption (the paper: 0.5; users report 0 to 0.1 for sketches)",
    )

    _check_map = field_validator("map")(check_map)

    @property
    def map_names(self) -> tuple[str, ...]:
        """The one map."""
        return (self.map,)

    def plain(self) -> Self:
        """Without drops, mirroring and random thresholds."""
        return super().plain().model_copy(update={"empty_prompts": 0.0})


PRESETS: Mapping[str, Mapping[str, Any]] = {"sample": SAMPLE_MAPS_RUN, "hub": HUB_RUN}
