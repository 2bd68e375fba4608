"""LoRA: a U-Net's weights stay as they are, and a product of two thin matrices is added to each (Hu et al., 2021)."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from torch import Tensor

from schemas.errors import ConfigError
from training.attention import weight_of
from training.small import seeded

NAME = "default"
"""peft's name of an adapter."""


def has_lora(unet: Any) -> bool:  # noqa: ANN401 - of any class of U-Net
    """Whether `add_lora` was called."""
    return bool(getattr(unet, "peft_config", None))


def add_lora(unet: UNet2DConditionModel, rank: int, modules: Sequence[str], seed: int) -> None:
    """Freeze a U-Net's weights and add a LoRA to its layers, which changes no output before it is trained.

    Args:
        unet: changed in place.
        rank: of the products, which are not scaled (alpha is the rank).
        modules: ends of the names of the layers that get one, such as "to_q".
        seed: of the first factors, which are normally distributed; the second ones are 0.

    Raises:
        ConfigError: no layer has such a name, or one is of a class that cannot have a LoRA.
    """
    from peft import LoraConfig  # noqa: PLC0415 - slow to import, and seldom used

    unet.requires_grad_(False)
    adapter = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(modules))
    try:
        with seeded(seed):
            unet.add_adapter(adapter, NAME)
    except ValueError as error:
        raise ConfigError(f"lora_modules {', '.join(modules)}: {error}") from error


def save_lora(unet: UNet2DConditionModel, folder: Path) -> None:
    """Write a U-Net's LoRA as pytorch_lora_weights.safetensors, which diffusers' `load_lora_weights` reads."""
    from peft.utils import get_peft_model_state_dict  # noqa: PLC0415

    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet, adapter_name=NAME))
    StableDiffusionPipeline.save_lora_weights(folder, {name: value.cpu() for name, value in layers.items()})


@contextlib.contextmanager
def lora_merged(model: Any) -> Iterator[None]:  # noqa: ANN401 - a Trainable
    """For the duration of the block, replace a model's U-Net with a LoRA by a plain one of the same outputs."""
    unet = model.unet
    if not has_lora(unet):
        yield
        return
    model.unet = type(unet).from_config(unet.config)
    model.unet.load_state_dict(merged_weights(unet))
    try:
        yield
    finally:
        model.unet = unet


def merged_weights(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """Weights of the U-Net without a LoRA that has the same outputs."""
    plain = {
        name.replace(".base_layer", ""): value for name, value in unet.state_dict().items() if ".lora_" not in name
    }
    changed = {
        f"{name}.weight": weight_of(layer).detach()
        for name, layer in unet.named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    return {**plain, **changed}
