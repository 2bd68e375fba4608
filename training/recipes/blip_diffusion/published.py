"""The published weights of BLIP-Diffusion, whose `qformer/` folder also holds the image encoder, under other names.

diffusers' deprecated pipeline has its own classes for them, which no longer run under transformers 5. Their weights are
those of transformers' CLIP image encoder and of its Q-Former with text, except for names, and for one matrix that CLIP
splits into three.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
from torch import nn
from transformers import (
    BertTokenizer,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    InstructBlipQFormerConfig,
    InstructBlipQFormerModel,
)
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import load_state_dict
from transformers.utils import cached_file

from schemas.errors import ModelError
from training import diffusion
from training.diffusion import CLIP_MEAN, CLIP_STD
from training.layout import save_encoder, save_vocabulary
from training.weights.blip_diffusion import from_diffusers, to_diffusers
from training.weights.files import Weights, add_prefix, under, write_weights
from training.weights.stable_diffusion import with_positions

FOLDER = "qformer"
TOKENIZER = "bert-base-uncased"
"""The Q-Former's tokenizer, if the folder names no other."""


@dataclass(frozen=True)
class Vision:
    """Contents of `qformer/`: two networks, weights of queries and feed-forward network, name of the tokenizer.

    The feed-forward network's may be missing.
    """

    image_encoder: CLIPVisionModel
    qformer: InstructBlipQFormerModel
    prompter: Weights
    tokenizer: str


def is_published(folder: str | Path) -> bool:
    """Whether a folder, or the hub's name of one, has the published layout."""
    return "vision_config" in PreTrainedConfig.get_config_dict(folder, subfolder=FOLDER)[0]


def load_vision(folder: str | Path) -> Vision:
    """Load the contents of `qformer/` from a folder in the published layout.

    Raises:
        OSError: its weights are missing.
        ValueError: they do not fit.
    """
    config = PreTrainedConfig.get_config_dict(folder, subfolder=FOLDER)[0]
    weights = from_diffusers(_read(folder))
    vision = _shared(Blip2VisionConfig(**config["vision_config"]), CLIPVisionConfig())
    image_encoder = CLIPVisionModel(CLIPVisionConfig(**vision))
    _fill(image_encoder, under("image_encoder.", weights))
    queried = _shared(Blip2QFormerConfig(**config["qformer_config"]), InstructBlipQFormerConfig())
    qformer = InstructBlipQFormerModel(InstructBlipQFormerConfig(**queried))
    _fill(qformer, under("qformer.", weights))
    tokenizer = config.get("tokenizer") or TOKENIZER
    return Vision(image_encoder.eval(), qformer.eval(), under("prompter.", weights), tokenizer)


def _read(folder: str | Path) -> Weights:
    for name in ("model.safetensors", "pytorch_model.bin"):
        path = cached_file(folder, name, subfolder=FOLDER, _raise_exceptions_for_missing_entries=False)
        if path:
            return load_state_dict(path)
    raise OSError(f"{folder}/{FOLDER} holds no model.safetensors")


def _shared(config: PreTrainedConfig, other: PreTrainedConfig) -> dict[str, Any]:
    """Fields of `config`, its defaults included, that `other`, a config of another class, has too."""
    names = other.to_dict().keys() - {"model_type", "transformers_version", "architectures"}
    return {name: value for name, value in config.to_dict().items() if name in names}


def _fill(model: Any, weights: Weights) -> None:  # noqa: ANN401
    # Old files and the classes do not agree on whether position numbers are buffers.
    missing, unexpected = model.load_state_dict(weights, strict=False)
    wrong = [name for name in (*missing, *unexpected) if not name.endswith("position_ids")]
    if wrong:
        raise ValueError(f"the weights of {FOLDER} do not fit {type(model).__name__}: {', '.join(wrong[:5])}")


def save_published(parts: diffusion.Parts, folder: Path) -> None:
    """Write a model of BLIP-Diffusion to a new folder in the published layout, for diffusers' `BlipDiffusionPipeline`.

    Args:
        parts: the recipe's parts. Averaged prompts have no place there and are left out.
        folder: a new folder.

    Raises:
        ModelError: the Q-Former's tokenizer is not BERT's.
    """
    own: Any = parts
    if not isinstance(own.subject_tokenizer, BertTokenizer):
        raise ModelError("diffusers reads the subject's text with BERT's tokenizer, and this model has another")
    for name in ("unet", "vae", "scheduler", "tokenizer"):
        getattr(parts, name).save_pretrained(folder / name)
    save_vocabulary(parts.tokenizer, folder / "tokenizer")
    save_encoder(parts.text_encoder, folder / "text_encoder")
    encoder = with_positions(add_prefix("text_model.", parts.text_encoder.state_dict()))
    write_weights(folder / "text_encoder" / "model.safetensors", encoder)
    update_json(folder / "text_encoder" / "config.json", {"architectures": ["ContextCLIPTextModel"]})
    prompting = {"image_encoder": own.image_encoder, "qformer": own.qformer, "prompter": own.prompter}
    write_weights(folder / FOLDER / "model.safetensors", to_diffusers(nn.ModuleDict(prompting).state_dict()))
    config = {
        "architectures": ["Blip2QFormerModel"],
        "model_type": "blip-2",
        "num_query_tokens": len(own.prompter.queries),
        "vision_config": _shared(own.image_encoder.config, Blip2VisionConfig()),
        "qformer_config": _shared(own.qformer.config, Blip2QFormerConfig()),
    }
    update_json(folder / FOLDER / "config.json", config)
    side = own.image_encoder.config.image_size
    processor = {
        "image_processor_type": "BlipImageProcessor",
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "size": {"height": side, "width": side},
    }
    (folder / "image_processor").mkdir()
    update_json(folder / "image_processor" / "preprocessor_config.json", processor)
    index = {
        "_class_name": "BlipDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "ctx_begin_pos": 2,
        "image_processor": ["blip_diffusion", "BlipImageProcessor"],
        "mean": CLIP_MEAN,
        "qformer": ["blip_diffusion", "Blip2QFormerModel"],
        "scheduler": ["diffusers", type(parts.scheduler).__name__],
        "std": CLIP_STD,
        "text_encoder": ["blip_diffusion", "ContextCLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    update_json(folder / "model_index.json", index)


def update_json(path: Path, values: Mapping[str, Any]) -> None:
    """Set fields of a JSON file, which is created if it does not exist."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**known, **values}, indent=2) + "\n", encoding="utf-8")
