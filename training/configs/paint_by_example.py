"""How Paint by Example is trained: the config, and what the presets change."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field

from training.config import HUB_RUN, SAMPLE_RUN, RunConfig


class Config(RunConfig):
    """How to train a Paint by Example model. The defaults are those of the published run, per process."""

    batch: int = Field(default=4, gt=0, description="samples per process and micro-batch")
    learning_rate: float = Field(default=1e-5, gt=0, description="of AdamW, constant after the warmup")
    warmup: int = Field(default=10_000, ge=0, description="steps in which the learning rate rises from 0")
    reference_dropped: float = Field(
        default=0.2, ge=0, le=1, description="share of batches whose references are replaced by the learnt null vector"
    )
    augment: bool = Field(default=True, description="mirror, turn, blur and distort references")
    arbitrary_mask: float = Field(
        default=0.5, ge=0, le=1, description="share of samples whose hole has four curved sides; others are rectangles"
    )
    extend: float = Field(
        default=0.4, ge=0, le=1, description="share of the space around a box by which its sides move out at most"
    )
    shrink: float = Field(
        default=0.6, ge=0, le=1, description="share of the space around the hole by which the square shrinks at most"
    )
    draw_box: bool = Field(
        default=True,
        description="draw box and square at random; else the largest box, and the square nearest to the middle",
    )
    pad: int = Field(default=10, ge=0, description="pixels around the box that the reference shows")
    train_encoders: bool = Field(
        default=False, description="also train the image encoder: for a start from random weights"
    )

    def plain(self) -> Self:
        """Without drops, augmentation and anything drawn."""
        fields = {"reference_dropped": 0.0, "augment": False, "arbitrary_mask": 0.0, "extend": 0.0, "draw_box": False}
        return self.model_copy(update=fields)


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "sample": {**SAMPLE_RUN, "batch": 16, "pad": 2},
    "hub": HUB_RUN,
}
