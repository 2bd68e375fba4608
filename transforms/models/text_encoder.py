"""Embeddings of texts by the text tower of CLIP through transformers, before its projection."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, CLIPTextModel

from transforms.models.checkpoints import HubModel, device
from transforms.models.tensors import download

AT_ONCE = 64
"""Most texts in one forward pass."""


@dataclass(eq=False)
class TextEncoder:
    """A loaded checkpoint: the model, its tokenizer and the device that it is on."""

    model: Any
    tokenizer: Any
    device: str

    @property
    def size(self) -> int:
        """Numbers in an embedding."""
        return int(self.model.config.hidden_size)


def load_text_encoder(checkpoint: str | Path) -> TextEncoder:
    """Load CLIP's text tower from a folder or from the Hugging Face hub, as NAME or NAME@REVISION.

    Raises:
        ModelError: There is no such checkpoint, or it is broken or of another kind.
    """
    hub = HubModel("text-encoder", "CLIP", str(checkpoint), flag="--text-encoder ")
    with hub.loading() as place:
        tokenizer = AutoTokenizer.from_pretrained(**place)
        model, loaded = CLIPTextModel.from_pretrained(**place, dtype=torch.float32, output_loading_info=True)
        hub.check_weights(loaded)
    target = device()
    return TextEncoder(model.eval().to(target), tokenizer, target)


def embed_pooled(encoder: TextEncoder, texts: Sequence[str]) -> NDArray[np.float32]:
    """Embed texts: [N, D] float32, the tower's last state at the end of each text, after the final layer norm."""
    rows = []
    for start in range(0, len(texts), AT_ONCE):
        tokens = encoder.tokenizer(
            list(texts[start : start + AT_ONCE]),
            padding=True,
            truncation=True,
            max_length=encoder.model.config.max_position_embeddings,
            return_tensors="pt",
        ).to(encoder.device)
        with torch.inference_mode():
            rows.append(encoder.model(**tokens).pooler_output)
    return np.concatenate(download(rows)) if rows else np.zeros((0, encoder.size), np.float32)
