"""LoRA on a U-Net: the same outputs at first, merged and alone on disk, and within FastComposer's attention."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from schemas.errors import ConfigError
from tests.training.models import CAPTIONS, tiny_batch, tiny_parts
from training.attention import weight_of
from training.configs.fastcomposer import Config
from training.diffusion import LatentDiffusion
from training.localization import localize
from training.loop import save_model
from training.lora import add_lora, has_lora, lora_merged, save_lora
from training.recipes.fastcomposer import Model
from training.small import small_parts, small_unet

MODULES = ("to_q", "to_k", "to_v", "to_out.0")


@pytest.fixture
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return small_unet(4).eval()


def outputs(unet: UNet2DConditionModel) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    latents, text = torch.randn(1, 4, 8, 8, generator=rng), torch.randn(1, 5, 64, generator=rng)
    with torch.no_grad():
        return unet(latents, 3, text).sample


def train_lora(unet: UNet2DConditionModel) -> None:
    """Set the second factors, which are 0 at first, to random numbers."""
    rng = torch.Generator().manual_seed(2)
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=rng)


def test_a_new_lora_changes_nothing_and_is_all_that_is_trained(unet: UNet2DConditionModel) -> None:
    before = outputs(unet)
    assert not has_lora(unet)
    add_lora(unet, 2, MODULES, seed=0)
    assert has_lora(unet)
    assert torch.equal(outputs(unet), before)
    trained = {name: value.shape for name, value in unet.named_parameters() if value.requires_grad}
    assert all(".lora_" in name for name in trained)
    assert len(trained) == 2 * 4 * 14  # two factors for four matrices of each attention layer
    assert all(2 in shape for shape in trained.values())


def test_initial_factors_depend_only_on_the_seed() -> None:
    first, second, other = (small_unet(4) for _ in range(3))
    for unet, seed in ((first, 1), (second, 1), (other, 2)):
        add_lora(unet, 2, ("to_q",), seed)
    factors = [
        next(value for name, value in unet.named_parameters() if "lora_A" in name) for unet in (first, second, other)
    ]
    assert torch.equal(factors[0], factors[1])
    assert not torch.equal(factors[0], factors[2])


def test_only_the_named_layers_get_one(unet: UNet2DConditionModel) -> None:
    add_lora(unet, 1, ("attn2.to_k",), seed=0)
    trained = [name for name, value in unet.named_parameters() if value.requires_grad]
    assert trained
    assert all("attn2.to_k.lora_" in name for name in trained)
    with pytest.raises(ConfigError, match="lora_modules to_nothing: "):
        add_lora(small_unet(4), 1, ("to_nothing",), seed=0)


def test_a_merged_unet_has_the_same_outputs(vae: Path) -> None:
    model = LatentDiffusion(small_parts(vae, CAPTIONS, seed=0))
    plain = outputs(model.unet)
    with lora_merged(model):
        assert torch.equal(outputs(model.unet), plain)
    add_lora(model.unet, 2, MODULES, seed=0)
    train_lora(model.unet)
    own, changed = model.unet, outputs(model.unet)
    assert not torch.allclose(changed, plain, atol=1e-2)
    with lora_merged(model):
        assert not has_lora(model.unet)
        torch.testing.assert_close(outputs(model.unet), changed)
    assert model.unet is own


def test_diffusers_loads_the_lora_alone_and_the_merged_model(vae: Path, tmp_path: Path) -> None:
    model = LatentDiffusion(small_parts(vae, CAPTIONS, seed=0))
    model.save(tmp_path / "plain")
    add_lora(model.unet, 2, MODULES, seed=0)
    train_lora(model.unet)
    save_model(model, tmp_path / "model")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "plain")
    assert not torch.allclose(outputs(pipeline.unet), outputs(model.unet), atol=1e-2)
    pipeline.load_lora_weights(tmp_path / "model")
    torch.testing.assert_close(outputs(pipeline.unet), outputs(model.unet))
    merged = UNet2DConditionModel.from_pretrained(tmp_path / "model", subfolder="unet")
    torch.testing.assert_close(outputs(merged), outputs(model.unet))
    save_lora(model.unet, tmp_path / "lora")
    assert [path.name for path in (tmp_path / "lora").iterdir()] == ["pytorch_lora_weights.safetensors"]


def test_attention_that_reads_a_layer_s_weight_reads_its_lora_too(vae: Path) -> None:
    """FastComposer's localized layers use the weight of their output's projection, not the layer itself."""
    model = Model(tiny_parts(vae), Config())
    add_lora(model.unet, 2, ("attn2.to_out.0",), seed=0)
    train_lora(model.unet)
    batch = tiny_batch(model.parts, [[True, True]])
    draws = model.draw(batch, np.random.default_rng(0))
    losses = model(batch, draws)
    losses["loss"].backward()
    for name, parameter in model.unet.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    with lora_merged(model), torch.no_grad():
        localize(model.unet)
        merged = model(batch, draws)
    assert merged["noise"].item() == pytest.approx(losses["noise"].item(), rel=1e-5)


def test_the_weight_of_a_layer_without_adapters_is_its_own() -> None:
    layer = torch.nn.Linear(2, 3)
    assert weight_of(layer) is layer.weight
