"""How Composer is trained: the config, and what the presets change."""

from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

from pydantic import Field

from training.config import HUB_RUN
from training.configs.maps import SAMPLE_MAPS_RUN, MapsConfig

Condition = Literal["caption", "image", "palette", "sketch", "instances", "depth", "intensity", "masked"]
"""What a picture is decomposed into."""
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
"""All eight, in the order in which `keep` lists them."""


class Config(MapsConfig):
    """How to train a Composer. The paper's figures, where it states them; others are chosen here, and say so."""

    edge_threshold: tuple[float, float] | None = Field(
        default=None, description="sketches are cut at a number drawn from this range; none: they are shown soft"
    )
    all_dropped: float = Field(default=0.1, ge=0, le=1, description="share of samples without any condition")
    all_kept: float = Field(default=0.1, ge=0, le=1, description="share of samples with all conditions")
    dropped: float = Field(
        default=0.5, ge=0, le=1, description="share of the other samples without a condition, for each but intensity"
    )
    intensity_dropped: float = Field(
        default=0.7, ge=0, le=1, description="share of the other samples without intensity"
    )
    shared: tuple[Condition, ...] = Field(
        default=(), description="conditions that sampling's guidance does not lead away from: both halves have them"
    )
    train_encoders: bool = Field(default=False, description="train the text encoder too (the paper: CLIP is frozen)")

    @property
    def map_names(self) -> tuple[str, ...]:
        """All conditions but the caption."""
        return CONDITIONS[1:]

    @property
    def taken_only(self) -> tuple[str, ...]:
        """Embedding and palette."""
        return ("image", "palette")

    @property
    def needs_maps(self) -> bool:
        """No: a caption is a condition."""
        return False

    def stored_as(self, name: str) -> str:
        """Instances are made of the segmentation."""
        return "segmentation" if name == "instances" else name

    def plain(self) -> Self:
        """Without drops, mirroring and random thresholds."""
        fields = {"all_dropped": 0.0, "all_kept": 1.0, "dropped": 0.0, "intensity_dropped": 0.0}
        return super().plain().model_copy(update=fields)


PRESETS: Mapping[str, Mapping[str, Any]] = {"sample": {**SAMPLE_MAPS_RUN, "learning_rate": 2e-4}, "hub": HUB_RUN}
