"""The published weights of BLIP-Diffusion, whose `qformer/` folder also holds the image encoder, under other names.

diffusers' deprecated pipeline has its own classes for them, which no longer run under transformers 5. Their weights are
those of transformers' CLIP image encoder and of its Q-Former with text, except for names, and for one matrix that CLIP
splits into three.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import (
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

FOLDER = "qformer"
TOKENIZER = "bert-base-uncased"
"""The Q-Former's tokenizer, if the folder names no other."""

Weights = dict[str, Tensor]


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
    weights = _read(folder)
    vision = _shared(Blip2VisionConfig(**config["vision_config"]), CLIPVisionConfig())
    image_encoder = CLIPVisionModel(CLIPVisionConfig(**vision))
    _fill(image_encoder, image_weights(_under(weights, "visual_encoder.")))
    queried = _shared(Blip2QFormerConfig(**config["qformer_config"]), InstructBlipQFormerConfig())
    qformer = InstructBlipQFormerModel(InstructBlipQFormerConfig(**queried))
    _fill(qformer, qformer_weights(weights))
    return Vision(image_encoder.eval(), qformer.eval(), prompter_weights(weights), config.get("tokenizer") or TOKENIZER)


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


def _under(weights: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def image_weights(weights: Weights) -> Weights:
    """Name the image encoder's weights as CLIP does."""
    renamed: Weights = {}
    for name, value in weights.items():
        if ".self_attn.qkv." in name:
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                renamed[name.replace(".qkv.", f".{part}_proj.")] = piece
        elif name == "embeddings.class_embedding":
            renamed[name] = value.flatten()
        elif name == "embeddings.position_embedding":
            renamed[f"{name}.weight"] = value[0]
        else:
            as_clip = name.replace(".self_attn.projection.", ".self_attn.out_proj.")
            renamed[as_clip.replace("pre_layernorm", "pre_layrnorm")] = value
    return renamed


def qformer_weights(weights: Weights) -> Weights:
    """Pick the Q-Former's weights and name them as transformers does."""
    kept = {name: value for name, value in weights.items() if name.startswith(("embeddings.", "encoder."))}
    return {name.replace("embeddings.LayerNorm.", "embeddings.layernorm."): value for name, value in kept.items()}


def prompter_weights(weights: Weights) -> Weights:
    """Pick the queries and, if there is one, the feed-forward network."""
    names = {"dense1": "widen", "dense2": "narrow", "LayerNorm": "norm"}
    renamed = {"queries": weights["query_tokens"][0]}
    for name, value in _under(weights, "proj_layer.").items():
        layer, _, kind = name.partition(".")
        renamed[f"{names[layer]}.{kind}"] = value
    return renamed
