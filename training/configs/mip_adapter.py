"""How MIP-Adapter is trained: the config, and what the presets change."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field

from training.config import HUB_RUN, SAMPLE_RUN, RunConfig

MergeName = Literal["code", "paper", "uniform"]
"""How references are merged: see `training.merge`."""


class Config(RunConfig):
    """How to train a MIP-Adapter model. The defaults are those of the published run, in each of its 8 processes."""

    batch: int = Field(default=4, gt=0, description="samples per process and micro-batch")
    steps: int = Field(default=12_000, gt=0, description="optimizer steps")
    learning_rate: float = Field(default=1e-4, gt=0, description="of AdamW, constant")
    warmup: int = Field(default=0, ge=0, description="steps in which the learning rate rises from 0 (published: 0)")
    average: float = Field(
        default=0.0, ge=0, lt=1, description="decay of the weights' moving average (published: 0, none)"
    )
    max_objects: int = Field(default=2, gt=0, description="objects of a sample, those of highest score (published: 2)")
    image_dropped: float = Field(default=0.05, ge=0, le=1, description="share of samples without references")
    text_dropped: float = Field(default=0.05, ge=0, le=1, description="share of samples without caption")
    both_dropped: float = Field(default=0.05, ge=0, le=1, description="share of samples without either")
    augment: bool = Field(default=True, description="mirror references, move the window")
    merge: MergeName = Field(
        default="code", description="the published code's weighted merge, the paper's, or a plain sum of references"
    )
    scale: float = Field(
        default=0.75, ge=0, description="weight of the references in sample pictures (published: 0.75)"
    )
    train_encoders: bool = Field(
        default=False,
        description="also train image projection, U-Net and both encoders: for a start from random weights",
    )

    def plain(self) -> Self:
        """Without drops and augmentation."""
        fields = {"image_dropped": 0.0, "text_dropped": 0.0, "both_dropped": 0.0, "augment": False}
        return self.model_copy(update=fields)


PRESETS: Mapping[str, Mapping[str, Any]] = {"sample": {**SAMPLE_RUN, "batch": 16}, "hub": HUB_RUN}
