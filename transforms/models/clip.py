"""CLIP with open_clip: embeddings of crops and texts."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from schemas.errors import ModelError


@dataclass(eq=False)
class Clip:
    """A loaded checkpoint: the model with the preprocessing and the tokenizer that belong to it."""

    model: Any
    preprocess: Any
    tokenizer: Any
    device: str


def load_clip(checkpoint: str | Path) -> Clip:
    """Load CLIP by open_clip's name and tag ("ViT-L-14/openai"), or from a folder in open_clip's format.

    A folder holds `open_clip_config.json` and `open_clip_model.safetensors`.

    Raises:
        ModelError: there is no such checkpoint, or it cannot be loaded.
    """
    logging.getLogger().setLevel(logging.ERROR)  # open_clip narrates its loading on the root logger
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = Path(checkpoint).is_dir()
    architecture, _, tag = str(checkpoint).rpartition("/")
    name, pretrained = (f"local-dir:{checkpoint}", None) if folder else (architecture, tag)
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained, device=device)
        tokenizer = open_clip.get_tokenizer(name)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"no CLIP {checkpoint}: looked for a folder of that name and for a name/tag of open_clip "
            f"({shorten(str(error), 120)}). Give --model clip=FOLDER or a name/tag of open_clip.list_pretrained(), "
            "or go online once so that it is downloaded"
        ) from error
    return Clip(model.eval(), preprocess, tokenizer, device)


def embed_images(clip: Clip, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Embed pictures, each [h, w, 3] uint8 RGB: [N, D] float32, unit rows."""
    if not images:
        return np.zeros((0, 0), np.float32)
    pixels = torch.stack([clip.preprocess(Image.fromarray(image)) for image in images])
    with torch.inference_mode():
        return _unit_rows(clip.model.encode_image(pixels.to(clip.device)))


def embed_texts(clip: Clip, texts: Sequence[str]) -> NDArray[np.float32]:
    """Embed texts: [N, D] float32, unit rows. What exceeds the model's context is cut off."""
    if not texts:
        return np.zeros((0, 0), np.float32)
    with torch.inference_mode():
        return _unit_rows(clip.model.encode_text(clip.tokenizer(list(texts)).to(clip.device)))


def _unit_rows(features: torch.Tensor) -> NDArray[np.float32]:
    rows: NDArray[np.float32] = F.normalize(features.float(), dim=-1).cpu().numpy()
    return rows
