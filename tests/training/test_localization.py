import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from schemas.errors import ModelError
from tests.training.models import tiny_batch, tiny_parts
from training.configs.fastcomposer import Config
from training.localization import Subjects, attend, localization_loss, localize, localized_layers
from training.recipes.fastcomposer import Model


def formula(attention: Tensor, masks: Tensor, valid: Tensor) -> float:
    """The published formula, computed pixel by pixel, for masks of the layer's size."""
    batch, heads, pixels, subjects = attention.shape
    total = 0.0
    for b, h in product(range(batch), range(heads)):
        terms = []
        for j in range(subjects):
            if valid[b, j]:
                a = [float(attention[b, h, p, j]) for p in range(pixels)]
                m = [float(v) for v in masks[b, j].flatten()]
                inside = sum(x * y for x, y in zip(a, m, strict=True)) / (sum(m) + 1e-5)
                outside = sum(x * (1 - y) for x, y in zip(a, m, strict=True)) / (sum(1 - y for y in m) + 1e-5)
                terms.append(outside - inside)
        total += sum(terms) / (len(terms) + 1e-5)
    return total / (batch * heads)


def random_case(seed: int, shape: tuple[int, int, int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, height, width, subjects = shape
    rng = np.random.default_rng(seed)
    attention = torch.from_numpy(rng.random((batch, heads, height * width, subjects)))
    masks = torch.from_numpy(rng.random((batch, subjects, height, width)))
    return attention, masks, torch.from_numpy(rng.random((batch, subjects)) < 0.6)


@given(
    seed=st.integers(0, 2**32),
    shape=st.tuples(*(st.integers(1, n) for n in (3, 2, 5, 5, 4))),
)
@settings(max_examples=60, deadline=None)
def test_the_loss_is_the_formula(seed: int, shape: tuple[int, int, int, int, int]) -> None:
    attention, masks, valid = random_case(seed, shape)
    assert localization_loss(attention, masks, valid).item() == pytest.approx(
        formula(attention, masks, valid), abs=1e-9
    )
    single = localization_loss(attention.float(), masks.float(), valid)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(formula(attention, masks, valid), abs=1e-5)


def test_masks_are_resized_to_the_layer_with_soft_edges() -> None:
    """A mask of the left column of 4 x 4 pixels becomes (3/7, 0) in each row of 2 x 2."""
    masks = torch.zeros(1, 1, 4, 4)
    masks[..., 0] = 1
    attention = torch.tensor([0.4, 0.1, 0.4, 0.1]).view(1, 1, 4, 1)
    outside = (2 * 0.4 * 4 / 7 + 2 * 0.1) / (2 * 4 / 7 + 2)
    loss = localization_loss(attention, masks, torch.ones(1, 1, dtype=torch.bool))
    assert loss.item() == pytest.approx(outside - 0.4, abs=1e-5)


def test_a_worked_example() -> None:
    attention = torch.tensor([0.8, 0.2, 0.0, 0.0]).view(1, 1, 4, 1)
    masks = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 2, 2)
    loss = localization_loss(attention, masks, torch.ones(1, 1, dtype=torch.bool))
    assert loss.item() == pytest.approx(0 - (0.8 + 0.2) / 2, abs=1e-4)


def test_gradients_match_finite_differences() -> None:
    attention, masks, valid = random_case(3, (2, 2, 3, 4, 3))
    valid[0] = torch.tensor([True, False, True])
    assert torch.autograd.gradcheck(lambda a: localization_loss(a, masks, valid), attention.requires_grad_())


def test_an_empty_mask_lowers_attention_and_a_full_mask_raises_it() -> None:
    attention = torch.full((1, 1, 4, 1), 0.25, requires_grad=True)
    valid = torch.ones(1, 1, dtype=torch.bool)
    empty = localization_loss(attention, torch.zeros(1, 1, 2, 2), valid)
    full = localization_loss(attention, torch.ones(1, 1, 2, 2), valid)
    assert empty.item() == pytest.approx(0.25, abs=1e-4)
    assert full.item() == pytest.approx(-0.25, abs=1e-4)
    (down,) = torch.autograd.grad(empty, attention)
    (up,) = torch.autograd.grad(full, attention)
    assert (down > 0).all()
    assert (up < 0).all()


def test_without_subjects_the_loss_is_zero_and_so_is_its_gradient() -> None:
    attention = torch.rand(2, 2, 4, 3, requires_grad=True)
    loss = localization_loss(attention, torch.rand(2, 3, 2, 2), torch.zeros(2, 3, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(loss, attention)
    assert loss.item() == 0
    assert not gradient.any()


def test_values_in_the_padding_do_not_matter() -> None:
    attention, masks, _ = random_case(5, (2, 2, 3, 3, 4))
    valid = torch.tensor([[True, True, False, False], [True, False, False, False]])
    expected = localization_loss(attention, masks, valid)
    nan_attention, nan_masks = attention.clone(), masks.clone()
    nan_attention.transpose(2, 3)[~valid[:, None].expand(-1, 2, -1)] = math.nan
    nan_masks[~valid] = math.nan
    nan_attention.requires_grad_()
    loss = localization_loss(nan_attention, nan_masks, valid)
    assert loss.item() == pytest.approx(expected.item())
    (gradient,) = torch.autograd.grad(loss, nan_attention)
    assert gradient.isfinite().all()


def test_half_precision_is_summed_in_single() -> None:
    attention, masks, valid = random_case(7, (2, 2, 16, 16, 3))
    loss = localization_loss(attention.bfloat16(), masks.bfloat16(), valid)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(formula(attention, masks, valid), abs=2e-3)


def test_layers_have_the_aspect_ratio_of_the_picture() -> None:
    attention, masks, valid = random_case(1, (1, 1, 2, 6, 1))
    assert localization_loss(attention, masks, valid).item() == pytest.approx(formula(attention, masks, valid))
    strip = localization_loss(torch.tensor([0.2, 0.4]).view(1, 1, 2, 1), torch.ones(1, 1, 1, 16), torch.ones(1, 1) > 0)
    assert strip.item() == pytest.approx(-0.3, abs=1e-4)  # 1 x 2 pixels, though half a row would be nearer in shape
    with pytest.raises(ValueError, match="a layer of 7 pixels cannot have the shape of masks of 4 x 4 pixels"):
        localization_loss(torch.rand(1, 1, 7, 1), torch.rand(1, 1, 4, 4), torch.ones(1, 1, dtype=torch.bool))


@pytest.mark.parametrize("width", [3, 8, 40])
def test_attend_returns_plain_attention_and_the_probabilities_of_the_chosen_tokens(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, n, width, generator=generator) for n in (10, 7, 7))
    index = torch.tensor([[1, 4, 4], [0, 6, 2]])
    columns = F.one_hot(index, 7).transpose(1, 2).float()
    both = attend(query, key, value, columns, 0.3)
    output, recorded = both[..., :width], both[..., width : width + 3]
    assert both.shape[-1] % 8 == 0
    assert not both[..., width + 3 :].any()
    probabilities = (query @ key.transpose(-1, -2) * 0.3).softmax(-1)
    torch.testing.assert_close(output, probabilities @ value)
    for b, j in product(range(2), range(3)):
        torch.testing.assert_close(recorded[b, :, :, j], probabilities[b, :, :, index[b, j]])


def test_the_layers_chosen_in_stable_diffusion_match_the_paper() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
    layers = localized_layers(unet)
    assert len(layers) == 11
    blocks = [".".join(name.split(".")[:2]) if "mid" not in name else "mid" for name in layers]
    assert list(dict.fromkeys(blocks)) == ["down_blocks.1", "down_blocks.2", "mid", "up_blocks.1", "up_blocks.2"]
    assert all(name.endswith(".attn2") for name in layers)
    assert len(localized_layers(unet, blocks=1)) == 1
    assert len(localized_layers(unet, blocks=99)) == 16
    localize(unet)
    recording = [processor.layer for processor in unet.attn_processors.values() if processor.layer]
    assert sorted(recording) == sorted(layers)


def test_the_output_of_the_unet_is_unchanged_and_the_probabilities_are_recorded(vae: Path) -> None:
    parts = tiny_parts(vae)
    unet, batch = parts.unet, tiny_batch(parts, [[True, True], [True, False]])
    unet.set_attn_processor(AttnProcessor2_0())
    text = parts.text_encoder(batch["input_ids"]).last_hidden_state
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    projections: dict[str, Tensor] = {}

    def recorder(name: str) -> object:
        def record(_module: object, _inputs: object, output: Tensor) -> None:
            projections[name] = output

        return record

    modules = dict(unet.named_modules())
    chosen = localized_layers(unet, 3)
    hooks = [
        modules[f"{layer}.{part}"].register_forward_hook(recorder(f"{layer}.{part}"))
        for layer in chosen
        for part in ("to_q", "to_k")
    ]
    plain = unet(latents, 10, text).sample
    for hook in hooks:
        hook.remove()
    localize(unet, 3)
    subjects = Subjects(batch["subject_token_index"], batch["subject_mask"])
    localized = unet(latents, 10, text, cross_attention_kwargs={"subjects": subjects}).sample
    torch.testing.assert_close(localized, plain)
    torch.testing.assert_close(unet(latents, 10, text).sample, plain)
    assert list(subjects.maps) == chosen
    for layer, attention in subjects.maps.items():
        heads = modules[layer].heads
        query, key = (
            projections[f"{layer}.{part}"].unflatten(-1, (heads, -1)).transpose(1, 2) for part in ("to_q", "to_k")
        )
        full = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
        for b, j in product(range(2), range(2)):
            expected = full[b, :, :, batch["subject_token_index"][b, j]]
            torch.testing.assert_close(attention[b, :, :, j], expected)
    masks = batch["subject_segmentation"]
    layers = [localization_loss(a, masks, subjects.valid).item() for a in subjects.maps.values()]
    assert subjects.loss(masks).item() == pytest.approx(sum(layers) / len(layers))


def test_gradient_checkpointing_changes_no_gradient(vae: Path) -> None:
    parts = tiny_parts(vae)
    model = Model(parts, Config(localization_weight=10.0))
    batch = tiny_batch(parts, [[True, True], [False, False]])
    draws = model.draw(batch, np.random.default_rng(0))
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.unet.enable_gradient_checkpointing()
        model.zero_grad()
        model(batch, draws)["loss"].backward()
        gradients.append({name: p.grad.clone() for name, p in model.unet.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_an_unsupported_attention_layer_is_refused(vae: Path) -> None:
    unet = tiny_parts(vae).unet
    layer = dict(unet.named_modules())[localized_layers(unet)[0]]
    layer.group_norm = torch.nn.GroupNorm(1, 48)
    with pytest.raises(
        ModelError, match=r"^layer down_blocks\.0\..* has a group_norm: its attention cannot be localized$"
    ):
        localize(unet)
    layer.group_norm = None
    layer.to_out[0] = torch.nn.Identity()
    with pytest.raises(ModelError, match=r"^layer .* has a Identity for its output: "):
        localize(unet)
