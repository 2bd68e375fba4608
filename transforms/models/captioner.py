"""Captions with BLIP-2 through transformers, for pictures that come without one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor

from transforms.models.checkpoints import HubModel, device, dtype_of
from transforms.models.places import located
from transforms.models.settings import Precision, Wording
from transforms.models.tensors import FILTERS, resize, upload_pictures


@dataclass(eq=False)
class Captioner:
    """A loaded checkpoint: the model, its processor and the device that it is on."""

    model: Any
    processor: Any
    device: str


def load_captioner(checkpoint: str | Path, precision: Precision = "fp32") -> Captioner:
    """Load BLIP-2 from a folder or from the Hugging Face hub, as NAME or NAME@REVISION.

    Raises:
        ModelError: there is no such checkpoint, or it is broken or of another kind.
    """
    checkpoint = located(checkpoint)
    hub = HubModel("captioner", "BLIP-2", str(checkpoint))
    with hub.loading() as place:
        hub.check_type(Blip2Config.get_config_dict(**place)[0].get("model_type"), ["blip-2"])
        processor = Blip2Processor.from_pretrained(**place)
        model = Blip2ForConditionalGeneration.from_pretrained(**place, dtype=dtype_of(precision))
    target = device()
    return Captioner(model.eval().to(target), processor, target)


def write_captions(captioner: Captioner, images: Sequence[NDArray[np.uint8]], wording: Wording) -> list[str]:
    """Caption pictures, each [H, W, 3] uint8 RGB, in one batch.

    Beam search draws nothing at random: the same picture always gets the same caption. With a prompt, the caption
    begins with its words.
    """
    if not images:
        return []
    prompts = [wording.prompt] * len(images) if wording.prompt else None
    how = captioner.processor.image_processor
    size = (how.size["height"], how.size["width"])
    pictures = [
        resize(picture[None], size, FILTERS[how.resample])[0] for picture in upload_pictures(images, captioner.device)
    ]
    inputs = captioner.processor(
        images=pictures, text=prompts, do_resize=False, input_data_format="channels_first", return_tensors="pt"
    ).to(captioner.device, captioner.model.dtype)
    with torch.inference_mode():
        tokens = captioner.model.generate(
            **inputs, num_beams=wording.beams, max_new_tokens=wording.longest, do_sample=False
        )
    texts = captioner.processor.batch_decode(tokens, skip_special_tokens=True)
    return [_with_prompt(text, wording.prompt) for text in texts]


def _with_prompt(text: str, prompt: str) -> str:
    """Put the prompt before the text that continues it, unless the model repeated it."""
    words = " ".join(text.split())
    return words if not prompt or words.startswith(prompt.strip()) else f"{prompt.strip()} {words}".strip()
