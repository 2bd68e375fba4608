"""Saved folders that older versions of the libraries load too, and the scheduler that a folder came with.

transformers 5 saves a tokenizer as one file, and text encoders without `text_model.` before their weights' names.
Version 4 finds no vocabulary in such a folder, and leaves a text encoder at random weights without an error.
"""

from pathlib import Path
from typing import Any

import diffusers
from diffusers import DDPMScheduler, SchedulerMixin
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModel, PreTrainedModel

PREFIXES: dict[type[PreTrainedModel], str] = {CLIPTextModel: "text_model.", CLIPVisionModel: "vision_model."}
"""What transformers 4 puts before the names of all weights of a class."""


def save_encoder(encoder: PreTrainedModel, folder: Path) -> None:
    """Save an encoder with its weights under the names that transformers 4 knows."""
    prefix = PREFIXES.get(type(encoder), "")
    weights = {f"{prefix}{name}": value for name, value in encoder.state_dict().items()}
    encoder.save_pretrained(folder, state_dict=weights, save_original_format=False)


def save_vocabulary(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Add vocab.json and merges.txt to the folder of a saved tokenizer."""
    tokenizer.backend_tokenizer.model.save(str(folder))


def load_scheduler(folder: str | Path) -> Any:  # noqa: ANN401 - of any class of scheduler
    """Load the scheduler in `scheduler/` of a folder, or the hub's name of one, in the class that it states.

    Raises:
        OSError: it is missing.
        ValueError: it is of an unknown class, or its noise does not follow DDPM's schedule.
    """
    config = DDPMScheduler.load_config(folder, subfolder="scheduler")
    name = config.get("_class_name", "DDPMScheduler")
    scheduler = getattr(diffusers, name, None)
    known = isinstance(scheduler, type) and issubclass(scheduler, SchedulerMixin)
    if scheduler is None or not known:
        raise ValueError(f"diffusers has no scheduler {name}")
    loaded = scheduler.from_config(config)
    if not hasattr(loaded, "alphas_cumprod"):
        raise ValueError(f"{name} adds noise by another rule than Stable Diffusion's schedulers")
    return loaded
