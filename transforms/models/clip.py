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
from open_clip.transform import PreprocessCfg

from schemas.boxes import BBox, window
from schemas.masks import Mask, cut_masks
from transforms.models.checkpoints import check_folder, device, dtype_of, explaining
from transforms.models.places import located
from transforms.models.settings import FILL, Precision
from transforms.models.tensors import constant, download, fit, groups, normalise, upload, upload_pictures

AT_ONCE = 64
"""Most crops, or texts, in one forward pass."""


@dataclass(eq=False)
class Clip:
    """A loaded checkpoint: the model with the preprocessing and the tokenizer that belong to it."""

    model: Any
    preprocess: PreprocessCfg
    tokenizer: Any
    device: str


def load_clip(checkpoint: str | Path, precision: Precision = "fp32") -> Clip:
    """Load CLIP from a folder in open_clip's format, or by open_clip's name for it.

    A folder holds `open_clip_config.json`, `open_clip_model.safetensors` and, where the model does not use
    CLIP's own tokenizer, the files of its tokenizer. A name is architecture and tag of
    `open_clip.list_pretrained()` ("ViT-L-14/openai"), or "hf-hub:" and a repository on the Hugging Face hub.

    Raises:
        ModelError: there is no such checkpoint, or it cannot be loaded.
    """
    checkpoint = located(checkpoint)
    target = device()
    check_folder("--model clip=", "CLIP", checkpoint, "open_clip_config.json")
    name, tag = _open_clip_name(checkpoint)
    # Some weights were trained with another activation than open_clip gives their architecture by default.
    quick_gelu = bool(tag and open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))
    problem = f"no CLIP {checkpoint}: looked for a folder of that name and for a name/tag of open_clip"
    remedy = (
        "Give --model clip=FOLDER or a name/tag of open_clip.list_pretrained(), or go online once so that it is "
        "downloaded"
    )
    with explaining(problem, remedy), _quiet():
        model, _ = open_clip.create_model_from_pretrained(name, tag, device=target, force_quick_gelu=quick_gelu)
        tokenizer = open_clip.get_tokenizer(name)
    tokenizer([""])  # its first call sets it to pad and to cut off: later ones, by any thread, change nothing
    return Clip(model.eval().to(dtype_of(precision)), preprocess_of(model), tokenizer, target)


def preprocess_of(model: Any) -> PreprocessCfg:  # noqa: ANN401 - one of open_clip's classes
    """How a model of open_clip wants its pictures prepared."""
    return PreprocessCfg(**open_clip.get_model_preprocess_cfg(model))


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
    return _to_rows(_encode(clip, upload_pictures(images, clip.device)))


def embed_segments(
    clip: Clip, images: Sequence[NDArray[np.uint8]], masks: Sequence[Sequence[Mask]]
) -> NDArray[np.float32]:
    """Embed segments of pictures, each cut out as `transforms.regions.similarity.masked_crop` does.

    Args:
        clip: the model.
        images: pictures, each [H, W, 3] uint8 RGB.
        masks: of each picture's segments, none of them empty.

    Returns:
        [N, D] float32, unit rows, for the N masks of all pictures in their order.

    Raises:
        ValueError: a mask is empty.
    """
    shown = [(image, segments) for image, segments in zip(images, masks, strict=True) if segments]
    if not shown:
        return np.zeros((0, 0), np.float32)
    boxes = [(i, mask.bbox) for i, (_, segments) in enumerate(shown) for mask in segments]
    flat = [mask for _, segments in shown for mask in segments]
    if not all(width for _, (_, _, width, _) in boxes):
        raise ValueError("an empty mask has no crop")
    insides = cut_masks(flat, [box for _, box in boxes])
    return _to_rows(_encode_segments(clip, upload([*(i for i, _ in shown), *insides], clip.device), boxes))


def _encode_segments(clip: Clip, uploaded: Sequence[torch.Tensor], boxes: Sequence[tuple[int, BBox]]) -> torch.Tensor:
    """Embed crops of the pictures, which come first in `uploaded`, inside the masks, [w, h], one for each box."""
    insides = uploaded[len(uploaded) - len(boxes) :]
    fill = constant(FILL, clip.device).to(torch.uint8)
    crops = []
    for inside, (picture, box) in zip(insides, boxes, strict=True):
        width, height = inside.shape
        side = max(height, width)
        y, x = (side - height) // 2, (side - width) // 2
        crop = fill.repeat(side, side, 1)
        crop[y : y + height, x : x + width] = torch.where(inside.T[..., None], uploaded[picture][window(box)], fill)
        crops.append(crop.permute(2, 0, 1))
    return _encode(clip, crops)


def _encode(clip: Clip, images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Embed pictures [3, h, w] uint8 on the model's device: [N, D] float32, unit rows."""
    how = clip.preprocess
    side = (how.size, how.size) if isinstance(how.size, int) else how.size
    pixels = torch.empty(len(images), 3, *side, dtype=torch.uint8, device=clip.device)
    for members in groups((image.shape for image in images), AT_ONCE):
        together = torch.stack([images[i] for i in members]) if len(members) > 1 else images[members[0]][None]
        fitted = fit(together, side, how.resize_mode, how.interpolation, how.fill_color)
        for i, picture in zip(members, fitted, strict=True):
            pixels[i] = picture
    with torch.inference_mode():
        return _unit_rows(
            [
                clip.model.encode_image(normalise(part, how.mean, how.std, next(clip.model.parameters()).dtype))
                for part in pixels.split(AT_ONCE)
            ]
        )


def embed_texts(clip: Clip, texts: Sequence[str]) -> NDArray[np.float32]:
    """Embed texts: [N, D] float32, unit rows. Tokens beyond the model's context are cut off."""
    if not texts:
        return np.zeros((0, 0), np.float32)
    (tokens,) = upload([clip.tokenizer(list(texts)).numpy()], clip.device)
    return _to_rows(_encode_texts(clip, tokens))


def _encode_texts(clip: Clip, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return _unit_rows([clip.model.encode_text(part) for part in tokens.split(AT_ONCE)])


def _unit_rows(features: Sequence[torch.Tensor]) -> torch.Tensor:
    return F.normalize(torch.cat(list(features)).float(), dim=-1)


def _to_rows(features: torch.Tensor) -> NDArray[np.float32]:
    (rows,) = download([features])
    return rows
