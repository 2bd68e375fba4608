"""BLIP-Diffusion's released weights, as LAVIS has them (salesforce/LAVIS) and as diffusers does.

In both, what makes subject prompts is one module. Our names are those of transformers' CLIP image encoder
("image_encoder."), of its Q-Former with text ("qformer."), and of the queries and the feed-forward network
("prompter."). CLIP splits one matrix of each layer into three.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from training.weights.files import Weights, add_prefix, other_than, under
from training.weights.stable_diffusion import without_positions

Names = Sequence[tuple[str, str]]
"""Parts of names: the released ones, and ours."""

PROMPTER: Names = (("dense1.", "widen."), ("dense2.", "narrow."), ("LayerNorm.", "norm."))
IMAGE: Names = ((".self_attn.projection.", ".self_attn.out_proj."), ("pre_layernorm.", "pre_layrnorm."))
QFORMER: Names = (("embeddings.LayerNorm.", "embeddings.layernorm."),)
LAVIS_QFORMER: Names = (*QFORMER, ("attention.self.", "attention.attention."))
LAVIS_IMAGE: Names = (
    ("conv1.", "embeddings.patch_embedding."),
    ("class_embedding", "embeddings.class_embedding"),
    ("positional_embedding", "embeddings.position_embedding.weight"),
    ("ln_pre.", "pre_layrnorm."),
    ("transformer.resblocks.", "encoder.layers."),
    (".attn.out_proj.", ".self_attn.out_proj."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
)
LAVIS_UNUSED = ("vision_proj.", "text_proj.", "itm_head.", "temp", "Qformer.cls.")
"""What only BLIP-2's first stage uses, and BLIP-Diffusion does not."""
LAVIS_FILES = {
    "proj_layer": "proj_layer/proj_weight.pt",
    "blip": "blip_model/blip_weight.pt",
    "unet": "unet/diffusion_pytorch_model.bin",
    "vae": "vae/diffusion_pytorch_model.bin",
    "text_encoder": "text_encoder/pytorch_model.bin",
}
"""LAVIS' files in a folder, each with one module's weights."""
LAVIS_AVERAGE = "ctx_embeddings_cache/ctx_embeddings_cache.pt"
"""LAVIS' file of a fine-tuned model: the averaged subject prompt, [1, Q, D]."""


def rename(weights: Mapping[str, Tensor], names: Names) -> Weights:
    """Replace parts of names."""
    renamed: Weights = {}
    for name, value in weights.items():
        for old, new in names:
            name = name.replace(old, new)  # noqa: PLW2901
        renamed[name] = value
    return renamed


def backwards(names: Names) -> Names:
    """The same parts of names for the other direction."""
    return [(ours, theirs) for theirs, ours in names]


def split_attention(weights: Mapping[str, Tensor], joined: str, end: str) -> Weights:
    """Split each layer's matrix and bias `joined` of queries, keys and values, whose names go on with `end`."""
    split: Weights = {}
    for name, value in weights.items():
        if joined in name:
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                split[name.replace(f"{joined}{end}", f".self_attn.{part}_proj.")] = piece
        else:
            split[name] = value
    return split


def join_attention(weights: Mapping[str, Tensor], joined: str, end: str) -> Weights:
    """The inverse of `split_attention`."""
    whole: Weights = {}
    for name, value in weights.items():
        if ".self_attn.q_proj." in name:
            pieces = [weights[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            whole[name.replace(".self_attn.q_proj.", f"{joined}{end}")] = torch.cat(pieces)
        elif ".k_proj." not in name and ".v_proj." not in name:
            whole[name] = value
    return whole


def from_diffusers(weights: Weights) -> Weights:
    """Name the weights of diffusers' `qformer/` as ours; without a feed-forward network if they have none."""
    image = rename(split_attention(under("visual_encoder.", weights), ".self_attn.qkv", "."), IMAGE)
    places = image.pop("embeddings.position_embedding", None)
    if places is not None:
        image["embeddings.position_embedding.weight"] = places[0]
    if "embeddings.class_embedding" in image:
        image["embeddings.class_embedding"] = image["embeddings.class_embedding"].flatten()
    rest = other_than(("visual_encoder.", "proj_layer.", "query_tokens"), without_positions(weights))
    return {
        **add_prefix("image_encoder.", image),
        **add_prefix("qformer.", rename(rest, QFORMER)),
        **_prompter(weights, under("proj_layer.", weights)),
    }


def to_diffusers(weights: Weights) -> Weights:
    """Name our weights as those of diffusers' `qformer/`."""
    image = rename(join_attention(under("image_encoder.", weights), ".self_attn.qkv", "."), backwards(IMAGE))
    image["embeddings.position_embedding"] = image.pop("embeddings.position_embedding.weight")[None]
    image["embeddings.class_embedding"] = image["embeddings.class_embedding"][None, None]
    prompter = under("prompter.", weights)
    words = rename(under("qformer.", weights), backwards(QFORMER))
    return {
        "query_tokens": prompter.pop("queries")[None],
        "embeddings.position_ids": torch.arange(len(words["embeddings.position_embeddings.weight"]))[None],
        **add_prefix("visual_encoder.", image),
        **words,
        **add_prefix("proj_layer.", rename(prompter, backwards(PROMPTER))),
    }


def from_lavis(weights: Mapping[str, Weights]) -> Weights:
    """Name the weights of LAVIS' `blip` and `proj_layer` as ours; what BLIP-Diffusion does not use is left out."""
    blip = without_positions(other_than(LAVIS_UNUSED, weights["blip"]))
    image = rename(split_attention(under("visual_encoder.", blip), ".attn.in_proj", "_"), LAVIS_IMAGE)
    final = rename(under("ln_vision", blip), ((".", "post_layernorm."),))
    other = other_than(("visual_encoder.", "ln_vision.", "Qformer.bert.", "query_tokens"), blip)
    return {
        **add_prefix("image_encoder.", {**image, **final}),
        **add_prefix("qformer.", rename(under("Qformer.bert.", blip), LAVIS_QFORMER)),
        **_prompter(blip, weights["proj_layer"]),
        **other,
    }


def to_lavis(weights: Weights) -> dict[str, Weights]:
    """Name our weights as LAVIS' `blip` and `proj_layer`."""
    image = under("image_encoder.", weights)
    final = rename(under("post_layernorm", image), ((".", "ln_vision."),))
    image = join_attention(other_than(("post_layernorm.",), image), ".attn.in_proj", "_")
    prompter = under("prompter.", weights)
    words = rename(under("qformer.", weights), backwards(LAVIS_QFORMER))
    blip = {
        "query_tokens": prompter.pop("queries")[None],
        **add_prefix("visual_encoder.", rename(image, backwards(LAVIS_IMAGE))),
        **final,
        **add_prefix("Qformer.bert.", words),
        "Qformer.bert.embeddings.position_ids": torch.arange(len(words["embeddings.position_embeddings.weight"]))[None],
    }
    return {"blip": blip, "proj_layer": rename(prompter, backwards(PROMPTER))}


def _prompter(weights: Weights, network: Weights) -> Weights:
    queries = {"queries": weights["query_tokens"][0]} if "query_tokens" in weights else {}
    return add_prefix("prompter.", {**queries, **rename(network, PROMPTER)})
