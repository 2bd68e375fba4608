"""The sample autoencoder: its pictures, its measures by hand, and a training of one step."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from jobs.sample_models import autoencoder
from jobs.sample_models.autoencoder import SIDE, draw_pictures, measure, new_autoencoder
from jobs.sample_models.pools import Pool


def ramps(count: int, side: int = 256) -> NDArray[np.uint8]:
    """Pictures that grow from 0 at the left to 255 at the right."""
    row = np.round(np.linspace(0, 255, side)).astype(np.uint8)
    return np.broadcast_to(row[None, None, :, None], (count, side, side, 3)).copy()


def constant(model: AutoencoderKL, latent: float, pixel: float) -> AutoencoderKL:
    """Make half of the model's latents `latent` and half of them -`latent`, and all of its pixels `pixel`."""
    with torch.no_grad():
        for layer in (model.quant_conv, model.decoder.conv_out):
            layer.weight.zero_()
        model.quant_conv.bias.copy_(torch.tensor([latent, latent, -latent, -latent, 0, 0, 0, 0]))
        model.decoder.conv_out.bias.fill_(pixel)
    return model


def test_the_model_has_a_quarter_as_many_pixels_per_side_in_four_channels() -> None:
    model = new_autoencoder()
    with torch.no_grad():
        latents = model.encode(torch.zeros(2, 3, SIDE, SIDE)).latent_dist.mode()
        assert latents.shape == (2, 4, 16, 16)
        assert model.decode(latents).sample.shape == (2, 3, SIDE, SIDE)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(0.4e6, rel=0.15)


def test_black_is_minus_one_and_white_is_one() -> None:
    images = np.zeros((2, 256, 256, 3), np.uint8)
    images[1] = 255
    pictures = draw_pictures(images, np.random.default_rng(0), 2)
    assert (pictures.shape, pictures.dtype) == ((2, 3, SIDE, SIDE), torch.float32)
    assert sorted(float(picture.mean()) for picture in pictures) == [-1, 1]  # each is drawn once
    assert max(float(picture.std()) for picture in pictures) < 1e-6


def test_a_third_of_the_pictures_are_crops_of_two_sides() -> None:
    pictures = draw_pictures(ramps(150, 192), np.random.default_rng(0), 150)
    spans = pictures[:, 0, 0, -1] - pictures[:, 0, 0, 0]
    crops = spans < 1.7
    # A whole ramp goes from -1 to 1; 128 of its 192 pixels span two thirds of that.
    torch.testing.assert_close(spans[~crops], torch.full_like(spans[~crops], 2), atol=0.04, rtol=0)
    torch.testing.assert_close(spans[crops], torch.full_like(spans[crops], 4 / 3), atol=0.04, rtol=0)
    assert abs(crops.float().mean() - 1 / 3) < 4 * math.sqrt(2 / 9 / 150)
    starts = pictures[crops, 0, 0, 0]  # from column 0 to column 63, a third of the way
    assert starts.min() < -0.9
    assert -0.5 < starts.max() < -1 / 3 + 0.01


def test_crops_lie_at_any_height() -> None:
    pictures = draw_pictures(ramps(30, 192).transpose(0, 2, 1, 3).copy(), np.random.default_rng(0), 30)
    assert pictures[:, 0, 0, 0].std() > 0.1


@pytest.mark.parametrize(("pixel", "truth"), [(0.0, 0.2), (5.0, 0.8), (-5.0, -0.8)])
def test_the_peak_signal_to_noise_ratio_by_hand(pixel: float, truth: float) -> None:
    # An error of 0.2, once pixels are clipped to [-1, 1], of a span of 2: 20 log10(2 / 0.2) = 20 dB.
    model = constant(new_autoencoder(), 3.0, pixel).train()
    quality, spread = measure(model, torch.full((2, 3, SIDE, SIDE), truth))
    assert quality == pytest.approx(20, abs=1e-3)
    assert spread == pytest.approx(3, rel=1e-3)
    assert model.training


def test_a_trained_model_scales_its_latents_to_unit_variance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = Pool(ramps(66, 160), np.zeros((66, 160, 160), np.uint8), np.zeros((66, 5, 3), np.uint8))
    monkeypatch.setattr(autoencoder, "render_pool", lambda _: scenes)
    autoencoder.train(tmp_path, steps=1, batch=2)
    model = AutoencoderKL.from_pretrained(tmp_path)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    stored = (tmp_path / "diffusion_pytorch_model.safetensors").stat().st_size
    assert stored == pytest.approx(2 * parameters, rel=0.05)  # half precision
    # It is measured on the first 64 scenes, which it is not trained on.
    held_out = draw_pictures(scenes.images[:64], np.random.default_rng(0), 64)
    with torch.no_grad():
        spread = model.encode(held_out).latent_dist.mode().std().item()
    assert model.config.scaling_factor * spread == pytest.approx(1, rel=0.01)
