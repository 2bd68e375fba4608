import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from schemas.errors import ModelError
from tests.training.models import CAPTIONS, tiny_batch, tiny_parts
from training.configs.fastcomposer import Config
from training.diffusion import Draws
from training.latent_space import encode_pictures
from training.losses import noise_loss
from training.recipes.fastcomposer import TRAINING, Fuser, Model, Parts, load, subject_weight

TWO = [[True, True], [True, False]]


@pytest.fixture
def parts(vae: Path) -> Parts:
    return tiny_parts(vae)


def test_the_fuser_computes_the_formula() -> None:
    torch.manual_seed(0)
    fuser = Fuser(3, 2)
    text, image = torch.randn(4, 3), torch.randn(4, 2)

    def norm(x: list[float], layer: Any) -> list[float]:  # noqa: ANN401
        mean = sum(x) / len(x)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in x) / len(x) + 1e-5)
        weights = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
        return [(v - mean) / deviation * w + b for v, (w, b) in zip(x, weights, strict=True)]

    def linear(x: list[float], layer: Any) -> list[float]:  # noqa: ANN401
        rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
        return [sum(a * b for a, b in zip(x, row, strict=True)) + bias for row, bias in rows]

    def mlp(x: list[float], layers: torch.nn.Sequential) -> list[float]:
        hidden = linear(norm(x, layers[0]), layers[1])
        return linear([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in hidden], layers[3])

    expected = []
    for words, pixels in zip(text.tolist(), image.tolist(), strict=True):
        x = [a + b for a, b in zip(words, mlp(words + pixels, fuser.join), strict=True)]
        x = [a + b for a, b in zip(x, mlp(x, fuser.refine), strict=True)]
        expected.append(norm(x, fuser.norm))
    np.testing.assert_allclose(fuser(text, image).detach(), expected, atol=1e-5)


def test_the_noise_loss_is_the_mean_square_over_all_pixels() -> None:
    prediction, target = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([[[[0.0, 0.0], [3.0, 0.0]]]])
    assert noise_loss(prediction, target).item() == pytest.approx((1 + 4 + 0 + 16) / 4)
    weight = torch.tensor([[[[1.0, 0.5], [1.0, 0.0]]]])
    assert noise_loss(prediction, target, weight).item() == pytest.approx((1 + 1 + 0 + 0) / 4)


def test_the_masked_loss_covers_the_union_of_the_subjects() -> None:
    segmentation = torch.zeros(2, 3, 4, 4)
    segmentation[:, 0, :2, :2] = 1
    segmentation[:, 1, 2:, 2:] = 1
    segmentation[:, 2, :2, 2:] = 1  # belongs to no subject
    valid = torch.tensor([[True, True, False], [False, False, False]])
    weight = subject_weight(segmentation, valid, (4, 4))
    union = segmentation[0, 0] + segmentation[0, 1]
    assert torch.equal(weight[0, 0], union)
    assert not weight[1].any()


@pytest.mark.parametrize("count_empty", [False, True])
def test_a_sample_without_subjects_counts_in_a_masked_step_if_asked_for(parts: Parts, count_empty: bool) -> None:
    model = Model(parts, Config(count_empty=count_empty))
    batch = tiny_batch(parts, [[True, False], [False, False]])
    draws = replace(model.draw(batch, np.random.default_rng(0)), dropped=frozenset({"background"}))
    weight = model.weight(batch, draws, (16, 16))
    assert weight is not None
    assert weight[0].mean().item() == 0.5  # the subject's mask is the left half
    assert (weight[1] == float(count_empty)).all()


def test_the_masks_of_the_noise_loss_are_reduced_as_published() -> None:
    """From 8 x 8 to 1 x 1 pixels: bilinear without antialiasing takes the mean of the middle 2 x 2 pixels."""
    segmentation = torch.zeros(1, 2, 16, 8)
    segmentation[0, 0, :4] = 1
    segmentation[0, 1, 8:, :5] = 1
    weight = subject_weight(segmentation, torch.tensor([[True, True]]), (2, 1))
    assert weight.flatten().tolist() == [0.5, 1.0]


PUBLISHED = {
    "steps": 150_000,
    "batch": 16,
    "learning_rate": 1e-5,
    "warmup": 0,  # of `get_scheduler("constant")`, whatever `lr_warmup_steps` says
    "average": 0,  # no --use_ema
    "weight_decay": 0.01,
    "clip": 1,
    "precision": "bf16",
    "seed": 42,
    "resolution": 512,
    "reference": 224,
    "max_subjects": 4,
    "unconditional": 0.1,
    "text_only": 0,
    "subject_kept": 0.9,
    "mask_probability": 0.5,
    "count_empty": False,
    "localization_weight": 1e-3,
    "trained_blocks": 2,
    "train_encoders": False,
    "mirror": True,
    "augment": True,
}
"""Of scripts/run_training.sh in mit-han-lab/fastcomposer, and the defaults of its options."""


def test_the_preset_of_published_weights_is_the_published_run() -> None:
    config = Config(**TRAINING.presets["hub"])
    assert {name: getattr(config, name) for name in PUBLISHED} == PUBLISHED


def test_a_network_that_predicts_zero_has_the_mean_square_of_its_target_as_loss(parts: Parts) -> None:
    model = Model(parts, Config(localization_weight=0.25))
    torch.nn.init.zeros_(model.unet.conv_out.weight)
    torch.nn.init.zeros_(model.unet.conv_out.bias)
    batch = tiny_batch(parts, TWO)
    draws = model.draw(batch, np.random.default_rng(0))
    everywhere = Draws(draws.noise, draws.latent_noise, draws.timesteps)
    losses = model(batch, everywhere)
    assert losses["noise"].item() == pytest.approx(draws.noise.square().mean().item(), rel=1e-5)
    assert losses["loss"].item() == pytest.approx(losses["noise"].item() + 0.25 * losses["localization"].item())

    # Sample 0 has both halves, sample 1 the left half.
    without_background = replace(draws, dropped=frozenset({"background"}))
    masked = model(batch, without_background)["noise"].item()
    left = draws.noise[1, :, :, :8].square().sum().item()
    assert masked == pytest.approx((draws.noise[0].square().sum().item() + left) / draws.noise.numel(), rel=1e-5)
    assert model(batch, without_background)["whole_noise"].item() == pytest.approx(losses["noise"].item())
    assert losses["whole_noise"].item() == losses["noise"].item()

    model.scheduler.register_to_config(prediction_type="v_prediction")
    kept = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    a = kept[draws.timesteps].float().view(-1, 1, 1, 1)
    latents = encode_pictures(model.vae, batch["pixel_values"], draws.latent_noise)
    velocity = a.sqrt() * draws.noise - (1 - a).sqrt() * latents
    assert model(batch, everywhere)["noise"].item() == pytest.approx(velocity.square().mean().item(), rel=1e-4)


def test_the_forward_pass_matches_the_published_steps(parts: Parts) -> None:
    model = Model(parts)
    batch = tiny_batch(parts, TWO)
    draws = model.draw(batch, np.random.default_rng(1))
    with torch.no_grad():
        text = parts.text_encoder(batch["input_ids"])[0].clone()
        for sample, subject in ((0, 0), (0, 1), (1, 0)):
            mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
            std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
            normalized = (batch["subject_pixel_values"][sample, subject] - mean) / std
            image = parts.image_encoder(normalized[None]).image_embeds
            place = batch["subject_token_index"][sample, subject]
            text[sample, place] = parts.fuser(text[sample, place][None], image)[0]
        posterior = parts.vae.encode(batch["pixel_values"]).latent_dist
        latents = (posterior.mean + posterior.std * draws.latent_noise) * parts.vae.config.scaling_factor
        a = parts.scheduler.alphas_cumprod[draws.timesteps].view(-1, 1, 1, 1)
        noisy = a.sqrt() * latents + (1 - a).sqrt() * draws.noise
        prediction = parts.unet(noisy, draws.timesteps, text).sample
        expected = (prediction - draws.noise).square().mean().item()
        assert torch.allclose(model.fused_text(batch), text, atol=1e-5)
        plain = Draws(draws.noise, draws.latent_noise, draws.timesteps)
        assert model(batch, plain)["noise"].item() == pytest.approx(expected, rel=1e-5)


def test_fusing_changes_only_the_tokens_of_subjects(parts: Parts) -> None:
    model = Model(parts)
    batch = tiny_batch(parts, TWO)
    with torch.no_grad():
        changed = (model.fused_text(batch) != parts.text_encoder(batch["input_ids"])[0]).any(-1)
    ball, cup = batch["subject_token_index"][0].tolist()
    assert changed[0].nonzero().flatten().tolist() == sorted([ball, cup])
    assert changed[1].nonzero().flatten().tolist() == [ball]


@pytest.mark.parametrize("masked", [False, True])
def test_a_batch_without_subjects_gives_every_trained_parameter_a_gradient(parts: Parts, masked: bool) -> None:
    model = Model(parts, Config(train_encoders=True))
    batch = tiny_batch(parts, [[False, False]])
    assert torch.equal(model.fused_text(batch), parts.text_encoder(batch["input_ids"])[0])
    draws = model.draw(batch, np.random.default_rng(0))
    losses = model(batch, replace(draws, dropped=frozenset({"background"} if masked else ())))
    losses["loss"].backward()
    assert losses["localization"].item() == 0
    assert (losses["noise"].item() > 0.1) != masked  # a batch without subjects has nothing inside their masks
    unused = {"text_encoder.embeddings.position_ids"}
    without = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None} - unused
    assert without == set()


def test_the_unet_the_fuser_and_the_last_blocks_of_the_image_encoder_are_trained(parts: Parts) -> None:
    model = Model(parts, Config(trained_blocks=1))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"unet", "fuser", "image_encoder"}
    assert {name.split(".")[4] for name in trained if name.startswith("image_encoder")} == {"1"}


def test_draws_depend_only_on_their_generator(parts: Parts) -> None:
    model = Model(parts, Config(mask_probability=0.5))
    batch = tiny_batch(parts, TWO)
    first, second, other = (model.draw(batch, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.noise.shape == (2, 4, 16, 16)
    assert torch.equal(first.noise, second.noise)
    assert not torch.equal(first.noise, other.noise)
    assert not torch.equal(first.noise, first.latent_noise)
    masked = ["background" in model.draw(batch, np.random.default_rng(seed)).dropped for seed in range(200)]
    assert 70 < sum(masked) < 130


def test_sampling_starts_with_the_text_alone_and_adds_subjects_later(parts: Parts) -> None:
    model = Model(parts)
    batch = tiny_batch(parts, [[True, True]])
    texts: list[torch.Tensor] = []
    forward = model.unet.forward
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))

    def recording_forward(latents: torch.Tensor, time: torch.Tensor, encoder_hidden_states: torch.Tensor) -> object:
        texts.append(encoder_hidden_states)
        return forward(latents, time, encoder_hidden_states=encoder_hidden_states)

    model.unet.forward = recording_forward
    model.subject_share = 0.6
    pictures = model.sample(batch, noise, steps=5)
    assert pictures.shape == (1, 3, 64, 64)
    assert 0 <= pictures.min() <= pictures.max() <= 1
    with torch.no_grad():
        plain = parts.text_encoder(batch["input_ids"])[0]
        nothing = parts.text_encoder(model.tokenize([""]))[0]
        fused = model.fused_text(batch)
    assert len(texts) == 5
    for number, text in enumerate(texts):
        assert torch.allclose(text[:1], nothing, atol=1e-5)
        assert torch.allclose(text[1:], plain if number < 2 else fused, atol=1e-5)


def test_sampling_depends_only_on_its_noise_and_conditions(parts: Parts) -> None:
    model = Model(parts)
    batch = tiny_batch(parts, [[True, True]])
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    first = model.sample(batch, noise, steps=3)
    assert torch.equal(first, model.sample(batch, noise, steps=3))
    without = {**batch, "subject_mask": torch.zeros(1, 2, dtype=torch.bool)}
    assert not torch.equal(first, model.sample(without, noise, steps=3))
    model.subject_share = 0
    assert torch.equal(model.sample(batch, noise, steps=3), model.sample(without, noise, steps=3))


def test_a_saved_model_can_be_loaded_also_by_diffusers(parts: Parts, tmp_path: Path) -> None:
    batch = tiny_batch(parts, TWO)
    model = Model(parts)
    draws = model.draw(batch, np.random.default_rng(0))
    Model(parts).save(tmp_path / "model")
    loaded = Model(load(tmp_path / "model"))
    assert loaded(batch, draws)["loss"].item() == pytest.approx(model(batch, draws)["loss"].item(), rel=1e-6)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(CAPTIONS[0], num_inference_steps=2, output_type="np").images
    assert picture.shape == (1, 64, 64, 3)


def test_a_plain_stable_diffusion_gets_a_separate_image_encoder_and_a_new_fuser(parts: Parts, tmp_path: Path) -> None:
    Model(parts).save(tmp_path / "model")
    (tmp_path / "model" / "image_encoder").rename(tmp_path / "clip")
    for file in (tmp_path / "model" / "fuser").iterdir():
        file.unlink()
    (tmp_path / "model" / "fuser").rmdir()
    loaded = load(tmp_path / "model", image_encoder=tmp_path / "clip")
    assert loaded.fuser.join[0].normalized_shape == (128,)


def test_a_missing_model_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"no model in {tmp_path / 'none'}: .*Stable Diffusion 1.5's layout"):
        load(tmp_path / "none")
