import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from schemas.errors import ModelError
from tests.training.models import tiny_parts
from training.attention import cross_attention_layers
from training.configs.mip_adapter import MergeName
from training.merge import (
    MERGES,
    AdapterLayer,
    MergedAttention,
    References,
    adapt,
    merge_as_code,
    merge_as_paper,
    merge_uniformly,
    over_mean,
    relevance,
)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Plain attention of [P, C] to [L, C], computed for each head separately: [P, C]."""
    split = (rows.chunk(heads, dim=1) for rows in (query, key, value))
    return torch.cat([(q @ k.T / math.sqrt(q.shape[1])).softmax(1) @ v for q, k, v in zip(*split, strict=True)], dim=1)


def relevance_of(query: Tensor, key: Tensor, words: list[bool], heads: int) -> Tensor:
    """A_i, literally: the mean over words and heads of softmaxes over the positions, [P]."""
    shares = [
        torch.stack([token @ position / math.sqrt(len(token)) for position in q]).softmax(0)
        for q, k in zip(query.chunk(heads, dim=1), key.chunk(heads, dim=1), strict=True)
        for token, is_word in zip(k, words, strict=True)
        if is_word
    ]
    return torch.stack(shares).mean(0)


def literal_layer(
    attention: Attention, adapter: AdapterLayer, hidden: Tensor, text: Tensor, references: References, merge: MergeName
) -> Tensor:
    """A whole layer by the formulas, a sample and a reference at a time: [B, P, C]."""
    outputs = []
    for b in range(len(hidden)):
        query, heads = attention.to_q(hidden[b]), attention.heads
        z_text = attend(query, attention.to_k(text[b]), attention.to_v(text[b]), heads)
        f = 1 / (1 + torch.exp(-(z_text @ adapter.text_to_weight.weight[0])))
        f = (f / (f.sum() / len(f)))[:, None]
        present = [i for i in range(references.valid.shape[1]) if references.valid[b, i]]
        z_images = [
            references.scale * attend(query, adapter.to_k_ip(tokens), adapter.to_v_ip(tokens), heads)
            for tokens in references.tokens[b, present]
        ]
        relevances = [
            relevance_of(query, attention.to_k(references.texts[b, i]), references.words[b, i].tolist(), heads).detach()
            for i in present
        ]
        total = sum(relevances, torch.zeros(len(query)))
        if merge == "code":
            z_new = z_text + f * sum((a / total)[:, None] * z for a, z in zip(relevances, z_images, strict=True))
        elif merge == "paper":
            mean = total / max(1, len(present))
            z_new = f * z_text + sum((a / mean)[:, None] * z for a, z in zip(relevances, z_images, strict=True))
        else:
            z_new = z_text + sum(z_images)
        outputs.append(attention.to_out[0](z_new))
    return torch.stack(outputs)


def random_case(count: int, tokens: int, words: int, seed: int) -> tuple[Attention, AdapterLayer, References]:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        attention = Attention(query_dim=6, cross_attention_dim=5, heads=2, dim_head=4).double()
        layer = AdapterLayer(5, 8).double()
        torch.nn.init.normal_(layer.text_to_weight.weight)
    kept = torch.rand(2, count, words, generator=generator) < 0.6
    kept[..., 0] = True
    references = References(
        tokens=torch.randn(2, count, tokens, 5, generator=generator).double(),
        texts=2 * torch.randn(2, count, words, 5, generator=generator).double(),
        words=kept,
        valid=torch.rand(2, count, generator=generator) < 0.8,
        scale=float(torch.rand((), generator=generator)),
    )
    return attention, layer, references


@given(
    seed=st.integers(0, 2**31),
    positions=st.integers(1, 5),
    count=st.integers(1, 3),
    tokens=st.integers(1, 3),
    words=st.integers(1, 3),
    merge=st.sampled_from(get_args(MergeName)),
)
@settings(max_examples=40, deadline=None)
def test_outputs_and_gradients_match_the_literal_formula(
    seed: int, positions: int, count: int, tokens: int, words: int, merge: MergeName
) -> None:
    attention, layer, references = random_case(count, tokens, words, seed)
    attention.set_processor(MergedAttention(layer, MERGES[merge]))
    generator = torch.Generator().manual_seed(seed + 1)
    hidden, text = (torch.randn(2, *shape, generator=generator).double() for shape in ((positions, 6), (4, 5)))
    upstream = torch.randn(2, positions, 6, generator=generator).double()
    inputs = [hidden, text, references.tokens, *attention.parameters(), *layer.parameters()]
    for tensor in inputs:
        tensor.requires_grad_()
    expected = literal_layer(attention, layer, hidden, text, references, merge)
    output = attention(hidden, text, references=references)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    gradients = (torch.autograd.grad(z, inputs, upstream, materialize_grads=True) for z in (output, expected))
    for ours, literal in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, literal, rtol=1e-12, atol=1e-12)


def test_single_precision_changes_little() -> None:
    attention, layer, references = random_case(2, 3, 3, 0)
    hidden, text = (torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)) for shape in ((5, 6), (4, 5)))
    expected = literal_layer(attention, layer, hidden.double(), text.double(), references, "code")
    attention.set_processor(MergedAttention(layer, merge_as_code))
    attention.float()
    layer.float()
    single = replace(references, tokens=references.tokens.float(), texts=references.texts.float())
    torch.testing.assert_close(attention(hidden, text, references=single), expected.float(), rtol=1e-3, atol=1e-4)


def test_relevance_by_hand() -> None:
    """One head of width 1, positions 0 and ln 3: the tokens 1 and 0 give (1/4, 3/4) and (1/2, 1/2)."""
    query = torch.tensor([0.0, math.log(3)]).view(1, 1, 2, 1)
    key = torch.tensor([[1.0, 0.0, 50.0]] * 3).view(1, 3, 1, 3, 1)
    words = torch.tensor([[[True, False, False], [True, True, False], [False, False, False]]])
    expected = [[[0.25, 0.75], [0.375, 0.625], [0.0, 0.0]]]
    torch.testing.assert_close(relevance(query, key, words, 1.0), torch.tensor(expected))


def test_heads_are_averaged_after_the_softmax() -> None:
    """The first head gives (1/4, 3/4), the second (9/10, 1/10)."""
    query = torch.tensor([[0.0, math.log(3)], [math.log(9), 0.0]]).view(1, 2, 2, 1)
    found = relevance(query, torch.ones(1, 1, 2, 1, 1), torch.ones(1, 1, 1, dtype=torch.bool), 1.0)
    torch.testing.assert_close(found, torch.tensor([[[0.575, 0.425]]]))


def test_relevance_is_computed_in_single_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(shape, generator=generator) for shape in ((1, 2, 4096, 8), (1, 2, 2, 3, 8)))
    words = torch.ones(1, 2, 3, dtype=torch.bool)
    found = relevance(query.bfloat16(), key.bfloat16(), words, 0.3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(-1), torch.ones(1, 2))


def test_the_merges_by_hand() -> None:
    """Two positions of width 1. A/sum(A) is (1/4, 3/4) and (3/4, 1/4), f/mean(f) is (4/3, 2/3)."""
    text = torch.tensor([[[10.0], [20.0]]])
    images = torch.tensor([[[[1.0], [2.0]], [[100.0], [200.0]], [[0.0], [0.0]]]])
    relevances = torch.tensor([[[0.2, 0.6], [0.6, 0.2], [0.0, 0.0]]])

    def predict(z: Tensor) -> Tensor:
        assert torch.equal(z, text)
        return torch.tensor([[0.8, 0.4]])

    merged = {name: merge(text, images, relevances, predict).flatten().tolist() for name, merge in MERGES.items()}
    assert merged["uniform"] == pytest.approx([111, 222])
    assert merged["code"] == pytest.approx([10 + 4 / 3 * 75.25, 20 + 2 / 3 * 51.5])
    assert merged["paper"] == pytest.approx([4 / 3 * 10 + 150.5, 2 / 3 * 20 + 103])
    assert merged.keys() == set(get_args(MergeName))


def test_references_without_relevance_leave_the_text() -> None:
    text, images, none = torch.ones(1, 2, 3), torch.ones(1, 2, 2, 3), torch.zeros(1, 2, 2)
    for merge in (merge_as_code, merge_as_paper):
        assert torch.equal(merge(text, images, none, lambda z: torch.ones_like(z[..., 0])), text)


def test_even_relevance_weights_references_by_their_mean_or_their_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    text, images = (torch.randn(shape, generator=generator) for shape in ((2, 5, 3), (2, 2, 5, 3)))
    even = torch.full((2, 2, 5), 0.2)

    def constant(z: Tensor) -> Tensor:
        return torch.full(z.shape[:-1], 0.3)

    uniform = merge_uniformly(text, images, even, constant)
    torch.testing.assert_close(merge_as_paper(text, images, even, constant), uniform)
    torch.testing.assert_close(merge_as_code(text, images, even, constant), text + images.mean(1))


def test_values_are_divided_by_their_mean_or_stay_zero() -> None:
    weights = torch.tensor([[1.0, 3.0], [0.0, 0.0]])
    assert over_mean(weights).tolist() == [[0.5, 1.5], [0.0, 0.0]]


def unet_with_layers(vae: Path) -> tuple[UNet2DConditionModel, list[AdapterLayer]]:
    unet = tiny_parts(vae).unet
    torch.manual_seed(5)
    widths = [unet.get_submodule(name).to_q.out_features for name in cross_attention_layers(unet)]
    return unet, [AdapterLayer(64, width) for width in widths]


def random_references(count: int, seed: int = 0) -> References:
    generator = torch.Generator().manual_seed(seed)
    return References(
        tokens=torch.randn(2, count, 4, 64, generator=generator),
        texts=torch.randn(2, count, 3, 64, generator=generator),
        words=torch.tensor([True, True, False]).expand(2, count, -1),
        valid=torch.ones(2, count, dtype=torch.bool),
    )


LATENTS = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
TEXT = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(2))


def run(unet: UNet2DConditionModel, references: References | None, text: Tensor = TEXT) -> Tensor:
    return unet(LATENTS, 10, text, cross_attention_kwargs={"references": references}).sample


@pytest.mark.parametrize("count", [1, 2])
def test_the_uniform_merge_matches_the_ip_adapter_of_diffusers(vae: Path, count: int) -> None:
    unet, layers = unet_with_layers(vae)
    references = random_references(count)
    adapt(unet, layers, merge_uniformly)
    with torch.no_grad():
        ours = run(unet, references)
    projection = {
        "proj.weight": torch.zeros(256, 8),
        "proj.bias": torch.zeros(256),
        "norm.weight": torch.ones(64),
        "norm.bias": torch.zeros(64),
    }
    weights = {
        f"{2 * number + 1}.{kind}.weight": getattr(layer, kind).weight.detach()
        for number, layer in enumerate(layers)
        for kind in ("to_k_ip", "to_v_ip")
    }
    unet.set_attn_processor(AttnProcessor2_0())
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": weights}])
    for processor in unet.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [[1.0] * count]
    unet.encoder_hid_proj = None
    theirs = ip_adapter_of_diffusers(unet, references, count)
    torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        unet.set_attn_processor(AttnProcessor2_0())
        assert (ours - unet(LATENTS, 10, TEXT).sample).abs().max() > 1e-3


def ip_adapter_of_diffusers(unet: UNet2DConditionModel, references: References, count: int) -> Tensor:
    """Run each sample alone, with masks of ones: this is how diffusers supports several references."""
    with torch.no_grad():
        rows = [
            unet(
                LATENTS[b : b + 1],
                10,
                (TEXT[b : b + 1], [references.tokens[b : b + 1]]),
                cross_attention_kwargs={"ip_adapter_masks": [torch.ones(1, count, 64, 64)]},
            ).sample
            for b in range(2)
        ]
    return torch.cat(rows)


@pytest.mark.parametrize("name", ["code", "paper", "uniform"])
def test_without_references_the_output_of_the_unet_is_unchanged(vae: Path, name: MergeName) -> None:
    unet, layers = unet_with_layers(vae)
    for layer in layers:  # the paper's f weights the text also without references
        torch.nn.init.zeros_(layer.text_to_weight.weight)
    with torch.no_grad():
        plain = unet(LATENTS, 10, TEXT).sample
        adapt(unet, layers, MERGES[name])
        torch.testing.assert_close(unet(LATENTS, 10, TEXT).sample, plain)
        references = random_references(2)
        none = References(references.tokens, references.texts, references.words, torch.zeros(2, 2, dtype=torch.bool))
        torch.testing.assert_close(run(unet, none), plain)


def test_the_scale_multiplies_the_references(vae: Path) -> None:
    unet, layers = unet_with_layers(vae)
    adapt(unet, layers, merge_as_code)
    references = random_references(2)
    with torch.no_grad():
        torch.testing.assert_close(run(unet, replace(references, scale=0.0)), unet(LATENTS, 10, TEXT).sample)
        scaled = run(unet, replace(references, scale=0.5))
        for layer in layers:
            layer.to_v_ip.weight.mul_(0.5)
        torch.testing.assert_close(scaled, run(unet, references))


@pytest.mark.parametrize("name", ["code", "paper", "uniform"])
def test_padding_references_may_hold_any_value(vae: Path, name: MergeName) -> None:
    unet, layers = unet_with_layers(vae)
    adapt(unet, layers, MERGES[name])
    references = random_references(2)
    valid = torch.tensor([[True, False], [True, False]])
    padded = References(references.tokens.clone(), references.texts.clone(), references.words, valid)
    padded.tokens[:, 1], padded.texts[:, 1] = math.nan, math.nan
    alone = References(references.tokens[:, :1], references.texts[:, :1], references.words[:, :1], valid[:, :1])
    with torch.no_grad():
        torch.testing.assert_close(run(unet, padded), run(unet, alone))


@pytest.mark.parametrize("name", ["code", "paper", "uniform"])
def test_the_order_of_the_references_does_not_matter(vae: Path, name: MergeName) -> None:
    unet, layers = unet_with_layers(vae)
    adapt(unet, layers, MERGES[name])
    references = random_references(3)
    reversed_references = References(
        *(getattr(references, part).flip(1) for part in ("tokens", "texts", "words", "valid"))
    )
    with torch.no_grad():
        torch.testing.assert_close(run(unet, reversed_references), run(unet, references))


def test_only_relevance_has_no_gradient(vae: Path) -> None:
    unet, layers = unet_with_layers(vae)
    adapt(unet, layers, merge_as_code)
    references = random_references(2)
    references.tokens.requires_grad_()
    references.texts.requires_grad_()
    run(unet, references).square().mean().backward()
    assert references.texts.grad is None
    assert references.tokens.grad is not None
    assert references.tokens.grad.any()
    for layer in layers:
        for name, parameter in layer.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name


def test_adapting_the_unet_adds_nothing_to_its_state_dict(vae: Path) -> None:
    unet, layers = unet_with_layers(vae)
    names = unet.state_dict().keys()
    adapt(unet, layers, merge_as_code)
    assert unet.state_dict().keys() == names


def test_stable_diffusion_has_sixteen_layers_in_the_published_order() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
    layers = cross_attention_layers(unet)
    widths = [unet.get_submodule(name).to_q.out_features for name in layers]
    assert widths == [320, 320, 640, 640, 1280, 1280, 1280, 1280, 1280, 640, 640, 640, 320, 320, 320, 1280]
    assert [name.split("_")[0] for name in layers] == ["down"] * 6 + ["up"] * 9 + ["mid"]
    kinds = [name.split(".")[-2] for name in unet.attn_processors]
    assert kinds == ["attn1", "attn2"] * 16  # so that the i-th layer is number 2 i + 1 of all


def test_an_unsupported_attention_layer_is_refused(vae: Path) -> None:
    unet, layers = unet_with_layers(vae)
    unet.get_submodule(cross_attention_layers(unet)[0]).norm_q = torch.nn.LayerNorm(12)
    with pytest.raises(ModelError, match=r"down_blocks.0.* has a norm_q: it cannot use references"):
        adapt(unet, layers, merge_as_code)


def test_the_literal_attention_matches_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(n, 6, generator=generator) for n in (4, 3, 3))
    split = (rows.unflatten(-1, (2, 3)).transpose(0, 1) for rows in (query, key, value))
    expected = torch.nn.functional.scaled_dot_product_attention(*split).transpose(0, 1).flatten(1)
    torch.testing.assert_close(attend(query, key, value, 2), expected)
