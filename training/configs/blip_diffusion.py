"""How BLIP-Diffusion is trained: the config, and what the presets change."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from training.config import HUB_RUN, SAMPLE_RUN, RunConfig

Template = Literal["paper", "released"]
"""Where the subject prompt stands: `[caption], the [subject] is [prompt]`, or `a [prompt] [subject] [caption]`."""
FINE_TUNING = {
    "steps": 40,
    "batch": 3,
    "learning_rate": 5e-6,
    "captions": "subject",
    "subject_dropped": 0.0,
    "unconditional": 0.0,
    "mask_padding": True,
    "clip": 1e6,  # in effect none
}
"""Defaults of fine-tuning, as in the authors' scripts (salesforce/LAVIS, run_scripts/blip-diffusion)."""
NEGATIVE = (
    "over-exposure, under-exposure, saturated, duplicate, out of frame, lowres, cropped, worst quality, low quality, "
    "jpeg artifacts, morbid, mutilated, out of frame, ugly, bad anatomy, bad proportions, deformed, blurry, duplicate"
)
"""Negative prompt of the authors' examples (salesforce/LAVIS, projects/blip-diffusion)."""
RELEASED: Mapping[str, Any] = {"template": "released", "prompt_reps": 20, "negative_prompt": NEGATIVE}
"""Fields with which the released weights are conditioned as their authors do."""


class Config(RunConfig):
    """How to train a BLIP-Diffusion model. The defaults are the paper's pre-training, in each process.

    If `finetune` is set, the defaults are `FINE_TUNING`.
    """

    steps: int = Field(default=500_000, gt=0, description="optimizer steps; fine-tuning: 40 (the paper: up to 120)")
    batch: int = Field(default=16, gt=0, description="samples per process and micro-batch; fine-tuning: 3")
    learning_rate: float = Field(
        default=2e-6, gt=0, description="of AdamW, constant; fine-tuning: 5e-6 as released (the paper: 5e-5)"
    )
    warmup: int = Field(default=0, ge=0, description="steps in which the learning rate rises from 0")
    decay_all: bool = Field(default=False, description="weight decay applies to norms and biases too")
    average: float = Field(default=0.0, ge=0, lt=1, description="decay of the weights' moving average; 0: none")
    template: Template = Field(
        default="paper",
        description="the text: `CAPTION, the SUBJECT is [prompt]` (paper) or `a [prompt] SUBJECT CAPTION` (released)",
    )
    captions: Literal["own", "subject"] = Field(
        default="own", description="own: the dataset's; subject: `a SUBJECT` for every picture; fine-tuning: subject"
    )
    subject_dropped: float = Field(
        default=0.15,
        ge=0,
        le=1,
        description="share of samples without the subject prompt (the paper's 15 %); fine-tuning: 0",
    )
    unconditional: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of samples without any text: for a U-Net from random weights (the paper: none)",
    )
    mask_padding: bool = Field(
        default=False,
        description="in training, the U-Net does not see the text's padding; fine-tuning: true, as released",
    )
    finetune: bool = Field(
        default=False,
        description="learn a few pictures of a subject: only the U-Net is trained, and the mean of their prompts",
    )
    train_encoders: bool = Field(
        default=False, description="train the image encoder too: for one that starts from random weights"
    )
    prompt_reps: int = Field(
        default=1, gt=0, description="repetitions of the text in sample pictures, with the template `released`"
    )
    negative_prompt: str = Field(default="", description="text that guidance leads sample pictures away from")

    @model_validator(mode="before")
    @classmethod
    def _fine_tuning(cls, fields: Any) -> Any:  # noqa: ANN401 - what pydantic passes
        return {**FINE_TUNING, **fields} if isinstance(fields, dict) and fields.get("finetune") else fields

    def plain(self) -> Self:
        """Without drops."""
        return self.model_copy(update={"subject_dropped": 0.0, "unconditional": 0.0})


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "sample": {**SAMPLE_RUN, "unconditional": 0.1},
    "hub": {**HUB_RUN, **RELEASED},
}
