"""Models in the published layout, written by diffusers' own classes with random weights."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.pipelines.deprecated.blip_diffusion.modeling_blip2 import Blip2QFormerModel
from diffusers.pipelines.deprecated.blip_diffusion.modeling_ctx_clip import ContextCLIPTextModel
from diffusers.pipelines.deprecated.blip_diffusion.pipeline_blip_diffusion import BlipDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer, Blip2Config, Blip2QFormerConfig
from transformers.models.blip_2 import modeling_blip_2

from schemas.errors import ModelError
from tests.training.pairs import published_text_encoder, tiny_blip_parts, tiny_pairs
from training.recipes.blip_diffusion import TRAINING, Config, Model, load
from training.recipes.blip_diffusion.view import fill_template

QFORMER = {
    "vocab_size": 9,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "encoder_hidden_size": 32,
    "cross_attention_frequency": 1,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "hidden_act": "quick_gelu",
}


@pytest.fixture
def published(vae: Path, tmp_path: Path) -> tuple[Path, Any]:
    """A folder in the published layout, and diffusers' model of its `qformer/`."""
    parts = tiny_blip_parts(vae)
    folder = tmp_path / "published"
    Model(parts).save(folder)
    for name in ("subject_tokenizer", "image_encoder", "qformer", "prompter", "text_encoder"):
        for file in (folder / name).iterdir():
            file.unlink()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "ball", "cup"]
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(tmp_path / "bert")
    config = Blip2Config(vision_config=VISION, qformer_config=QFORMER, num_query_tokens=16)
    config.tokenizer = str(tmp_path / "bert")
    torch.manual_seed(0)
    model = Blip2QFormerModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    model.save_pretrained(folder / "qformer")
    text = ContextCLIPTextModel(parts.text_encoder.config)
    text.text_model.load_state_dict(parts.text_encoder.state_dict(), strict=False)
    text.save_pretrained(folder / "text_encoder")
    return folder, model


def test_image_features_match_the_published_encoder(published: tuple[Path, Any]) -> None:
    folder, theirs = published
    ours = load(folder).image_encoder
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = theirs.visual_encoder(pictures, return_dict=True).last_hidden_state
        assert torch.allclose(ours.post_layernorm(ours(pictures).last_hidden_state), expected, atol=1e-5)


def test_the_prompts_match_the_published_q_former_and_feed_forward(published: tuple[Path, Any]) -> None:
    """Compare with transformers' BLIP-2 Q-Former with text, because diffusers' own no longer runs."""
    folder, theirs = published
    parts = load(folder)
    model = Model(parts)
    weights = load_file(folder / "qformer" / "model.safetensors")
    config = Blip2QFormerConfig(**QFORMER, use_qformer_text_input=True)
    embeddings = modeling_blip_2.Blip2TextEmbeddings(config)
    for name in ("word_embeddings", "position_embeddings"):
        getattr(embeddings, name).weight.data = weights[f"embeddings.{name}.weight"]
    peer = modeling_blip_2.Blip2QFormerModel(config).eval()
    peer.encoder.load_state_dict(
        {n.removeprefix("encoder."): w for n, w in weights.items() if n.startswith("encoder.")}
    )
    peer.layernorm.weight.data = weights["embeddings.LayerNorm.weight"]
    peer.layernorm.bias.data = weights["embeddings.LayerNorm.bias"]

    tokens = parts.subject_tokenizer(["a ball", "cup"], padding=True, return_tensors="pt")
    assert tokens.input_ids.tolist() == [[2, 5, 6, 3], [2, 7, 3, 0]]
    batch = {
        "input_pixel_values": torch.rand(2, 3, 32, 32),
        "subject_input_ids": tokens.input_ids,
        "subject_attention_mask": tokens.attention_mask.bool(),
    }
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    with torch.no_grad():
        features = theirs.visual_encoder((batch["input_pixel_values"] - mean) / std, return_dict=True).last_hidden_state
        queries = embeddings(tokens.input_ids, query_embeds=weights["query_tokens"].expand(2, -1, -1))
        answers = peer(
            query_embeds=queries,
            query_length=16,
            attention_mask=torch.cat([torch.ones(2, 16, dtype=torch.long), tokens.attention_mask], dim=1),
            encoder_hidden_states=features,
        ).last_hidden_state
        assert torch.allclose(model.compute_prompts(batch), theirs.proj_layer(answers[:, :16]), atol=1e-4)


@pytest.mark.parametrize("caption", ["on grass by a house", " ".join(["grass"] * 40), ""])
def test_texts_are_conditioned_as_by_the_published_pipeline(published: tuple[Path, Any], caption: str) -> None:
    """Compare with diffusers' pipeline: its prompts, its tokens, and its text encoder with prompts in their places."""
    folder, theirs = published
    config = Config(**TRAINING.presets["hub"])
    assert (config.template, config.prompt_reps) == ("released", 20)
    model = Model(load(folder), config)
    batch = tiny_pairs(model.parts, ["ball", "cup"])
    batch["caption"] = [caption] * 2
    filled = [fill_template(caption, text, model.tokenizer, "released") for text in ("ball", "cup")]
    batch["input_ids"], batch["subject_prompt_mask"] = map(torch.tensor, zip(*filled, strict=True))
    encoder = published_text_encoder(model.text_encoder)
    parts = {"tokenizer": model.tokenizer, "text_encoder": encoder, "qformer": theirs}
    pipeline = SimpleNamespace(**parts, config=SimpleNamespace(ctx_begin_pos=2))
    pipeline.qformer.config.num_query_tokens = 16
    with torch.no_grad():
        prompts = model.compute_prompts(batch)
        (conditions,) = model.sampling_conditions(batch, 1)
        without, conditional = conditions["encoder_hidden_states"].chunk(2)
        repeated = BlipDiffusionPipeline._build_prompt(pipeline, [caption] * 2, ["ball", "cup"])
        expected = BlipDiffusionPipeline.encode_prompt(pipeline, prompts, repeated, torch.device("cpu"))
        assert (conditional - expected).abs().max() <= 1e-6
        negative = model.tokenize([config.negative_prompt])
        assert (without - encoder(input_ids=negative)[0]).abs().max() <= 1e-6
        # In training, the text is there once.
        once = BlipDiffusionPipeline._build_prompt(pipeline, [caption] * 2, ["ball", "cup"], prompt_reps=1)
        expected = BlipDiffusionPipeline.encode_prompt(pipeline, prompts, once, torch.device("cpu"))
        conditions = model.conditions(batch)
        assert conditions.keys() == {"encoder_hidden_states"}
        assert (conditions["encoder_hidden_states"] - expected).abs().max() <= 1e-6


def test_stage_2_starts_from_stable_diffusion_and_a_q_former(
    published: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, theirs = published
    whole = load(folder)
    shutil.move(folder / "qformer", tmp_path / "alone" / "qformer")
    monkeypatch.setattr("training.recipes.blip_diffusion.model.STABLE_DIFFUSION", str(folder))
    parts = load(tmp_path / "alone")
    assert torch.equal(parts.unet.conv_in.weight, whole.unet.conv_in.weight)
    assert torch.equal(parts.prompter.widen.weight, theirs.proj_layer.dense1.weight)
    stored = tmp_path / "alone" / "qformer" / "model.safetensors"
    weights = {name: value for name, value in load_file(stored).items() if not name.startswith("proj_layer.")}
    save_file(weights, stored, {"format": "pt"})
    fresh = load(tmp_path / "alone")
    assert torch.equal(fresh.prompter.queries, whole.prompter.queries)
    assert not torch.equal(fresh.prompter.widen.weight, whole.prompter.widen.weight)


def test_a_published_model_can_be_run_and_saved_in_our_layout(published: tuple[Path, Any], tmp_path: Path) -> None:
    model = Model(load(published[0]))
    batch = tiny_pairs(model.parts, ["ball", "cup"])
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    pictures = model.sample(batch, noise, steps=2)
    model.save(tmp_path / "own")
    assert torch.equal(Model(load(tmp_path / "own")).sample(batch, noise, steps=2), pictures)


def test_weights_in_the_older_bin_format_are_loaded(published: tuple[Path, Any]) -> None:
    folder, _ = published
    stored = folder / "qformer" / "model.safetensors"
    expected = load(folder).prompter.state_dict()
    torch.save(load_file(stored), folder / "qformer" / "pytorch_model.bin")
    stored.unlink()
    found = load(folder).prompter.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_fields_missing_from_a_config_get_the_defaults_of_blip2(published: tuple[Path, Any]) -> None:
    folder, _ = published
    path = folder / "qformer" / "config.json"
    config = json.loads(path.read_text())
    for part, name in (("vision_config", "layer_norm_eps"), ("qformer_config", "layer_norm_eps")):
        config[part].pop(name)
    path.write_text(json.dumps(config))
    parts = load(folder)
    assert parts.image_encoder.config.layer_norm_eps == 1e-6
    assert parts.qformer.config.layer_norm_eps == 1e-12
    assert parts.image_encoder.config.hidden_act == "quick_gelu"


def test_missing_weights_and_weights_that_do_not_fit_are_reported(published: tuple[Path, Any]) -> None:
    folder, model = published
    weights = {name: value for name, value in model.state_dict().items() if "layer.1.output.dense" not in name}
    (folder / "qformer" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"qformer holds no model\.safetensors"):
        load(folder)
    torch.save(weights, folder / "qformer" / "pytorch_model.bin")
    with pytest.raises(
        ModelError, match=r"do not fit InstructBlipQFormerModel: encoder\.layer\.1\.output\.dense\.weight"
    ):
        load(folder)


def test_a_stable_diffusion_without_a_q_former_is_reported(published: tuple[Path, Any]) -> None:
    folder, _ = published
    for file in (folder / "qformer").iterdir():
        file.unlink()
    with pytest.raises(ModelError, match="a Stable Diffusion with qformer/ beside"):
        load(folder)
