from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline

from schemas.errors import ModelError
from tests.training.models import CAPTIONS, tiny_batch, tiny_parts
from training.diffusion import Draws, LatentDiffusion, Parts, concatenate, load_stable_diffusion
from training.drops import Drop, Drops
from training.losses import min_snr_weights
from training.small import small_parts, small_scheduler
from transforms.models.places import SAMPLE


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


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_weights_are_those_of_the_paper(kind: str) -> None:
    """Noise: min(SNR, 5) / SNR; velocity: min(SNR, 5) / (SNR + 1)."""
    scheduler = small_scheduler()
    scheduler.register_to_config(prediction_type=kind)
    timesteps = torch.tensor([0, 100, 500, 999])
    signal = scheduler.alphas_cumprod[timesteps].double()
    snr = signal / (1 - signal)
    expected = snr.clamp(max=5) / (snr if kind == "epsilon" else snr + 1)
    torch.testing.assert_close(min_snr_weights(scheduler, timesteps, 5.0).double(), expected, rtol=1e-5, atol=1e-6)
    assert (snr > 5).tolist() == [True, True, False, False]


@pytest.mark.parametrize(("kind", "expected"), [("epsilon", 1.0), ("v_prediction", 0.0)])
def test_min_snr_weights_where_nothing_of_the_picture_is_left(kind: str, expected: float) -> None:
    scheduler = DDPMScheduler(rescale_betas_zero_snr=True, prediction_type=kind)
    assert scheduler.alphas_cumprod[-1] < 1e-6
    scheduler.alphas_cumprod[-1] = 0
    assert min_snr_weights(scheduler, torch.tensor([999]), 5.0).tolist() == [expected]


def test_min_snr_weights_the_error_of_each_sample(parts: Parts, vae: Path) -> None:
    model = LatentDiffusion(parts)
    batch = tiny_batch(tiny_parts(vae), [[True, True], [True, False]])
    draws = replace(model.draw(batch, np.random.default_rng(1)), timesteps=torch.tensor([20, 900]))
    with torch.no_grad():
        alone = [
            model({name: value[i : i + 1] for name, value in batch.items()}, sample_of(draws, i))["noise"].item()
            for i in range(2)
        ]
        together = model(batch, draws)["noise"].item()
        model.min_snr = 1.0
        weighted = model(batch, draws)["noise"].item()
    weights = min_snr_weights(parts.scheduler, draws.timesteps, 1.0).tolist()
    assert weights[0] < 0.2
    assert weights[1] == 1
    assert together == pytest.approx(sum(alone) / 2, rel=1e-4)
    assert weighted == pytest.approx((weights[0] * alone[0] + weights[1] * alone[1]) / 2, rel=1e-4)


def sample_of(draws: Draws, number: int) -> Draws:
    own = slice(number, number + 1)
    return Draws(draws.noise[own], draws.latent_noise[own], draws.timesteps[own])


def test_noise_offset_moves_the_noise_of_each_channel(parts: Parts, vae: Path) -> None:
    model = LatentDiffusion(parts)
    batch = tiny_batch(tiny_parts(vae), [[True, True]] * 2)
    plain = model.draw(batch, np.random.default_rng(1))
    model.noise_offset = 0.1
    draws = model.draw(batch, np.random.default_rng(1))
    assert torch.equal(draws.noise, plain.noise)
    moved = draws.to(torch.device("cpu")).with_offset()
    offset = (moved.noise - plain.noise).flatten(2)
    torch.testing.assert_close(offset, offset[..., :1].expand_as(offset), atol=1e-6, rtol=0)
    assert len({round(value, 4) for value in offset[..., 0].flatten().tolist()}) == 8
    assert 0.02 < offset[..., 0].std().item() < 0.3
    with torch.no_grad():
        assert model(batch, draws)["noise"] == model(batch, moved)["noise"] != model(batch, plain)["noise"]
    assert plain.with_offset() is plain


def test_fixed_draws_of_a_sample_are_the_same_in_any_batch(parts: Parts, vae: Path) -> None:
    model = LatentDiffusion(parts, {"batch": Drops((Drop(1.0, frozenset({"caption"})),))})
    model.noise_offset = 0.1
    both = tiny_batch(tiny_parts(vae), [[True, True]] * 2)
    alone = {**{name: value[1:] for name, value in both.items()}, "keys": both["keys"][1:]}
    first, second = model.fixed_draws(both, 3), model.fixed_draws(alone, 3)
    for name in ("noise", "latent_noise", "timesteps"):
        assert torch.equal(getattr(first, name)[1:], getattr(second, name)), name
        assert not torch.equal(getattr(first, name)[:1], getattr(second, name)), name
        assert not torch.equal(getattr(model.fixed_draws(alone, 4), name), getattr(second, name)), name
    assert first.dropped == frozenset()
    assert first.offset is None


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


def test_small_parts_start_from_a_model_and_learn_new_words() -> None:
    """All weights are those of the model; words that it does not know get embeddings from the seed."""
    known, new, other = (
        small_parts(SAMPLE / "text_to_image", [text], seed)
        for text, seed in (("a red ball", 0), ("a zebra", 0), ("a zebra", 1))
    )
    model = Parts(**load_stable_diffusion(SAMPLE / "text_to_image"))
    for part in ("text_encoder", "unet", "vae"):
        for name, value in getattr(model, part).state_dict().items():
            assert torch.equal(getattr(known, part).state_dict()[name], value)
    assert len(known.tokenizer) == len(model.tokenizer)
    old = model.text_encoder.get_input_embeddings().weight
    rows, rows_of_other = (parts.text_encoder.get_input_embeddings().weight for parts in (new, other))
    assert len(rows) == len(new.tokenizer) > len(old)
    assert torch.equal(rows[: len(old)], old)
    assert rows[len(old) :].std().item() == pytest.approx(old.std().item(), rel=0.3)
    assert not torch.equal(rows[len(old) :], rows_of_other[len(old) :])
    ids = new.tokenizer("a zebra", return_tensors="pt").input_ids
    assert ids.shape == (1, 4)
    assert new.text_encoder(ids).last_hidden_state.isfinite().all()


def test_initial_weights_depend_only_on_the_seed(vae: Path) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, second, other = (small_parts(vae, CAPTIONS, seed).unet.conv_in.weight for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())
