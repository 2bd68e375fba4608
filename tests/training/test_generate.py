"""Drawing: samplers against diffusers' own pipeline, settings of the model, and what is refused."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from schemas.errors import ConfigError
from tests.training.models import CAPTIONS
from training.diffusion import LatentDiffusion
from training.drawing import Drawing
from training.generate import SAMPLERS, draw_noise, draw_pictures, repeat, set_drawing
from training.small import small_parts

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(vae: Path) -> LatentDiffusion:
    return LatentDiffusion(small_parts(vae, CAPTIONS, seed=0))


def batch_of(model: LatentDiffusion, prompt: str) -> dict[str, Any]:
    return {"keys": ["prompt"], "input_ids": model.tokenize([prompt]), "skipped": []}


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws_what_diffusers_pipeline_draws(
    model: LatentDiffusion, name: Literal["ddim", "euler", "dpm++"]
) -> None:
    """The same noise, guidance and negative prompt, with the scheduler made from the model's own."""
    drawing = set_drawing(
        model, Drawing(count=2, steps=4, guidance=3, negative_prompt="a house", scheduler=name, seed=5), CPU
    )
    drawn = torch.stack(list(draw_pictures(model, batch_of(model, "a red ball"), drawing)))
    parts = {name: getattr(model.parts, name) for name in ("vae", "text_encoder", "tokenizer", "unet")}
    pipeline = StableDiffusionPipeline(
        **parts, scheduler=SAMPLERS[name].from_config(model.scheduler.config), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    noise = np.stack([draw_noise(5, number, (model.vae.config.latent_channels, 16, 16)) for number in range(2)])
    expected = pipeline(
        ["a red ball"] * 2, negative_prompt=["a house"] * 2, latents=torch.from_numpy(noise), num_inference_steps=4,
        guidance_scale=3.0, output_type="pt", height=64, width=64,
    ).images  # fmt: skip
    assert drawn.std() > 0.02
    torch.testing.assert_close(drawn, torch.as_tensor(expected), atol=1e-3, rtol=0)


def test_what_is_not_given_is_the_model_s_own(model: LatentDiffusion) -> None:
    model.negative_prompt = "blurry"
    drawing = set_drawing(model, Drawing(guidance=2), CPU)
    assert (drawing.size, drawing.steps, drawing.guidance, drawing.negative_prompt) == (64, 50, 2, "blurry")


def test_the_precision_changes_the_arithmetic_and_little_else(model: LatentDiffusion) -> None:
    batch = batch_of(model, "a red ball")
    full, half = (
        next(draw_pictures(model, batch, set_drawing(model, Drawing(count=1, steps=2, precision=precision), CPU)))
        for precision in ("no", "bf16")
    )
    assert full.dtype == half.dtype == torch.float32
    assert 0 < (full - half).abs().mean() < 0.02


def test_impossible_drawings_are_refused(model: LatentDiffusion) -> None:
    with pytest.raises(ConfigError, match="precision fp16 needs a GPU"):
        set_drawing(model, Drawing(precision="fp16"), CPU)
    with pytest.raises(ConfigError, match="size 72: this model draws pictures whose side is a multiple of 16"):
        set_drawing(model, Drawing(size=72), CPU)


def test_repeated_batches_hold_their_sample_several_times(model: LatentDiffusion) -> None:
    repeated = repeat({**batch_of(model, "a red ball"), "caption": ["x"]}, 3)
    assert repeated["keys"] == ["prompt"] * 3
    assert repeated["caption"] == ["x"] * 3
    assert torch.equal(repeated["input_ids"], model.tokenize(["a red ball"] * 3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that CUDA finds")
def test_a_gpu_draws_in_half_precision(model: LatentDiffusion) -> None:
    drawing = set_drawing(model, Drawing(count=1, steps=2, precision="fp16"), torch.device("cuda"))
    batch = {"keys": ["prompt"], "input_ids": model.tokenize(["a ball"]).cuda(), "skipped": []}
    assert next(draw_pictures(model, batch, drawing)).shape == (3, 64, 64)
