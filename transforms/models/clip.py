"""CLIP with open_clip: embeddings of crops and texts."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from transforms.models.checkpoints import check_folder, device, explaining


@dataclass(eq=False)
class Clip:
    """A loaded checkpoint: the model with the preprocessing and the tokenizer that belong to it."""

    model: Any
    preprocess: Any
    tokenizer: Any
    device: str


def load_clip(checkpoint: str | Path) -> Clip:
    """Load CLIP from a folder in open_clip's format, or by open_clip's name for it.

    A folder holds `open_clip_config.json`, `open_clip_model.safetensors` and, where the model does not use
    CLIP's own tokenizer, the files of its tokenizer. A name is architecture and tag of
    `open_clip.list_pretrained()` ("ViT-L-14/openai"), or "hf-hub:" and a repository on the Hugging Face hub.

    Raises:
        ModelError: there is no such checkpoint, or it cannot be loaded.
    """
    target = device()
    check_folder("clip", "CLIP", checkpoint, "open_clip_config.json")
    name, tag = _open_clip_name(checkpoint)
    # Some weights were trained with another activation than open_clip gives their architecture by default.
    quick_gelu = bool(tag and open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))
    problem = f"no CLIP {checkpoint}: looked for a folder of that name and for a name/tag of open_clip"
    remedy = (
        "Give --model clip=FOLDER or a name/tag of open_clip.list_pretrained(), or go online once so that it is "
        "downloaded"
    )
    with explaining(problem, remedy), _quiet():
        model, preprocess = open_clip.create_model_from_pretrained(
            name, tag, device=target, force_quick_gelu=quick_gelu
        )
        tokenizer = open_clip.get_tokenizer(name)
    return Clip(model.eval(), preprocess, tokenizer, target)


def _open_clip_name(checkpoint: str | Path) -> tuple[str, str | None]:
    """Split a checkpoint into open_clip's model name and tag; the tag is None where the name is enough."""
    if Path(checkpoint).is_dir():
        return f"local-dir:{checkpoint}", None
    if str(checkpoint).startswith("hf-hub:"):
        return str(checkpoint), None
    architecture, _, tag = str(checkpoint).rpartition("/")
    return architecture, tag


def hub_repository(checkpoint: str) -> str | None:
    """The repository on the Hugging Face hub that `load_clip` downloads a checkpoint from; None if there is none."""
    name, tag = _open_clip_name(checkpoint)
    if name.startswith("hf-hub:"):
        return name.removeprefix("hf-hub:")
    stored = open_clip.get_pretrained_cfg(name, tag).get("hf_hub", "") if tag else ""
    return stored.rpartition("/")[0] or None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence open_clip, which logs to the root logger while it loads a model."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def embed_images(clip: Clip, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Embed pictures, each [h, w, 3] uint8 RGB: [N, D] float32, unit rows."""
    if not images:
        return np.zeros((0, 0), np.float32)
    pixels = torch.stack([clip.preprocess(Image.fromarray(image)) for image in images])
    with torch.inference_mode():
        return _unit_rows(clip.model.encode_image(pixels.to(clip.device)))


def embed_texts(clip: Clip, texts: Sequence[str]) -> NDArray[np.float32]:
    """Embed texts: [N, D] float32, unit rows. Tokens beyond the model's context are cut off."""
    if not texts:
        return np.zeros((0, 0), np.float32)
    with torch.inference_mode():
        return _unit_rows(clip.model.encode_text(clip.tokenizer(list(texts)).to(clip.device)))


def _unit_rows(features: torch.Tensor) -> NDArray[np.float32]:
    rows: NDArray[np.float32] = F.normalize(features.float(), dim=-1).cpu().numpy()
    return rows
