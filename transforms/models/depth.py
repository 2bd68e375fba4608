"""Monocular depth with transformers: Depth Anything (V1, V2) or DPT, by checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import AutoImageProcessor, AutoModelForDepthEstimation, PretrainedConfig

from transforms.models.checkpoints import HubModel, device, dtype_of
from transforms.models.places import located
from transforms.models.settings import Precision
from transforms.models.tensors import download, groups, process_pictures, upload_pictures

TYPES = ("depth_anything", "dpt")
"""Supported types of model: their output is nearness, linear in 1 / distance up to scale and shift."""
AT_ONCE = 8
"""Most pictures that go through the model together."""


@dataclass(eq=False)
class DepthModel:
    """A loaded checkpoint: the model, its processor and the device that it is on."""

    model: Any
    processor: Any
    device: str


def load_depth(checkpoint: str | Path, precision: Precision = "fp32") -> DepthModel:
    """Load a depth model from a folder or from the Hugging Face hub, as NAME or NAME@REVISION.

    Raises:
        ModelError: there is no such checkpoint, or it is broken or of another kind.
    """
    checkpoint = located(checkpoint)
    hub = HubModel("depth", "depth model", str(checkpoint))
    with hub.loading() as place:
        config = PretrainedConfig.get_config_dict(**place)[0]
        hub.check_type(config.get("model_type"), TYPES)
        if config.get("depth_estimation_type") == "metric":
            raise ValueError("it estimates distances; this recipe takes models of relative depth")
        processor = AutoImageProcessor.from_pretrained(**place)
        model, loaded = AutoModelForDepthEstimation.from_pretrained(
            **place, dtype=dtype_of(precision), output_loading_info=True
        )
    hub.check_weights(loaded)
    target = device()
    return DepthModel(model.eval().to(target), processor, target)


def estimate_depth(depth: DepthModel, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
    """Estimate the nearness of each pixel of pictures, each [H, W, 3] uint8 RGB: [H, W] float32 each, larger is nearer.

    Pictures that the processor resizes to the same size go through the model together, without padding.
    """
    pictures = upload_pictures(images, depth.device)
    inputs = process_pictures(depth.processor, pictures)
    found: dict[int, torch.Tensor] = {}
    for members in groups((picture["pixel_values"].shape for picture in inputs), AT_ONCE):
        together = torch.cat([inputs[i]["pixel_values"] for i in members]).to(depth.model.dtype)
        with torch.inference_mode():
            predicted = depth.model(pixel_values=together).predicted_depth.float()
        for index, single in zip(members, predicted, strict=True):
            size = tuple(pictures[index].shape[1:])
            found[index] = F.interpolate(single[None, None], size, mode="bicubic", align_corners=False)[0, 0]
    return download([found[index] for index in range(len(images))])
