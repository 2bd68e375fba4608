"""How GLIGEN is trained: the config, and what the presets change."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field

from training.config import HUB_RUN, SAMPLE_RUN, RunConfig

PLACES = 30
"""Boxes of a sample, at most."""


class Config(RunConfig):
    """How to train the layers that GLIGEN adds. The defaults are those of the published run, in each process."""

    batch: int = Field(default=4, gt=0, description="samples per process and micro-batch")
    steps: int = Field(default=500_000, gt=0, description="optimizer steps")
    learning_rate: float = Field(default=5e-5, gt=0, description="of AdamW, constant after the warmup")
    warmup: int = Field(default=10_000, ge=0, description="steps in which the learning rate rises from 0")
    weight_decay: float = Field(default=0.0, ge=0, description="of AdamW")
    caption_dropped: float = Field(default=0.5, ge=0, le=1, description="share of samples without caption")
    feature_dropped: float = Field(
        default=0.5, ge=0, le=1, description="share of boxes that lack either their text or their picture, each half"
    )
    grounding_dropped: float = Field(default=0.1, ge=0, le=1, description="share of batches without any box")
    min_box: float = Field(
        default=0.01, ge=0, le=1, description="smallest box, as a share of the square; smaller ones are left out"
    )
    mirror: bool = Field(
        default=True, description="mirror half of the pictures; those whose caption names a side or writing never"
    )
    grounded_share: float = Field(
        default=0.3, ge=0, le=1, description="share of the sampling steps, the first ones, that use the boxes"
    )

    def plain(self) -> Self:
        """Without drops and mirroring."""
        fields = {"caption_dropped": 0.0, "feature_dropped": 0.0, "grounding_dropped": 0.0, "mirror": False}
        return self.model_copy(update=fields)


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "sample": {name: value for name, value in SAMPLE_RUN.items() if name != "train_encoders"} | {"batch": 16},
    "hub": HUB_RUN,
}
