"""How captioned pictures are trained: the config, and what the presets change."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field

from training.config import HUB_RUN, SAMPLE_RUN, RunConfig


class Config(RunConfig):
    """How to train a text-to-image model on captioned pictures."""

    unconditional: float = Field(default=0.1, ge=0, le=1, description="share of samples without caption")
    mirror: bool = Field(
        default=True, description="mirror half of the pictures; those whose caption names a side or writing never"
    )
    train_encoders: bool = Field(default=False, description="train the text encoders: for a start from random weights")

    def plain(self) -> Self:
        """Without drops and mirroring."""
        return self.model_copy(update={"unconditional": 0.0, "mirror": False})


PRESETS: Mapping[str, Mapping[str, Any]] = {"sample": SAMPLE_RUN, "hub": HUB_RUN}
