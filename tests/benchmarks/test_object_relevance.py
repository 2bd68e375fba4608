from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DDIMScheduler
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

from benchmarks.localization import examples_of
from benchmarks.object_relevance import (
    HELD_OUT,
    STEPS,
    STRENGTH,
    TIME,
    TRAINING,
    Disturbed,
    Words,
    measure,
    redraw,
    score,
    scores_of,
    teach,
)
from schemas.samples import mip_adapter
from schemas.samples.mip_adapter import Record
from tests.datasets import write_dataset
from tests.training.objects import tiny_mip_parts, tiny_objects
from training.localization import localization_loss
from training.recipes.mip_adapter import Model


def predict(_: Tensor) -> Tensor:
    pytest.fail("f was called")


def test_examples_hold_two_objects_or_more_in_their_boxes() -> None:
    for example in examples_of(TRAINING, 4):
        record = Record.from_example(example)
        assert len(record.objects) >= 2
        for thing in record.objects:
            assert thing.bbox == thing.segmentation.to_mask().bbox
            assert thing.name in thing.text


def test_a_score_by_hand() -> None:
    """Of 4 x 4 pixels the box (1, 0, 2, 2) holds four, which changed by 3; the others by 1, and one of them by 13."""
    change = np.ones((1, 4, 4))
    change[0, :2, 1:3] = 3
    change[0, 3, 3] = 13
    assert scores_of(change, np.array([[1.0, 0, 2, 2]])) == pytest.approx([3 / 2])
    assert scores_of(change, np.array([[0.6, 0.4, 2, 2]])) == pytest.approx([3 / 2])  # middles decide: the same pixels


@pytest.mark.parametrize("box", [[0.0, 0, 4, 4], [1, 1, 0, 0]])
def test_without_pixels_on_both_sides_there_is_no_score(box: list[float]) -> None:
    assert np.isnan(scores_of(np.ones((1, 4, 4)), np.array([box]))).all()


def test_even_noise_and_noise_by_relevance_differ_in_their_weight_only() -> None:
    text = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(0))
    images = torch.zeros(1, 2, 2, 3)
    relevances = torch.tensor([[[0.5, 0.5], [0.0, 1.0]]])
    added = {
        chosen: Disturbed(torch.Generator().manual_seed(1), chosen=chosen)(text, images, relevances, predict) - text
        for chosen in (None, 0, 1)
    }
    torch.testing.assert_close(added[0], added[None])
    torch.testing.assert_close(added[1], added[None] * torch.tensor([[[0.0], [2.0]]]))
    noise = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(added[None], noise * text.std() * STRENGTH)


def test_undisturbed_a_picture_is_drawn_as_the_plain_unet_draws_it(tmp_path: Path) -> None:
    parts = tiny_mip_parts(tmp_path / "vae")
    model = Model(parts)
    batch = tiny_objects(parts, [[True, True]])
    calm = redraw(model, batch, Disturbed(torch.Generator(), strength=0.0))
    noise = model.draw(batch, np.random.default_rng(TIME)).noise
    parts.unet.set_attn_processor(AttnProcessor2_0())
    schedule = DDIMScheduler.from_config(parts.scheduler.config)
    schedule.set_timesteps(STEPS)
    with torch.no_grad():
        latents = parts.vae.encode(batch["pixel_values"]).latent_dist.mean * parts.vae.config.scaling_factor
        a = parts.scheduler.alphas_cumprod[551]
        latents = a.sqrt() * latents + (1 - a).sqrt() * noise
        for time in range(551, 0, -50):
            predicted = parts.unet(latents, time, model.encode_text(batch["input_ids"])).sample
            latents = schedule.step(predicted, time, latents).prev_sample
        expected = parts.vae.decode(latents / parts.vae.config.scaling_factor).sample.clamp(-1, 1)
    torch.testing.assert_close(calm, expected, atol=1e-4, rtol=1e-4)


def test_scores_are_those_of_the_pictures(tmp_path: Path) -> None:
    parts = tiny_mip_parts(tmp_path / "vae")
    model = Model(parts)
    batch = tiny_objects(parts, [[True, True], [True, False]])
    found = measure(model, iter([batch]))
    assert found.shape == (2, 3)  # the object that is alone in its picture is left out
    calm, even, first, second = (
        redraw(model, batch, Disturbed(torch.Generator().manual_seed(0), strength, chosen)).numpy()
        for strength, chosen in ((0.0, None), (STRENGTH, None), (STRENGTH, 0), (STRENGTH, 1))
    )

    def left_over_right(picture: np.ndarray) -> float:
        change = np.abs(picture - calm)[0].mean(0)
        return float(change[:, :32].mean() / change[:, 32:].mean())

    scores = [left_over_right(picture) for picture in (first, second, even)]
    assert found[0] == pytest.approx(scores)
    assert found[1] == pytest.approx([1 / scores[i] for i in (1, 0, 2)])


def test_words_are_taught_by_names_after_the_caption(tmp_path: Path) -> None:
    parts = tiny_mip_parts(tmp_path / "vae")
    model = Words(parts)
    batch = tiny_objects(parts, [[True, True]])
    draws = model.draw(batch, np.random.default_rng(0))
    losses = model(batch, draws)
    assert losses["loss"].item() == pytest.approx(losses["noise"].item() + 3 * losses["localization"].item())
    swapped = {**batch, "object_input_ids": batch["object_input_ids"].flip(1)}
    assert model(swapped, draws)["localization"].item() != pytest.approx(losses["localization"].item(), abs=1e-7)
    encoded: list[Tensor] = []
    unet = parts.unet.forward

    def spy(
        latents: Tensor, time: Tensor, encoder_hidden_states: Tensor, cross_attention_kwargs: dict[str, object]
    ) -> object:
        encoded.append(encoder_hidden_states)
        result = unet(latents, time, encoder_hidden_states, cross_attention_kwargs=cross_attention_kwargs)
        maps = list(cross_attention_kwargs["subjects"].maps.values())  # type: ignore[attr-defined]
        terms = [localization_loss(layer, batch["object_segmentation"], batch["object_mask"]).item() for layer in maps]
        assert np.mean(terms) == pytest.approx(losses["localization"].item(), abs=1e-6)
        assert cross_attention_kwargs["subjects"].token_index.tolist() == [[78, 94]]  # type: ignore[attr-defined]
        return result

    parts.unet.forward = spy
    model(batch, draws)
    with torch.no_grad():
        torch.testing.assert_close(encoded[0][:, :77], model.encode_text(batch["input_ids"]))
        alone = parts.tokenizer("cup", return_tensors="pt").input_ids
        torch.testing.assert_close(encoded[0][:, 93:96], model.encode_text(alone), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_model_that_was_taught_words_knows_where_they_are(tmp_path: Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    write_dataset(tmp_path / "training", [examples_of(TRAINING, 60)], sample_format=mip_adapter.FORMAT)
    write_dataset(tmp_path / "held-out", [examples_of(HELD_OUT, 16)], sample_format=mip_adapter.FORMAT)
    parts = teach(tmp_path / "training", tmp_path / "run", 0, 60)
    scores = score(parts, tmp_path / "held-out", 16, 16)
    gaps = scores[:, 0] - scores[:, 2]
    assert gaps.mean() > 3 * gaps.std(ddof=1) / np.sqrt(len(gaps))
