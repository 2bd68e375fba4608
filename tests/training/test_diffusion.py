from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from schemas.errors import ModelError
from tests.training.models import CAPTIONS, tiny_batch, tiny_parts
from training.diffusion import Draws, LatentDiffusion, Parts, concatenate, load_stable_diffusion
from training.drops import Drop, Drops
from training.small import small_parts


@pytest.fixture
def parts(vae: Path) -> Parts:
    return small_parts(vae, CAPTIONS, seed=0)


def test_the_base_class_trains_text_to_image(parts: Parts, vae: Path) -> None:
    model = LatentDiffusion(parts)
    batch = tiny_batch(tiny_parts(vae), [[True, True], [True, False]])
    draws = model.draw(batch, np.random.default_rng(1))
    with torch.no_grad():
        posterior = parts.vae.encode(batch["pixel_values"]).latent_dist
        latents = (posterior.mean + posterior.std * draws.latent_noise) * parts.vae.config.scaling_factor
        a = parts.scheduler.alphas_cumprod[draws.timesteps].view(-1, 1, 1, 1)
        noisy = a.sqrt() * latents + (1 - a).sqrt() * draws.noise
        text = parts.text_encoder(batch["input_ids"]).last_hidden_state
        expected = (parts.unet(noisy, draws.timesteps, text).sample - draws.noise).square().mean().item()
    losses = model(batch, draws)
    assert losses.keys() == {"loss", "noise"}
    assert losses["loss"].item() == losses["noise"].item() == pytest.approx(expected, rel=1e-5)
    losses["loss"].backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.requires_grad == (not name.startswith("vae.")), name


class Penalized(LatentDiffusion):
    """Overrides every method that a recipe may override."""

    def conditions(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return {"encoder_hidden_states": 2 * self.encode_text(batch["input_ids"])}

    def weight(self, batch: object, draws: Draws, size: tuple[int, int]) -> torch.Tensor:
        del batch, draws
        weight = torch.zeros(1, 1, *size)
        weight[..., : size[1] // 2] = 1
        return weight

    def penalty(self, batch: object, conditions: dict[str, torch.Tensor]) -> dict[str, tuple[float, torch.Tensor]]:
        del batch
        return {"size": (0.25, conditions["encoder_hidden_states"].square().mean())}


def test_weight_conditions_and_penalties_change_the_loss(parts: Parts, vae: Path) -> None:
    model = Penalized(parts)
    torch.nn.init.zeros_(model.unet.conv_out.weight)
    torch.nn.init.zeros_(model.unet.conv_out.bias)
    batch = tiny_batch(tiny_parts(vae), [[True, True]])
    draws = model.draw(batch, np.random.default_rng(1))
    losses = model(batch, draws)
    left = draws.noise[..., :8].square().sum().item() / draws.noise.numel()
    size = 4 * parts.text_encoder(batch["input_ids"]).last_hidden_state.square().mean().item()
    assert losses["noise"].item() == pytest.approx(left, rel=1e-5)
    assert losses["size"].item() == pytest.approx(size, rel=1e-5)
    assert losses["loss"].item() == pytest.approx(left + 0.25 * size, rel=1e-5)


def test_guidance_moves_away_from_the_empty_caption(parts: Parts, vae: Path) -> None:
    model = LatentDiffusion(parts)
    batch = {**tiny_batch(tiny_parts(vae), [[True, True]]), "pixel_values": None}
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    pictures = model.sample(batch, noise, steps=2)
    assert pictures.shape == (1, 3, 64, 64)
    assert 0 <= pictures.min() <= pictures.max() <= 1
    assert torch.equal(pictures, model.sample(batch, noise, steps=2))
    assert not torch.equal(pictures, model.sample(batch, noise, steps=2, guidance=1.0))
    conditions = model.sampling_conditions(batch, 3)
    assert len(conditions) == 3
    with torch.no_grad():
        both = model.encode_text(torch.cat([model.tokenize([""]), batch["input_ids"]]))
        torch.testing.assert_close(conditions[0]["encoder_hidden_states"], both)
        uncaptioned = {**batch, "input_ids": model.tokenize([""])}
        guided, plain = (model.sample(uncaptioned, noise, steps=2, guidance=guidance) for guidance in (7.5, 1.0))
        torch.testing.assert_close(guided, plain, atol=1e-5, rtol=1e-5)


def test_by_default_there_are_no_reference_pictures(parts: Parts, vae: Path) -> None:
    assert LatentDiffusion(parts).references(tiny_batch(tiny_parts(vae), [[True, True]] * 2)).shape == (2, 0, 3, 64, 64)


def test_drops_per_batch_are_drawn_after_the_noise(parts: Parts, vae: Path) -> None:
    batch = tiny_batch(tiny_parts(vae), [[True, True]])
    undropped = LatentDiffusion(parts).draw(batch, np.random.default_rng(0))
    always = LatentDiffusion(parts, {"batch": Drops((Drop(1.0, frozenset({"caption"})),))})
    assert undropped.dropped == frozenset()
    assert always.draw(batch, np.random.default_rng(0)).dropped == {"caption"}
    assert torch.equal(always.draw(batch, np.random.default_rng(0)).noise, undropped.noise)
    assert always.draw(batch, np.random.default_rng(0)).to(torch.device("cpu")).dropped == {"caption"}


def test_concatenated_batches_leave_out_missing_pictures() -> None:
    first = {"pixel_values": None, "input_ids": torch.tensor([[1]]), "keys": ["a"]}
    joined = concatenate(first, {"pixel_values": None, "input_ids": torch.tensor([[2]]), "keys": ["b"]})
    assert joined.keys() == {"input_ids", "keys"}
    assert joined["input_ids"].tolist() == [[1], [2]]
    assert joined["keys"] == ["a", "b"]


def test_a_saved_model_can_be_loaded_also_by_diffusers(parts: Parts, tmp_path: Path) -> None:
    LatentDiffusion(parts).save(tmp_path / "model")
    loaded = Parts(**load_stable_diffusion(tmp_path / "model"))
    assert torch.equal(loaded.unet.conv_in.weight, parts.unet.conv_in.weight)
    assert sorted(path.name for path in (tmp_path / "model").iterdir() if path.is_dir()) == [
        "scheduler", "text_encoder", "tokenizer", "unet", "vae",
    ]  # fmt: skip
    StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match=f"no model in {tmp_path / 'none'}: .*Stable Diffusion 1.5's layout"):
        load_stable_diffusion(tmp_path / "none")


def test_initial_weights_depend_only_on_the_seed(vae: Path) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, second, other = (small_parts(vae, CAPTIONS, seed).unet.conv_in.weight for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())
