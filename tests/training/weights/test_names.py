"""Names and shapes of released weights at their full size; no value is created.

The digests are of the authors' own networks, created from the published sizes with the libraries of their time:
FastComposer (mit-han-lab/fastcomposer, diffusers 0.16.1, transformers 4.27.4), LAVIS without BLIP-2's heads, diffusers'
BLIP-Diffusion (0.30.3), IP-Adapter's resampler.
"""

from collections.abc import Mapping
from hashlib import sha256

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    InstructBlipQFormerConfig,
    InstructBlipQFormerModel,
)

from training.adapter import Resampler, projection_of
from training.recipes.blip_diffusion.model import Prompter
from training.recipes.fastcomposer import Fuser
from training.weights import blip_diffusion, fastcomposer, ip_adapter, stable_diffusion
from training.weights.files import Weights, add_prefix, under

TEXT = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)


def vision(layers: int) -> CLIPVisionConfig:
    """CLIP ViT-L/14 with as many layers."""
    return CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=layers,
        num_attention_heads=16,
        projection_dim=768,
        patch_size=14,
    )


def digest(weights: Mapping[str, Tensor]) -> str:
    """Number of weights, and a digest of their names and shapes."""
    lines = "\n".join(f"{name} {tuple(weights[name].shape)}" for name in sorted(weights))
    return f"{len(weights)} {sha256(lines.encode()).hexdigest()[:16]}"


def shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in weights.items()}


@pytest.fixture(scope="module")
def autoencoder() -> AutoencoderKL:
    with torch.device("meta"):
        return AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )


@pytest.fixture(scope="module")
def prompting() -> Weights:
    """What makes subject prompts in BLIP-Diffusion, at its published size."""
    config = InstructBlipQFormerConfig(vocab_size=30523, cross_attention_frequency=1, encoder_hidden_size=1024)
    with torch.device("meta"):
        parts = {
            "image_encoder": CLIPVisionModel(vision(23)),
            "qformer": InstructBlipQFormerModel(config),
            "prompter": Prompter(768),
        }
        return nn.ModuleDict(parts).state_dict()


def test_names_of_fastcomposer(autoencoder: AutoencoderKL) -> None:
    with torch.device("meta"):
        parts = {
            "unet": UNet2DConditionModel(cross_attention_dim=768),
            "vae": autoencoder,
            "text_encoder": CLIPTextModel(TEXT),
            "image_encoder": CLIPVisionModelWithProjection(vision(24)),
            "fuser": Fuser(768, 768),
        }
        ours = nn.ModuleDict(parts).state_dict()
        released = fastcomposer.to_released(ours)
    assert digest(released) == "1538 3d64339595d02dd7"
    assert released["postfuse_module.mlp1.fc1.weight"].shape == (768, 1536)
    assert released["text_encoder.embeddings.position_ids"].shape == (1, 77)
    assert shapes(fastcomposer.from_released(released)) == shapes(ours)


def test_names_of_lavis(prompting: Weights, autoencoder: AutoencoderKL) -> None:
    released = blip_diffusion.to_lavis(prompting)
    assert digest(released["blip"]) == "673 67af52c00858e6f9"
    assert digest(released["proj_layer"]) == "6 c790491aaa8c7272"
    assert digest(stable_diffusion.old_autoencoder(autoencoder.state_dict())) == "248 58049df93aee03a1"
    with torch.device("meta"):
        text = add_prefix("text_model.", CLIPTextModel(TEXT).state_dict())
    assert digest(stable_diffusion.with_positions(text)) == "197 d7c037c2aaf9684f"
    heads = {f"{name}weight": torch.empty(1) for name in blip_diffusion.LAVIS_UNUSED}
    found = blip_diffusion.from_lavis({**released, "blip": {**released["blip"], **heads}})
    assert shapes(found) == shapes(prompting)


def test_names_of_diffusers_blip_diffusion(prompting: Weights) -> None:
    released = blip_diffusion.to_diffusers(prompting)
    assert digest(released) == "679 aabf04048179c939"
    assert shapes(blip_diffusion.from_diffusers(released)) == shapes(prompting)


@pytest.mark.parametrize(
    ("width", "heads", "text_width", "expected"),
    [(1280, 20, 2048, "51 ba454feff9f85ff8"), (768, 12, 768, "51 22017cfb19c986d6")],
)
def test_names_of_plus_models(width: int, heads: int, text_width: int, expected: str) -> None:
    """Of SDXL and of Stable Diffusion 1.5."""
    with torch.device("meta"):
        resampler = Resampler(1280, text_width, width, depth=4, dim_head=64, heads=heads, num_queries=16)
        ours = add_prefix("image_proj.", resampler.state_dict())
        released = ip_adapter.to_released(ours)
        assert digest(under("image_proj.", released)) == expected
        assert shapes(ip_adapter.from_released(released)) == shapes(ours)
        again = projection_of(ours, text_width)
    assert shapes(again.state_dict()) == shapes(resampler.state_dict())
    assert isinstance(again, Resampler)
    assert again.layers[0].attn.heads == heads
