"""How a model is set up for a run: what of it is trained, in which precision and memory layout, and how fast."""

from typing import Any

import torch
from torch import nn

from training.config import RunConfig
from training.lora import add_lora, has_lora

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""The type of each mixed precision."""


def set_up(model: Any, config: RunConfig) -> None:  # noqa: ANN401 - a Trainable
    """Set a model up for training as the config says.

    Raises:
        ConfigError: the U-Net has no layers for the LoRA.
    """
    model.min_snr, model.noise_offset = config.min_snr, config.noise_offset
    model.time_sampling = config.time_sampling
    set_up_lora(model, config)
    if config.tf32:
        torch.set_float32_matmul_precision("high")
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    if config.frozen_half:
        halve_frozen(model, HALF[config.precision])
    if config.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
    if config.compile:
        model.unet.compile()


def set_up_lora(model: Any, config: RunConfig) -> None:  # noqa: ANN401 - a Trainable
    """Add the LoRA that the config names to the model's U-Net, unless it has one.

    Raises:
        ConfigError: the U-Net has no layers for it.
    """
    if config.lora and not has_lora(model.unet):
        add_lora(model.unet, config.lora, config.lora_modules, config.seed)


def halve_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert the parameters that are not trained to `dtype`, in place; but the autoencoder's, as SDXL's overflows."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and not name.startswith("vae."):
            parameter.data = parameter.data.to(dtype)
