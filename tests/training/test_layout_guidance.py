"""Layout guidance: its energy, gradient and windows by hand, its steps in two samplers, and its effect."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from schemas.errors import ConfigError
from schemas.layouts import layout_of
from tests.training.models import CAPTIONS, save_tiny_autoencoder
from training.diffusion import LatentDiffusion
from training.drawing import Placing
from training.guidance import SamplingStep, follow
from training.layout_guidance import (
    Target,
    cell_mask,
    coarsest_side,
    energy,
    energy_gradient,
    find_targets,
    guide_layout,
    guided_layers,
    mix,
    span_of,
    step_size,
    watch,
    widened,
    window_maps,
)
from training.small import small_parts
from training.tokenizer import token_range

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
LAYOUT = layout_of(CAPTIONS[0], [("a red ball", LEFT), ("a blue cup", RIGHT)])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LatentDiffusion:
    folder = tmp_path_factory.mktemp("layout") / "vae"
    save_tiny_autoencoder(folder)
    return LatentDiffusion(small_parts(folder, CAPTIONS, 0))


def step_of(model: LatentDiffusion, sampler: Any = DDIMScheduler, number: int = 0) -> SamplingStep:  # noqa: ANN401
    schedule = sampler.from_config(model.scheduler.config)
    schedule.set_timesteps(10)
    ids = model.tokenize(["", CAPTIONS[0]])
    with torch.no_grad():
        conditions = model.conditions({"input_ids": ids})
    return SamplingStep(number, 10, schedule.timesteps[number], schedule, model.predict, conditions, 3.0)


def noise(seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((1, 4, 16, 16), np.float32))


def test_the_energy_of_a_map_is_that_computed_by_hand() -> None:
    """Two heads, 2 x 2 cells, three tokens. Of token 1, the left column has 0.6 of head 0 and all of head 1."""
    attention = torch.zeros(1, 2, 4, 3)
    attention[0, 0, :, 1] = torch.tensor([0.1, 0.2, 0.2, 0.0])
    attention[0, 1, :, 1] = torch.tensor([0.3, 0.0, 0.1, 0.0])
    attention[0, :, :, 2] = 0.25  # evenly spread: 0.5 of it in either column
    first = energy(attention, [Target(range(1, 2), (LEFT,))])
    assert first.tolist() == pytest.approx([(0.4**2 + 0) / 2])
    second = energy(attention, [Target(range(2, 3), (RIGHT,))])
    assert second.tolist() == pytest.approx([0.25])
    both = energy(attention, [Target(range(1, 3), (LEFT,)), Target(range(2, 3), (RIGHT,))])
    assert both.tolist() == pytest.approx([((0.08 + 0.25) / 2 + 0.25) / 2])
    whole = energy(attention, [Target(range(1, 2), (LEFT, RIGHT))])
    assert whole.tolist() == pytest.approx([0])


def test_the_gradient_is_that_of_finite_differences(model: LatentDiffusion) -> None:
    watch(model.unet, guided_layers(model.unet))
    targets = find_targets(LAYOUT, model.tokenizer)
    model.unet.double()
    try:
        step = step_of(model)
        step.conditions["encoder_hidden_states"] = step.conditions["encoder_hidden_states"].double()
        latents = noise().double()
        _, gradient = energy_gradient(step, latents, targets)
        direction = noise(1).double()
        ends = [energy_gradient(step, latents + sign * 1e-4 * direction, targets)[0] for sign in (1, -1)]
        slope = float((ends[0] - ends[1]) / 2e-4)
    finally:
        model.unet.float()
    assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-4)
    assert abs(slope) > 1e-6


def test_recording_attention_does_not_change_the_prediction(model: LatentDiffusion) -> None:
    step, latents, seen = step_of(model), noise(), []
    plain = step.predict(latents)
    watch(model.unet, guided_layers(model.unet))

    def record(attention: Tensor) -> Tensor:
        seen.append(attention)
        return attention

    with torch.no_grad():
        torch.testing.assert_close(step.predict(latents, layout=record), plain, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(step.predict(latents), plain, rtol=1e-4, atol=1e-5)
    assert [tuple(attention.shape[2:]) for attention in seen] == [(16, 77), (64, 77), (64, 77)]
    assert all(torch.allclose(attention.sum(-1), torch.ones(())) for attention in seen)


@pytest.mark.parametrize("name", ["code", "paper"])
def test_a_move_is_the_same_in_samplers_of_either_scale(model: LatentDiffusion, name: Any) -> None:  # noqa: ANN401
    """Euler's latents are sqrt(1 + sigma^2) times DDIM's, and so must be their moves."""
    watch(model.unet, guided_layers(model.unet))
    placing, targets, latents = Placing(step=name), find_targets(LAYOUT, model.tokenizer), noise()
    plain, grown = step_of(model), step_of(model, EulerDiscreteScheduler)
    grown = SamplingStep(0, 10, plain.time.float(), grown.schedule, grown.run, grown.conditions, 3.0)
    grown.schedule.set_timesteps(timesteps=plain.schedule.timesteps.tolist())
    alpha_bar = float(plain.schedule.alphas_cumprod[plain.time])
    sigma = math.sqrt((1 - alpha_bar) / alpha_bar)
    scale = math.sqrt(1 + sigma**2)
    _, gradient = energy_gradient(plain, latents, targets)
    _, larger = energy_gradient(grown, latents * scale, targets)
    expected = placing.eta * sigma ** (2 if name == "code" else 1)
    assert step_size(grown, placing) == pytest.approx(expected)
    torch.testing.assert_close(
        step_size(grown, placing) * larger, scale * step_size(plain, placing) * gradient, rtol=1e-2, atol=1e-6
    )


def test_windows_sum_to_one_and_mixing_keeps_the_attention_of_a_token() -> None:
    targets = [Target(range(1, 3), (LEFT,)), Target(range(4, 5), ((0.5, 0.5, 1.0, 1.0),))]
    windows = window_maps(targets, 8)
    assert windows.sum((1, 2)).tolist() == pytest.approx([1, 1])
    assert windows[0, :, :4].sum() > 0.9
    assert windows[1, 4:, 4:].sum() > 0.9
    attention = torch.rand(2, 3, 64, 6, generator=torch.Generator().manual_seed(0)).softmax(-1)
    mixed = mix(attention, targets, windows, 0.8)
    torch.testing.assert_close(mixed.sum(2), attention.sum(2))
    torch.testing.assert_close(mixed[..., [0, 3, 5]], attention[..., [0, 3, 5]])
    by_hand = 0.2 * attention[1, 2, 11, 2] + 0.8 * windows[0, 1, 3] * attention[1, 2, :, 2].sum()
    assert float(mixed[1, 2, 11, 2]) == pytest.approx(float(by_hand))
    torch.testing.assert_close(mix(attention, targets, windows, 0.0), attention)


@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from([4, 8, 16]))
def test_a_box_covers_the_cells_between_its_rounded_ends_and_at_least_one(a: float, b: float, side: int) -> None:
    low, high = sorted((a, b))
    first, last = span_of(low, high, side)
    assert 0 <= first < last <= side
    published = math.floor(low * side), math.floor(high * side)
    if published[0] < published[1]:
        assert (first, last) == published
    else:
        assert last - first == 1


def test_a_narrow_box_is_widened_and_said_to_be() -> None:
    narrow = (0.3, 0.3, 0.35, 0.9)
    assert cell_mask([narrow], 8).sum() == 5  # one column, rows 2 to 6
    assert cell_mask([LEFT, RIGHT], 8).sum() == 64
    layout = layout_of(CAPTIONS[0], [("a red ball", narrow), ("a blue cup", RIGHT)])
    assert widened(layout, 8) == ["a red ball"]
    assert widened(layout, 64) == []


def test_the_coarsest_cells_are_those_of_the_middle_block(model: LatentDiffusion) -> None:
    assert coarsest_side(model, 64) == 4


def test_guided_layers_are_the_published_ones() -> None:
    """For Stable Diffusion 1.5: one layer of 8 x 8 in the middle, three of 16 x 16."""
    names = [f"up_blocks.{b}.attentions.{i}.transformer_blocks.0.attn2.processor" for b in (1, 2, 3) for i in range(3)]
    names.append("mid_block.attentions.0.transformer_blocks.0.attn2.processor")

    class Unet:
        attn_processors = dict.fromkeys(names)

    chosen = guided_layers(Unet())
    assert [name.split(".")[:2] for name in chosen] == [["up_blocks", "1"]] * 3 + [["mid_block", "attentions"]]


def test_phrases_are_found_by_their_characters_not_by_words(model: LatentDiffusion) -> None:
    """Commas, repeats and words of several tokens move no phrase."""
    prompt = "a zebra, a red ball, and a red ball"
    first, second = prompt.index("a red"), prompt.rindex("a red")
    ids = model.tokenize([prompt])[0]
    for start in (first, second):
        low, high = token_range(prompt, start, start + len("a red ball"), model.tokenizer)
        assert model.tokenizer.decode(ids[low:high]).strip() == "a red ball"
    spans = [token_range(prompt, start, start + 10, model.tokenizer) for start in (first, second)]
    assert spans[0][1] < spans[1][0]
    long = "a red ball " * 40 + "and a blue cup"
    with pytest.raises(ConfigError, match="beyond the 77 tokens"):
        token_range(long, len(long) - 10, len(long), model.tokenizer)


def sample(model: LatentDiffusion, placing: Placing | None, start: Tensor) -> Tensor:
    guide = guide_layout(model, LAYOUT, placing) if placing else follow
    batch = {"input_ids": model.tokenize([CAPTIONS[0]] * len(start))}
    return model.sample(batch, start, steps=3, guidance=2.0, guide=guide)


def test_backward_guidance_lowers_the_energy_and_moves_each_sample_by_itself(model: LatentDiffusion) -> None:
    placing = Placing(share=1.0, eta=200.0, enough=0.0)
    guide = guide_layout(model, LAYOUT, placing)
    targets, step, latents = find_targets(LAYOUT, model.tokenizer), step_of(model, number=5), noise()
    with torch.no_grad():
        moved, prediction = guide(step, latents)
        torch.testing.assert_close(prediction, step.predict(moved))
    before, after = (energy_gradient(step, z, targets)[0] for z in (latents, moved))
    assert after < before
    pair = sample(model, placing, torch.cat([noise(1), noise()]))
    torch.testing.assert_close(pair[1:], sample(model, placing, noise()), rtol=0, atol=2e-3)


def test_guidance_that_moves_nothing_draws_the_same_picture(model: LatentDiffusion) -> None:
    plain = sample(model, None, noise())
    for placing in (Placing(share=0.0), Placing(eta=0.0), Placing(enough=1.0), Placing(way="forward", strength=0.0)):
        torch.testing.assert_close(sample(model, placing, noise()), plain, rtol=0, atol=1e-4)
    for placing in (Placing(eta=500.0), Placing(way="forward")):
        assert (sample(model, placing, noise()) - plain).abs().max() > 1e-3


def test_forward_guidance_leaves_the_unconditional_half_alone(model: LatentDiffusion) -> None:
    """With a guidance of 0 only the unconditional half is drawn: nothing may change."""
    start = noise()
    batch = {"input_ids": model.tokenize([CAPTIONS[0]])}
    guide = guide_layout(model, LAYOUT, Placing(way="forward", share=1.0, strength=1.0))
    pictures = [model.sample(batch, start, steps=2, guidance=0.0, guide=g) for g in (follow, guide)]
    torch.testing.assert_close(pictures[0], pictures[1], rtol=0, atol=1e-4)
