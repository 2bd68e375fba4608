"""Released weights under our names give the outputs that they give in other implementations."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DiffusionPipeline
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from schemas.errors import InputError, ModelError
from tests.training.objects import tiny_mip_parts, tiny_objects
from training.adapter import WEIGHTS, Adapter, Resampler
from training.configs.mip_adapter import Config
from training.recipes import mip_adapter
from training.recipes.fastcomposer import Fuser
from training.small import SIDE, WIDTH, seeded
from training.weights import blip_diffusion, fastcomposer, ip_adapter
from training.weights.files import fill, first_few, read_weights, under, write_weights
from training.weights.stable_diffusion import new_autoencoder, old_autoencoder


def test_fastcomposers_fusion_with_released_names() -> None:
    """Section 4.1 of the paper, by the names of the released weights."""
    torch.manual_seed(0)
    fuser = Fuser(6, 4)
    with torch.no_grad():
        for parameter in fuser.parameters():
            parameter.normal_()
    ours = {f"fuser.{name}": value for name, value in fuser.state_dict().items()}
    released = under("postfuse_module.", fastcomposer.to_released(ours))
    text, image = torch.randn(3, 6), torch.randn(3, 4)

    def layer(name: str, values: Tensor) -> Tensor:
        weight, bias = released[f"{name}.weight"], released[f"{name}.bias"]
        return F.linear(values, weight, bias) if weight.dim() == 2 else F.layer_norm(values, bias.shape, weight, bias)

    def mlp(name: str, values: Tensor) -> Tensor:
        return layer(f"{name}.fc2", F.gelu(layer(f"{name}.fc1", layer(f"{name}.layernorm", values))))

    fused = text + mlp("mlp1", torch.cat([text, image], -1))
    torch.testing.assert_close(fuser(text, image), layer("layer_norm", fused + mlp("mlp2", fused)))


def test_diffusers_reads_the_old_names_of_an_autoencoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    model = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, **blocks)
    model.save_pretrained(tmp_path)
    expected = model.state_dict()
    old = old_autoencoder(expected)
    attention = "encoder.mid_block.attentions.0"
    assert {f"{attention}.{name}.weight" for name in ("query", "key", "value", "proj_attn")} <= old.keys()
    write_weights(tmp_path / "diffusion_pytorch_model.safetensors", old)
    found = AutoencoderKL.from_pretrained(tmp_path).state_dict()
    for weights in (found, new_autoencoder(old), new_autoencoder(expected)):
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_the_image_encoder_of_lavis_is_that_of_open_clip() -> None:
    """LAVIS took its class from OpenAI's CLIP, as open_clip did, and has the last layer normalization apart."""
    torch.manual_seed(0)
    theirs = open_clip.transformer.VisionTransformer(
        image_size=32,
        patch_size=8,
        width=16,
        layers=2,
        heads=2,
        mlp_ratio=4,
        output_dim=4,
        act_layer=open_clip.transformer.QuickGELU,
        output_tokens=True,
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.3)
    released = {name: value for name, value in theirs.state_dict().items() if name != "proj"}
    blip = {
        name.replace("ln_post", "ln_vision") if "ln_post" in name else f"visual_encoder.{name}": value
        for name, value in released.items()
    }
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    ours = CLIPVisionModel(config).eval()
    found = blip_diffusion.from_lavis({"blip": blip, "proj_layer": {}})
    fill({"image_encoder": ours}, found, "LAVIS")
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        _, tokens = theirs(pictures)
        encoded = ours(pictures).last_hidden_state
        encoded = ours.post_layernorm(encoded)
        torch.testing.assert_close(encoded[:, 1:], tokens, rtol=1e-4, atol=1e-5)
    again = blip_diffusion.to_lavis({**found, "prompter.queries": torch.zeros(2, 4), **words()})["blip"]
    assert all(torch.equal(again[name], value) for name, value in blip.items())


def words() -> dict[str, Tensor]:
    return {"qformer.embeddings.position_embeddings.weight": torch.zeros(4, 4)}


@pytest.fixture
def plus(vae: Path) -> mip_adapter.Parts:
    """MIP-Adapter's small parts with a plus model's projection to five tokens."""
    parts = tiny_mip_parts(vae)
    with seeded(5):
        projection = Resampler(
            embed_dims=WIDTH, output_dims=WIDTH, hidden_dims=96, depth=4, dim_head=64, heads=2, num_queries=5
        )
        return mip_adapter.Parts(**{**vars(parts), "adapter": Adapter(parts.unet, projection)})


def test_diffusers_loads_a_saved_plus_model(plus: mip_adapter.Parts, tmp_path: Path) -> None:
    model = mip_adapter.Model(plus, Config(merge="uniform"))
    model.save(tmp_path / "model")
    released = read_weights(tmp_path / "model" / WEIGHTS)
    assert released["image_proj.layers.1.0.to_kv.weight"].shape == (256, 96)
    batch = tiny_objects(plus, [[True, False]])
    noise = torch.randn(1, 4, 16, 16)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "model")
    pipeline.load_ip_adapter(str(tmp_path / "model"), subfolder="", weight_name=WEIGHTS, image_encoder_folder=None)
    again = mip_adapter.load(tmp_path / "model")
    with torch.no_grad():
        conditions = model.conditions(batch)
        ours = plus.unet(noise, 10, **conditions).sample
        embedded = model.embed(batch["object_pixel_values"][:, 0], torch.ones(1, dtype=torch.bool))
        assert embedded.shape == (1, (SIDE // 8) ** 2 + 1, WIDTH)
        added = {"image_embeds": [embedded[:, None]]}
        theirs = pipeline.unet(noise, 10, conditions["encoder_hidden_states"], added_cond_kwargs=added).sample
        torch.testing.assert_close(ours, theirs)
        loaded = mip_adapter.Model(again, Config(merge="uniform")).conditions(batch)
        torch.testing.assert_close(again.unet(noise, 10, **loaded).sample, ours)


def test_a_plus_model_without_references_sees_pixels_of_zero(plus: mip_adapter.Parts) -> None:
    """The published trainer sets normalized pictures to 0, and not the image encoder's outputs."""
    model = mip_adapter.Model(plus)
    batch = tiny_objects(plus, [[True, True]] * 2, kept=[False, True])
    with torch.no_grad():
        tokens = model.embed_references(batch).tokens
        hidden = plus.image_encoder(torch.zeros(1, 3, SIDE, SIDE), output_hidden_states=True).hidden_states
        nothing = plus.adapter.image_proj(hidden[-2])
    assert tokens.shape == (2, 2, 5, WIDTH)
    torch.testing.assert_close(tokens[0], nothing.expand(2, -1, -1))
    assert not torch.allclose(tokens[1, 0], nothing[0], atol=1e-2)


def test_every_trained_parameter_of_a_plus_model_has_a_gradient(plus: mip_adapter.Parts) -> None:
    model = mip_adapter.Model(plus, Config(train_encoders=True))
    batch = tiny_objects(plus, [[True, True]])
    model(batch, model.draw(batch, np.random.default_rng(0)))["loss"].backward()
    without = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert not without


def test_the_resampler_loses_nothing_in_either_direction(plus: mip_adapter.Parts) -> None:
    ours = plus.adapter.state_dict()
    again = ip_adapter.from_released(ip_adapter.to_released(ours))
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[name], ours[name]) for name in ours)


def test_files_hold_what_was_written(tmp_path: Path) -> None:
    weights = {"a.x.w": torch.ones(2, 3).T, "b.w": torch.zeros(1, dtype=torch.float16)}
    for name, groups in (("one.safetensors", ()), ("two.bin", ()), ("three.bin", ("a", "b"))):
        write_weights(tmp_path / "new" / name, weights, groups)
        found = read_weights(tmp_path / "new" / name)
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[key], weights[key]) and found[key].dtype == weights[key].dtype for key in weights)
    assert list(torch.load(tmp_path / "new" / "three.bin")) == ["a", "b"]


@pytest.mark.parametrize(("name", "contents"), [("x.bin", b"nothing"), ("x.safetensors", b"nothing"), ("x.pt", b"")])
def test_files_that_cannot_be_read(tmp_path: Path, name: str, contents: bytes) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        read_weights(tmp_path / name)
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(ModelError, match=f"{name} cannot be read as weights"):
        read_weights(tmp_path / name)


@pytest.mark.parametrize("value", [[1, 2], {"step": 3}, {}])
def test_files_that_hold_something_else(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "x.bin")
    with pytest.raises(ModelError, match="holds no weights"):
        read_weights(tmp_path / "x.bin")


def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "touched",)  # type: ignore[return-value]

    torch.save({"a": Harmful()}, tmp_path / "x.bin")
    with pytest.raises(ModelError, match="cannot be read"):
        read_weights(tmp_path / "x.bin")
    assert not (tmp_path / "touched").exists()


def test_names_that_do_not_fit_are_listed_shortly() -> None:
    layer = torch.nn.Linear(2, 2)
    weights = {"net.weight": torch.ones(3, 2), **{f"more.{i}": torch.ones(1) for i in range(5)}}
    with pytest.raises(ModelError) as error:
        fill({"net": layer}, weights, "file.bin")
    assert str(error.value) == (
        "the weights in file.bin do not fit the model: missing: net.bias; "
        "unknown: more.0, more.1, more.2 and 2 more; of another shape: net.weight"
    )
    assert first_few(["a", "b", "c"]) == "a, b, c"
