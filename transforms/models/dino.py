"""DINO with transformers: embeddings of whole pictures, for comparing a drawn subject with its photographs.

DreamBench compares by the class token of ViT-S/16 (Ruiz et al. 2023, "DreamBooth", section 4.1; Caron et al. 2021).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from transforms.models.checkpoints import check_weights, device, explaining

PUBLISHED = "facebook/dino-vits16"
"""The published weights on the Hugging Face hub."""
AT_ONCE = 32
"""Pictures in one forward pass."""


@dataclass(eq=False)
class Dino:
    """A loaded checkpoint: the model and the device that it is on."""

    model: Any
    device: str


def load_dino(checkpoint: str = PUBLISHED) -> Dino:
    """Load DINO from a folder in the format of transformers, or from the Hugging Face hub.

    Raises:
        ModelError: there is no such checkpoint, or it cannot be loaded.
    """
    from transformers import ViTModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    target = device()
    problem = f"no DINO {checkpoint}: looked for a folder of that name and on the Hugging Face hub"
    with explaining(problem, "Give --dino FOLDER, or go online once so that it is downloaded"):
        model, loaded = ViTModel.from_pretrained(
            checkpoint, add_pooling_layer=False, output_loading_info=True, dtype=torch.float32
        )
    check_weights("DINO", checkpoint, loaded["missing_keys"])
    return Dino(model.eval().to(target), target)


def embed_pictures(dino: Dino, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Embed pictures, each [h, w, 3] uint8 RGB: [N, D] float32, unit rows.

    As in the published evaluations, a picture is scaled to 256 / 224 of the model's side along its shorter side
    (bicubic), and its middle is shown, normalized by ImageNet's mean and standard deviation.
    """
    side = dino.model.config.image_size
    rows = []
    for first in range(0, len(pictures), AT_ONCE):
        prepared = torch.stack([_prepare(picture, side) for picture in pictures[first : first + AT_ONCE]])
        with torch.inference_mode():
            rows.append(dino.model(prepared.to(dino.device)).last_hidden_state[:, 0].cpu())
    embedded: NDArray[np.float32] = F.normalize(torch.cat(rows).float(), dim=-1).numpy()
    return embedded


def _prepare(picture: NDArray[np.uint8], side: int) -> torch.Tensor:
    height, width, _ = picture.shape
    scale = side * 256 / 224 / min(height, width)
    size = max(side, round(width * scale)), max(side, round(height * scale))
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    shown = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (torch.from_numpy(np.array(shown)).permute(2, 0, 1) / 255 - mean) / std
