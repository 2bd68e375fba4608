"""How T2I-Adapters are trained: the config, and what the presets change."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, field_validator

from training.config import HUB_RUN
from training.configs.maps import SAMPLE_MAPS_RUN, MapsConfig, check_maps
from training.timesteps import TimeSampling


class Config(MapsConfig):
    """How to train T2I-Adapters, one for each map, together. The defaults are the published ones."""

    batch: int = Field(default=8, gt=0, description="samples per process and micro-batch")
    time_sampling: TimeSampling = Field(
        default="cubic", description="how timesteps are drawn (the paper: cubic; the released sketch trainer: uniform)"
    )
    edge_threshold: tuple[float, float] | None = Field(
        default=(0.5, 0.5),
        description="sketch and edges are cut at a number drawn from this range (published: 0.5; XL: 0.3 to 0.8)",
    )
    maps: tuple[str, ...] = Field(
        default=("canny",), min_length=1, description="the maps that they learn to obey: any that the dataset holds"
    )
    empty_prompts: float = Field(
        default=0.0, ge=0, le=1, description="share of samples without caption (CoAdapter: 0.5)"
    )
    all_dropped: float = Field(
        default=0.1, ge=0, le=1, description="share of batches without any map, if there are several (CoAdapter: 0.1)"
    )
    all_kept: float = Field(
        default=0.1, ge=0, le=1, description="share of batches with all maps, if there are several (CoAdapter: 0.1)"
    )
    map_dropped: float = Field(
        default=0.5, ge=0, le=1, description="share of the other batches without a map, for each (CoAdapter: 0.5)"
    )

    _check_maps = field_validator("maps")(check_maps)

    @property
    def map_names(self) -> tuple[str, ...]:
        """The adapters' maps, of which a picture needs one at least."""
        return self.maps

    def with_map(self, name: str) -> Self:
        """The config of one of the adapters."""
        return self.model_copy(update={"maps": (name,)})

    def plain(self) -> Self:
        """Without drops, mirroring and random thresholds."""
        return super().plain().model_copy(update={"empty_prompts": 0.0})


PRESETS: Mapping[str, Mapping[str, Any]] = {"sample": {**SAMPLE_MAPS_RUN, "empty_prompts": 0.1}, "hub": HUB_RUN}
