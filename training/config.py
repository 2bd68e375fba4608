"""The fields of a training run that all recipes have in common."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from schemas.strict import StrictModel
from training.timesteps import TimeSampling

Schedule = Literal["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"]
OptimizerName = Literal["adamw", "adamw_fused", "adamw_8bit"]
Tracker = Literal["tensorboard", "wandb", "comet_ml", "aim", "clearml", "mlflow", "dvclive", "swanlab", "trackio"]

SMALL_SIDE = 64
"""Side of the pictures of small models, in pixels."""
SAMPLE_RUN: Mapping[str, Any] = {
    "resolution": SMALL_SIDE,
    "reference": SMALL_SIDE,
    "steps": 400,
    "learning_rate": 3e-4,
    "warmup": 50,
    "average": 0.99,
    "train_encoders": True,
    "checkpoint_every": 100,
    "sample_every": 100,
}
"""Config fields of a preset `sample`: from the sample text-to-image model, minutes on a CPU."""
HUB_RUN: Mapping[str, Any] = {"precision": "bf16", "gradient_checkpointing": True, "moments_every": 4}
"""Config fields of a preset `hub`: the published run, adjusted to fit on one large GPU."""


class Prompt(StrictModel):
    """A caption of the user's own for a sample picture, and the sample whose references it is drawn with.

    Attributes:
        prompt: the caption. A reference is used if the caption contains its text.
        sample: key of the sample.
        dataset: folder of a dataset of the same recipe that holds the sample; by default the one that is trained on.
    """

    prompt: str
    sample: str
    dataset: str | None = None


class LoadConfig(StrictModel):
    """Fields that the batches of every recipe have in common."""

    resolution: int = Field(default=512, gt=0, multiple_of=8, description="side of the pictures, in pixels")
    reference: int = Field(default=224, gt=0, description="side of what an image encoder is shown, in pixels")
    batch: int = Field(default=16, gt=0, description="samples per process and micro-batch")
    workers: int = Field(default=2, ge=0, description="processes that load for each process that trains")
    shuffle_buffer: int = Field(default=10_000, gt=0, description="samples that are mixed at a time; takes no memory")
    seed: int = Field(default=42, ge=0, description="of weights, batches and noise")

    def plain(self) -> Self:
        """A copy of this config under which a view draws nothing at random, for measuring and for sample pictures."""
        return self


class RunConfig(LoadConfig):
    """How to train any model. The defaults are FastComposer's (mit-han-lab/fastcomposer), in each process."""

    steps: int = Field(default=150_000, gt=0, description="optimizer steps")
    accumulation: int = Field(default=1, gt=0, description="micro-batches per optimizer step")
    optimizer: OptimizerName = Field(
        default="adamw", description="AdamW; its fused kernels; or bitsandbytes' with moments of 8 bits, for CUDA"
    )
    learning_rate: float = Field(default=1e-5, gt=0, description="the highest one, after the warmup")
    warmup: int = Field(default=500, ge=0, description="steps in which the learning rate rises from 0")
    schedule: Schedule = Field(
        default="constant", description="of the learning rate after the warmup: one of diffusers' schedules"
    )
    restarts: int = Field(default=1, gt=0, description="cycles of the schedule cosine_with_restarts")
    power: float = Field(default=1.0, gt=0, description="exponent of the schedule polynomial")
    weight_decay: float = Field(default=0.01, ge=0, description="of AdamW")
    decay_all: bool = Field(default=True, description="weight decay applies to norms and biases too")
    clip: float = Field(default=1.0, gt=0, description="gradients of a larger norm are scaled down to this one")
    average: float = Field(default=0.9999, ge=0, lt=1, description="decay of the weights' moving average; 0: none")
    min_snr: float = Field(
        default=0.0,
        ge=0,
        description="gamma of the min-SNR weighting of the noise loss (Hang et al. 2023: 5); 0: none",
    )
    noise_offset: float = Field(
        default=0.0, ge=0, description="standard deviation of a number added to the noise of each channel; 0: none"
    )
    time_sampling: TimeSampling = Field(
        default="uniform", description="how timesteps are drawn; cubic: noisy ones more often (T2I-Adapter's)"
    )
    lora: int = Field(
        default=0, ge=0, description="rank of a LoRA that is trained in place of the U-Net's weights; 0: none"
    )
    lora_modules: tuple[str, ...] = Field(
        default=("to_q", "to_k", "to_v", "to_out.0"), description="ends of the names of the U-Net's layers with a LoRA"
    )
    precision: Literal["no", "bf16", "fp16"] = Field(
        default="no", description="mixed precision; fp16 scales the loss and needs a GPU"
    )
    frozen_half: bool = Field(
        default=False, description="hold the weights that are not trained in the mixed precision's type"
    )
    tf32: bool = Field(default=False, description="multiply float32 matrices as TF32 on GPUs that can")
    channels_last: bool = Field(default=False, description="lay out the weights of convolutions with channels last")
    compile: bool = Field(default=False, description="compile the U-Net with torch.compile")
    fsdp: bool = Field(
        default=False,
        description="divide trained weights, gradients, moments and average among the processes (PyTorch's FSDP2)",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="save memory by running the U-Net's forward pass twice"
    )
    latent_cache: str | None = Field(
        default=None,
        description="folder that keeps the autoencoder's outputs, so that a picture is encoded once; `run`: latents/ "
        "in the run's folder; none: they are not kept",
    )
    latent_cache_gb: float = Field(default=50.0, gt=0, description="GB (10^9 bytes) that this folder may hold at most")
    held_out: int = Field(
        default=0, ge=0, description="samples that are not trained on, and whose loss is measured at fixed noise"
    )
    held_out_every: int = Field(default=500, gt=0, description="steps between measurements of the held-out loss")
    checkpoint_every: int = Field(default=500, gt=0, description="steps between checkpoints")
    moments_every: int = Field(
        default=1,
        gt=0,
        description="every how many checkpoints one holds the optimizer's moments; runs are resumed from these",
    )
    keep: int = Field(
        default=2, gt=0, description="number of checkpoints that are kept: the newest ones, one with moments among them"
    )
    sample_every: int = Field(default=500, gt=0, description="steps between sample pictures")
    prompts: tuple[Prompt, ...] = Field(
        default=(),
        description="captions for the sample pictures: {prompt: TEXT, sample: KEY of the sample with the references}",
    )
    trackers: tuple[Tracker, ...] = Field(
        default=("tensorboard",),
        description="where metrics and sample pictures also go, through accelerate; tensorboard only if installed",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.frozen_half and self.precision == "no":
            raise ValueError("frozen_half holds weights in the mixed precision's type: set precision to bf16 or fp16")
        if self.fsdp and (self.precision == "fp16" or self.optimizer == "adamw_8bit"):
            raise ValueError("fsdp goes with precision no or bf16, and with optimizer adamw or adamw_fused")
        return self
