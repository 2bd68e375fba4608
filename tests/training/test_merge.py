import math
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
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
from training.merge import (
    MERGES,
    AdapterLayer,
    MergedAttention,
    MergeName,
    References,
    adapt,
    merge_as_code,
    merge_as_paper,
    merge_uniformly,
    over_mean,
    relevance,
)

Rows = list[list[float]]


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(v - max(values)) for v in values]
    return [power / sum(powers) for power in powers]


def dot(first: list[float], second: list[float]) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True))


def linear(rows: Rows, layer: torch.nn.Linear) -> Rows:
    bias = layer.bias.tolist() if layer.bias is not None else [0.0] * layer.out_features
    return [[dot(weight, x) + b for weight, b in zip(layer.weight.tolist(), bias, strict=True)] for x in rows]


def heads_of(rows: Rows, heads: int) -> list[Rows]:
    width = len(rows[0]) // heads
    return [[row[h * width : (h + 1) * width] for row in rows] for h in range(heads)]


def attend(query: Rows, key: Rows, value: Rows, heads: int) -> Rows:
    """Plain attention, computed for each position, head and token separately."""
    split = [heads_of(rows, heads) for rows in (query, key, value)]
    output: Rows = [[] for _ in query]
    for q, k, v in zip(*split, strict=True):
        for position, vector in enumerate(q):
            shares = softmax([dot(vector, token) / math.sqrt(len(vector)) for token in k])
            output[position] += [dot(shares, list(column)) for column in zip(*v, strict=True)]
    return output


def relevance_of(query: Rows, key: Rows, words: list[bool], heads: int) -> list[float]:
    """A_i, literally: the mean over words and heads of softmaxes over the positions."""
    total, count = [0.0] * len(query), 0
    for q, k in zip(heads_of(query, heads), heads_of(key, heads), strict=True):
        for token, is_word in zip(k, words, strict=True):
            if is_word:
                shares = softmax([dot(token, position) / math.sqrt(len(token)) for position in q])
                total = [a + b for a, b in zip(total, shares, strict=True)]
                count += 1
    return [value / count for value in total]


def layer_of(
    attention: Attention, adapter: AdapterLayer, hidden: Tensor, text: Tensor, references: References
) -> Tensor:
    """A whole layer by the formulas of the code and of the paper, stacked: [2, B, P, C] float64."""
    results: list[list[Rows]] = [[], []]
    for b in range(len(hidden)):
        query = linear(hidden[b].tolist(), attention.to_q)
        z_text = attend(
            query,
            linear(text[b].tolist(), attention.to_k),
            linear(text[b].tolist(), attention.to_v),
            attention.heads,
        )
        f = [1 / (1 + math.exp(-row[0])) for row in linear(z_text, adapter.predictor)]
        f = [value / (sum(f) / len(f)) for value in f]
        summed = [[0.0] * len(z_text[0]) for _ in z_text]
        for i in range(references.valid.shape[1]):
            if not references.valid[b, i]:
                continue
            tokens, texts = references.tokens[b, i].tolist(), references.texts[b, i].tolist()
            attended = attend(query, linear(tokens, adapter.to_k_ip), linear(tokens, adapter.to_v_ip), attention.heads)
            a = relevance_of(query, linear(texts, attention.to_k), references.words[b, i].tolist(), attention.heads)
            mean = sum(a) / len(a)
            for p, row in enumerate(attended):
                summed[p] = [s + a[p] / mean * z for s, z in zip(summed[p], row, strict=True)]
        code: Rows = []
        paper: Rows = []
        for weight, z, pictures in zip(f, z_text, summed, strict=True):
            code.append([own + weight * added for own, added in zip(z, pictures, strict=True)])
            paper.append([weight * own + added for own, added in zip(z, pictures, strict=True)])
        for result, merged in zip(results, (code, paper), strict=True):
            result.append(linear(merged, attention.to_out[0]))
    return torch.tensor(results, dtype=torch.float64)


def random_case(count: int, tokens: int, words: int, seed: int) -> tuple[Attention, AdapterLayer, References]:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        attention = Attention(query_dim=6, cross_attention_dim=5, heads=2, dim_head=4).double()
        layer = AdapterLayer(5, 8).double()
        torch.nn.init.normal_(layer.predictor.weight)
        torch.nn.init.normal_(layer.predictor.bias)
    kept = torch.rand(2, count, words, generator=generator) < 0.6
    kept[..., 0] = True
    references = References(
        tokens=torch.randn(2, count, tokens, 5, generator=generator).double(),
        texts=2 * torch.randn(2, count, words, 5, generator=generator).double(),
        words=kept,
        valid=torch.rand(2, count, generator=generator) < 0.8,
    )
    return attention, layer, references


@given(
    seed=st.integers(0, 2**31),
    positions=st.integers(1, 5),
    count=st.integers(1, 3),
    tokens=st.integers(1, 3),
    words=st.integers(1, 3),
)
@settings(max_examples=30, deadline=None)
def test_the_processor_matches_the_literal_formula(
    seed: int, positions: int, count: int, tokens: int, words: int
) -> None:
    attention, layer, references = random_case(count, tokens, words, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    hidden, text = (torch.randn(2, *shape, generator=generator).double() for shape in ((positions, 6), (4, 5)))
    expected = layer_of(attention, layer, hidden, text, references)
    for merge, literal in zip((merge_as_code, merge_as_paper), expected, strict=True):
        attention.set_processor(MergedAttention(layer, merge))
        output = attention(hidden, text, references=references)
        assert output.dtype == torch.float64
        torch.testing.assert_close(output, literal, rtol=1e-9, atol=1e-10)
    attention.float()
    layer.float()
    single = References(references.tokens.float(), references.texts.float(), references.words, references.valid)
    output = attention(hidden.float(), text.float(), references=single)
    torch.testing.assert_close(output, expected[1].float(), rtol=1e-3, atol=1e-4)


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
    """Two positions of width 1. A/mean(A) is (1/2, 3/2) and (1, 1), f/mean(f) is (4/3, 2/3)."""
    text = torch.tensor([[[10.0], [20.0]]])
    images = torch.tensor([[[[1.0], [2.0]], [[100.0], [200.0]]]])
    relevances = torch.tensor([[[0.25, 0.75], [0.5, 0.5]]])

    def predict(z: Tensor) -> Tensor:
        assert torch.equal(z, text)
        return torch.tensor([[0.8, 0.4]])

    merged = {name: merge(text, images, relevances, predict).flatten().tolist() for name, merge in MERGES.items()}
    assert merged["uniform"] == pytest.approx([111, 222])
    assert merged["code"] == pytest.approx([10 + 4 / 3 * 100.5, 20 + 2 / 3 * 203])
    assert merged["paper"] == pytest.approx([4 / 3 * 10 + 100.5, 2 / 3 * 20 + 203])
    assert merged.keys() == set(get_args(MergeName))


def test_with_even_relevance_all_merges_equal_the_uniform_merge() -> None:
    generator = torch.Generator().manual_seed(0)
    text, images = (torch.randn(shape, generator=generator) for shape in ((2, 5, 3), (2, 2, 5, 3)))
    even = torch.full((2, 2, 5), 0.2)
    untrained = AdapterLayer(4, 3).predict
    uniform = merge_uniformly(text, images, even, untrained)
    for merge in MERGES.values():
        torch.testing.assert_close(merge(text, images, even, untrained), uniform)


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
    with torch.no_grad():
        plain = unet(LATENTS, 10, TEXT).sample
        adapt(unet, layers, MERGES[name])
        torch.testing.assert_close(unet(LATENTS, 10, TEXT).sample, plain)
        references = random_references(2)
        none = References(references.tokens, references.texts, references.words, torch.zeros(2, 2, dtype=torch.bool))
        torch.testing.assert_close(run(unet, none), plain)


@pytest.mark.parametrize("name", ["code", "paper", "uniform"])
def test_padding_references_may_hold_any_value(vae: Path, name: MergeName) -> None:
    unet, layers = unet_with_layers(vae)
    adapt(unet, layers, MERGES[name])
    references = random_references(2)
    valid = torch.tensor([[True, False], [True, False]])
    padded = References(references.tokens.clone(), references.texts.clone(), references.words.clone(), valid)
    padded.tokens[:, 1], padded.texts[:, 1], padded.words[:, 1] = math.nan, math.nan, False
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
    for layer in layers:  # a constant f has no gradient: dividing by its mean cancels it
        torch.nn.init.normal_(layer.predictor.weight)
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
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(n, 6)) for n in (4, 3, 3))
    torches = [torch.from_numpy(rows).unflatten(-1, (2, 3)).transpose(0, 1) for rows in (query, key, value)]
    expected = torch.nn.functional.scaled_dot_product_attention(*torches).transpose(0, 1).flatten(1)
    literal = attend(query.tolist(), key.tolist(), value.tolist(), 2)
    for p, c in product(range(4), range(6)):
        assert literal[p][c] == pytest.approx(expected[p, c].item())
