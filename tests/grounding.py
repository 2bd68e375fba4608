"""A Grounding DINO as small as its classes allow, with random weights and a vocabulary of a few words."""

import re
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizerFast,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    SwinConfig,
)

from transforms.models.groundingdino import find_config

WORDS = ("a", "the", "red", "blue", "ball", "cup", "dog", "##gy", "tall", "two")
# Token ids as in BERT's own vocabulary: some of them are constants in the model's code.
SPECIAL = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}


SMALL = {
    "backbone_config": SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    ),
    "d_model": 32,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_feature_levels": 3,
    "max_text_len": 16,
}
# Sizes that are constants in groundingdino-py.
FIXED = {
    "backbone_config": SwinConfig(out_features=["stage2", "stage3", "stage4"]),
    "d_model": 256,
    "max_text_len": 256,
}


def write_detector(folder: Path, sizes: dict[str, Any] = SMALL, shortest: int = 64, longest: int = 96) -> None:
    """Write a random detector with its processor and its tokenizer."""
    torch.manual_seed(0)
    config = GroundingDinoConfig(
        text_config=BertConfig(
            vocab_size=1100, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        ),
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=20,
        **sizes,
    )
    model = GroundingDinoForObjectDetection(config)
    # All of them: many start at zero or near it and would have no effect.
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * (parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1)
    model.model.decoder.layer_norm.weight.data *= 0.1  # otherwise all scores are nearly 0 or 1
    model.save_pretrained(folder)
    GroundingDinoImageProcessor(size={"shortest_edge": shortest, "longest_edge": longest}).save_pretrained(folder)
    words = [SPECIAL.get(i, f"[unused{i}]") for i in range(1100)]
    words[200 : 200 + len(WORDS)] = WORDS
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast.from_pretrained(folder, do_lower_case=True).save_pretrained(folder)


# transformers' names of weights, and groundingdino-py's. The first pattern that matches the beginning of a name is
# applied, and then every pattern of its table to the rest.
SWIN = {
    r"embeddings\.patch_embeddings\.projection": "patch_embed.proj",
    r"embeddings\.norm": "patch_embed.norm",
    r"encoder\.layers": "layers",
    r"layernorm_before": "norm1",
    r"layernorm_after": "norm2",
    r"attention\.self": "attn",
    r"attention\.output\.dense": "attn.proj",
    r"intermediate\.dense": "mlp.fc1",
    r"output\.dense": "mlp.fc2",
    r"hidden_states_norms\.stage2": "norm1",
    r"hidden_states_norms\.stage3": "norm2",
    r"hidden_states_norms\.stage4": "norm3",
}
FEED_FORWARD = {r"fc([12])": r"linear\1"}
BEGINNINGS: list[tuple[str, str, dict[str, str]]] = [
    (r"model\.backbone\.conv_encoder\.model\.", "backbone.0.", SWIN),
    (r"model\.text_backbone\.", "bert.", {}),
    (r"model\.text_projection\.", "feat_map.", {}),
    (r"model\.input_proj_vision\.", "input_proj.", {}),
    (r"model\.query_position_embeddings\.", "transformer.tgt_embed.", {}),
    (r"model\.encoder_output_bbox_embed\.", "transformer.enc_out_bbox_embed.", {}),
    (
        r"model\.encoder\.layers\.(\d+)\.text_enhancer_layer\.",
        r"transformer.encoder.text_layers.\1.",
        {r"layer_norm_before": "norm1", r"layer_norm_after": "norm2", **FEED_FORWARD},
    ),
    (
        r"model\.encoder\.layers\.(\d+)\.fusion_layer\.",
        r"transformer.encoder.fusion_layers.\1.",
        {r"vision_param": "gamma_v", r"text_param": "gamma_l", r"vision": "v", r"text": "l"},
    ),
    (
        r"model\.encoder\.layers\.(\d+)\.deformable_layer\.",
        r"transformer.encoder.layers.\1.",
        {r"self_attn_layer_norm": "norm1", r"final_layer_norm": "norm2", **FEED_FORWARD},
    ),
    (
        r"model\.decoder\.layers\.",
        "transformer.decoder.layers.",
        {
            r"encoder_attn_text_layer_norm": "catext_norm",
            r"encoder_attn_text": "ca_text",
            r"encoder_attn_layer_norm": "norm1",
            r"encoder_attn": "cross_attn",
            r"self_attn_layer_norm": "norm2",
            r"final_layer_norm": "norm3",
            **FEED_FORWARD,
        },
    ),
    (
        r"model\.decoder\.",
        "transformer.decoder.",
        {r"layer_norm": "norm", r"reference_points_head": "ref_point_head"},
    ),
    (r"model\.", "transformer.", {}),
]


def name_in_original(name: str) -> str:
    """Translate the name of a weight in transformers 4 to that in groundingdino-py."""
    for beginning, translated, within in BEGINNINGS:
        if found := re.match(beginning, name):
            rest = name[found.end() :]
            for pattern, replacement in within.items():
                rest = re.sub(pattern, replacement, rest)
            return found.expand(translated) + rest
    return name


def write_original(folder: Path, path: Path) -> None:
    """Convert a detector that `write_detector` wrote with the sizes `FIXED` to groundingdino-py's format.

    Except in BERT, groundingdino-py holds the weights of queries, keys and values in one matrix, transformers in three.
    """
    model = GroundingDinoForObjectDetection.from_pretrained(folder)
    own = {name_in_original(name): value for name, value in model.state_dict().items()}
    weights = {"bert.pooler.dense.weight": torch.zeros(16, 16), "bert.pooler.dense.bias": torch.zeros(16)}
    for name, value in own.items():
        if name.startswith("bert.") or not re.search(r"\.(query|key|value)\.", name):
            weights[name] = value
        elif ".query." in name:
            parts = [own[name.replace(".query.", f".{part}.")] for part in ("query", "key", "value")]
            joint = ".qkv." if name.startswith("backbone.") else ".in_proj_"
            weights[name.replace(".query.", joint)] = torch.cat(parts)
    torch.save({"model": weights}, path)
    text = path.parent / "text"
    BertModel(model.config.text_config).save_pretrained(text)
    AutoTokenizer.from_pretrained(folder).save_pretrained(text)
    config = find_config("groundingdino_swint_ogc.pth") | {
        "text_encoder_type": str(text),
        "enc_layers": model.config.encoder_layers,
        "dec_layers": model.config.decoder_layers,
        "dim_feedforward": model.config.encoder_ffn_dim,
        "num_queries": model.config.num_queries,
    }
    lines = [f"{name} = {value!r}\n" for name, value in config.items()]
    path.with_suffix(".py").write_text("".join(lines))
