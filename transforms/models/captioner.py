"""Captions with BLIP-2 through transformers, for pictures that come without one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor
from transformers.utils import logging

from schemas.errors import ModelError


@dataclass(eq=False)
class Captioner:
    """A loaded checkpoint: the model, its processor and the device that it is on."""

    model: Any
    processor: Any
    device: str


@dataclass(frozen=True)
class Wording:
    """How captions are asked for.

    `prompt` is what the caption goes on from ("" for none), `beams` the width of the search, `longest` the number of
    new tokens at most.
    """

    prompt: str = ""
    beams: int = 5
    longest: int = 30


def load_captioner(checkpoint: str | Path) -> Captioner:
    """Load BLIP-2 from a folder or from the Hugging Face hub, as NAME or NAME@REVISION; in half precision on CUDA.

    Raises:
        ModelError: there is no such checkpoint, or it is broken or of another kind.
    """
    logging.set_verbosity_error()
    is_folder = Path(checkpoint).is_dir()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name, _, revision = (str(checkpoint), "", "") if is_folder else str(checkpoint).partition("@")
    place = {"pretrained_model_name_or_path": name, "revision": revision or "main"}
    try:
        kind = Blip2Config.get_config_dict(**place)[0].get("model_type")
        if kind != "blip-2":
            raise ModelError(f"{checkpoint} is a model of type {kind}, not BLIP-2")
        processor = Blip2Processor.from_pretrained(**place)
        precision = torch.float16 if device == "cuda" else torch.float32
        model = Blip2ForConditionalGeneration.from_pretrained(**place, dtype=precision)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"no captioner {checkpoint}: looked for a folder of that name and on the Hugging Face hub "
            f"({shorten(str(error), 120)}). Give --model captioner=FOLDER, or go online once so that it is downloaded"
        ) from error
    return Captioner(model.eval().to(device), processor, device)


def write_captions(captioner: Captioner, images: Sequence[NDArray[np.uint8]], wording: Wording) -> list[str]:
    """Describe pictures, each [H, W, 3] uint8 RGB, together: by beam search, so that the same picture gets the same.

    A caption opens with the prompt's words, as a sentence of one piece.
    """
    if not images:
        return []
    prompts = [wording.prompt] * len(images) if wording.prompt else None
    inputs = captioner.processor(images=list(images), text=prompts, return_tensors="pt").to(
        captioner.device, captioner.model.dtype
    )
    with torch.inference_mode():
        tokens = captioner.model.generate(
            **inputs, num_beams=wording.beams, max_new_tokens=wording.longest, do_sample=False
        )
    texts = captioner.processor.batch_decode(tokens, skip_special_tokens=True)
    return [_whole(text, wording.prompt) for text in texts]


def _whole(text: str, prompt: str) -> str:
    """Put the prompt before a caption that goes on from it, unless the model repeated it."""
    words = " ".join(text.split())
    return words if not prompt or words.startswith(prompt.strip()) else f"{prompt.strip()} {words}".strip()
