"""SDXL beside diffusers' own pipeline, on a small model with random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionXLPipeline

from schemas.errors import ModelError
from tests.training.models import tiny_xl_parts
from training.configs.captioned import Config
from training.diffusion import LatentDiffusion, Parts, load_stable_diffusion
from training.loop import train
from training.recipes.captioned import Model
from training.tokenizer import tokenize

TEXTS = ["a ball! and a cup", "a green tree by a house"]
SIZES = [[100, 80, 12, 7, 64, 64], [64, 90, 0, 13, 64, 64]]
NOISE = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def parts(vae: Path) -> Parts:
    return tiny_xl_parts(vae)


def pipeline_of(parts: Parts) -> StableDiffusionXLPipeline:
    pipeline = StableDiffusionXLPipeline(
        **{**vars(parts), "scheduler": DDIMScheduler.from_config(parts.scheduler.config)}, add_watermarker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def batch_of(parts: Parts) -> dict[str, Any]:
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 3, 64, 64)).astype(np.float32)
    return {
        "keys": ["a", "b"],
        "pixel_values": torch.from_numpy(pixels),
        "input_ids": tokenize(TEXTS, parts.tokenizers),
        "sizes": torch.tensor(SIZES),
        "skipped": [],
    }


def test_each_tokenizer_reads_an_exclamation_mark_and_pads_in_its_own_way(parts: Parts) -> None:
    first, second = (ids.tolist() for ids in tokenize(["a ball!"], parts.tokenizers)[0].chunk(2))
    start, a, ball, mark, end = first[:5]
    assert mark == parts.tokenizer.convert_tokens_to_ids("!</w>") != 0
    assert first == [start, a, ball, mark, end, *[end] * 72]
    assert second == [start, a, ball, 0, end, *[0] * 72]


@torch.no_grad()
def test_conditions_and_prediction_match_diffusers(parts: Parts) -> None:
    conditions = LatentDiffusion(parts).conditions(batch_of(parts))
    pipeline = pipeline_of(parts)
    text, _, pooled, _ = pipeline.encode_prompt(TEXTS, do_classifier_free_guidance=False)
    times = [
        pipeline._get_add_time_ids(tuple(s[:2]), tuple(s[2:4]), tuple(s[4:]), text.dtype, pooled.shape[1])
        for s in SIZES
    ]
    added = {"text_embeds": pooled, "time_ids": torch.cat(times)}
    assert conditions["encoder_hidden_states"].shape == (2, 77, 96)
    assert torch.equal(conditions["encoder_hidden_states"], text)
    assert torch.equal(conditions["added_cond_kwargs"]["text_embeds"], pooled)
    assert torch.equal(conditions["added_cond_kwargs"]["time_ids"], added["time_ids"])
    ours = parts.unet(NOISE, 10, **conditions).sample
    theirs = pipeline.unet(NOISE, 10, encoder_hidden_states=text, added_cond_kwargs=added).sample
    assert torch.equal(ours, theirs)


def test_samples_match_diffusers(parts: Parts) -> None:
    ours = LatentDiffusion(parts).sample(batch_of(parts), NOISE, steps=4, guidance=5.0)
    theirs = pipeline_of(parts)(
        TEXTS, negative_prompt=["", ""], latents=NOISE, num_inference_steps=4, guidance_scale=5.0, output_type="pt",
        height=64, width=64,
    ).images  # fmt: skip
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@torch.no_grad()
def test_mixed_precision_leaves_the_autoencoder_alone(parts: Parts) -> None:
    model, batch = LatentDiffusion(parts), batch_of(parts)
    draws = model.draw(batch, np.random.default_rng(0))
    inputs = []
    parts.unet.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    model(batch, draws)
    with torch.autocast("cpu", torch.bfloat16):
        model(batch, draws)
    assert torch.equal(*inputs)


def test_training_the_text_encoders_leaves_out_what_no_output_depends_on(parts: Parts) -> None:
    model = LatentDiffusion(parts)
    batch = batch_of(parts)
    model(batch, model.draw(batch, np.random.default_rng(0)))["loss"].backward()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name in frozen), name
    assert {name.split(".")[0] for name in frozen} == {"vae", "text_encoder"}
    assert "text_encoder_2" in {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}


def test_captioned_training_lowers_the_loss_and_the_model_is_loaded_again(parts: Parts, tmp_path: Path) -> None:
    batch = batch_of(parts)
    config = Config(steps=6, batch=2, learning_rate=3e-3, warmup=0, average=0.0, train_encoders=True)
    model = Model(parts, config)
    draws = model.draw(batch, np.random.default_rng(1))
    with torch.no_grad():
        before = model(batch, draws)["loss"]
    list(train(model, lambda _: iter([batch] * 6), config, tmp_path / "run"))
    with torch.no_grad():
        after = model(batch, draws)["loss"]
        assert after < 0.9 * before
        loaded = Model(Parts(**load_stable_diffusion(tmp_path / "run" / "model", allow_xl=True)), config)
        again = {**batch, "input_ids": tokenize(TEXTS, loaded.parts.tokenizers)}
        torch.testing.assert_close(loaded(again, draws)["loss"], after, rtol=1e-6, atol=0)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "run" / "model")
    assert isinstance(pipeline, StableDiffusionXLPipeline)
    assert not pipeline.config.force_zeros_for_empty_prompt


def test_a_recipe_for_stable_diffusion_alone_refuses_sdxl(parts: Parts, tmp_path: Path) -> None:
    LatentDiffusion(parts).save(tmp_path / "xl")
    with pytest.raises(ModelError, match=r"no model in .*xl: it is a Stable Diffusion XL, which this recipe cannot"):
        load_stable_diffusion(tmp_path / "xl")
    (tmp_path / "xl" / "text_encoder_2").rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"Stable Diffusion XL \(tokenizer_2/ and text_encoder_2/ besides\)"):
        load_stable_diffusion(tmp_path / "xl", allow_xl=True)
