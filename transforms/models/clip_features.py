"""CLIP's features as GLIGEN's data holds them: of texts before and after the projection, of squashed crops."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from open_clip.transformer import text_global_pool

from schemas.boxes import BBox, window
from transforms.models.clip import AT_ONCE, Clip, embed_images
from transforms.models.tensors import download, upload


def embed_phrases(clip: Clip, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Embed texts: the state of the last token before the projection, [N, D] float32, and unit rows after it, [N, E].

    Raises:
        ValueError: the model's text tower is not CLIP's own.
    """
    model = clip.model
    if not hasattr(model, "text_pool_type"):
        raise ValueError(f"{type(model).__name__} has another text tower than CLIP: choose another --model clip")
    width = model.ln_final.weight.shape[0]
    if not texts:
        return np.zeros((0, width), np.float32), np.zeros((0, model.text_projection.shape[1]), np.float32)
    (tokens,) = upload([clip.tokenizer(list(texts)).numpy()], clip.device)
    with torch.inference_mode():
        before = torch.cat([_last_state(model, part) for part in tokens.split(AT_ONCE)])
        after = F.normalize((before @ model.text_projection).float(), dim=-1)
    first, second = download([before.float()]), download([after])
    return first[0], second[0]


def _last_state(model: Any, tokens: torch.Tensor) -> torch.Tensor:  # noqa: ANN401 - open_clip's
    dtype = model.transformer.get_cast_dtype()
    states = model.token_embedding(tokens).to(dtype) + model.positional_embedding.to(dtype)
    states = model.ln_final(model.transformer(states, attn_mask=model.attn_mask))
    pooled: torch.Tensor = text_global_pool(
        states, tokens, model.text_pool_type, eos_token_id=getattr(model, "text_eos_id", None)
    )
    return pooled


def embed_crops(
    clip: Clip, images: Sequence[NDArray[np.uint8]], boxes: Sequence[Sequence[BBox]]
) -> NDArray[np.float32]:
    """Embed the insides of boxes, resized to the model's square whatever their proportions: [N, E] float32, unit rows.

    Args:
        clip: the model.
        images: pictures, each [H, W, 3] uint8 RGB.
        boxes: of each picture; N in all.
    """
    squashing = replace(clip, preprocess=replace(clip.preprocess, resize_mode="squash", interpolation="bicubic"))
    crops = [image[window(box)] for image, own in zip(images, boxes, strict=True) for box in own]
    return embed_images(squashing, [np.ascontiguousarray(crop) for crop in crops])


def text_projection(clip: Clip) -> NDArray[np.float32]:
    """The matrix W [E, D] float32 that maps a text's state to its embedding, `W @ before`."""
    (matrix,) = download([clip.model.text_projection.detach().float().T.contiguous()])
    return matrix


def reproject(embeddings: NDArray[np.float32], projection: NDArray[np.float32], norm: float) -> NDArray[np.float32]:
    """Map image embeddings into the space of texts before the projection: rows y W of the length `norm`.

    Li et al. 2023, "GLIGEN", appendix; a row of zeros stays.

    Args:
        embeddings: [N, E].
        projection: W, [E, D].
        norm: of the result; published 28.7, the mean norm of ViT-L/14's text states.
    """
    rows = embeddings @ projection
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows * np.float32(norm) / np.where(lengths == 0, 1, lengths)).astype(np.float32)
