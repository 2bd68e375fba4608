"""How FastComposer is trained: the config, and what the presets change."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field

from training.config import HUB_RUN, SAMPLE_RUN, RunConfig


class Config(RunConfig):
    """How to train a FastComposer model. The defaults are those of the published run (mit-han-lab/fastcomposer)."""

    warmup: int = Field(
        default=0,
        ge=0,
        description="steps in which the learning rate rises from 0 (published: diffusers ignores the script's 500)",
    )
    average: float = Field(
        default=0.0, ge=0, lt=1, description="decay of the weights' moving average; 0: none, as published"
    )
    max_subjects: int = Field(default=4, gt=0, description="subjects of a sample; of more, some are chosen at random")
    unconditional: float = Field(default=0.1, ge=0, le=1, description="share of samples without caption and subjects")
    text_only: float = Field(default=0.0, ge=0, le=1, description="share of samples without subjects (published: 0)")
    subject_kept: float = Field(default=0.9, ge=0, le=1, description="probability that a subject is kept")
    labels: tuple[str, ...] = Field(default=(), description="classes of the subjects; none: all (published: person)")
    mirror: bool = Field(
        default=True,
        description="mirror half of the pictures; those whose caption names a side or writing never (published: all)",
    )
    augment: bool = Field(default=True, description="rotate, mirror, warp, recolour and blur references")
    localization_weight: float = Field(default=1e-3, ge=0, description="weight of the localization loss")
    mask_probability: float = Field(
        default=0.5, ge=0, le=1, description="share of the steps whose noise loss covers the subjects only"
    )
    count_empty: bool = Field(
        default=False,
        description="in these steps count samples without subjects with their whole picture (published: not at all); "
        "preset sample: true, its held-out noise loss after 400 steps is 3 % lower",
    )
    subject_share: float = Field(
        default=0.7,
        ge=0,
        le=1,
        description="share of the sampling steps, the last ones, that use the subjects "
        "(section 4.3, delayed conditioning)",
    )
    trained_blocks: int = Field(default=2, ge=0, description="last blocks of the image encoder that are trained")
    train_encoders: bool = Field(
        default=False, description="train both encoders entirely: for one that starts from random weights"
    )

    def plain(self) -> Self:
        """Without drops and augmentation."""
        fields = {"unconditional": 0.0, "text_only": 0.0, "subject_kept": 1.0, "mirror": False, "augment": False}
        return self.model_copy(update=fields)


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "sample": {**SAMPLE_RUN, "localization_weight": 1e-2, "count_empty": True},
    "hub": HUB_RUN,
}
