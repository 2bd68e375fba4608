"""MIP-Adapter's weights: saved and loaded again, by diffusers too, under the published names."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from schemas.errors import ModelError
from tests.training.objects import loss_of, tiny_mip_parts, tiny_objects, tiny_xl_mip_parts
from training.adapter import WEIGHTS, XL_WEIGHTS, Adapter, ImageProjection
from training.attention import cross_attention_layers
from training.configs.mip_adapter import Config
from training.recipes.mip_adapter import Model, Parts, load

BOTH = [[True, True], [True, False]]
NOISE = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def parts(vae: Path) -> Parts:
    return tiny_mip_parts(vae)


@pytest.fixture(params=["1.5", "XL"])
def either(request: pytest.FixtureRequest, vae: Path) -> Parts:
    return tiny_xl_mip_parts(vae) if request.param == "XL" else tiny_mip_parts(vae)


def test_a_saved_model_can_be_loaded_also_by_diffusers(either: Parts, tmp_path: Path) -> None:
    batch = tiny_objects(either, BOTH)
    model = Model(either)
    model.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert loss_of(Model(loaded), batch) == pytest.approx(loss_of(model, batch), rel=1e-6)
    assert not list((tmp_path / "model").rglob("*.bin"))
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "model")
    assert isinstance(pipeline, StableDiffusionXLPipeline if either.text_encoder_2 else StableDiffusionPipeline)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a cup", num_inference_steps=2, output_type="np").images.shape == (1, 64, 64, 3)


def test_diffusers_loads_the_saved_weights_as_an_ip_adapter(either: Parts, tmp_path: Path) -> None:
    Model(either).save(tmp_path / "model")
    batch = tiny_objects(either, [[True, False]])
    model = Model(either, Config(merge="uniform"))
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "model")
    weights = XL_WEIGHTS if either.text_encoder_2 else WEIGHTS
    pipeline.load_ip_adapter(str(tmp_path / "model"), subfolder="", weight_name=weights, image_encoder_folder=None)
    with torch.no_grad():
        conditions = model.conditions(batch)
        ours = either.unet(NOISE, 10, **conditions).sample
        embeddings = model.embed(batch["object_pixel_values"][:, 0], torch.ones(1, dtype=torch.bool))
        added = {"image_embeds": [embeddings[:, None]], **conditions.get("added_cond_kwargs", {})}
        theirs = pipeline.unet(NOISE, 10, conditions["encoder_hidden_states"], added_cond_kwargs=added).sample
    torch.testing.assert_close(ours, theirs)


def plain_stable_diffusion(parts: Parts, folder: Path) -> tuple[Path, Path]:
    """Save a Stable Diffusion, and the folder of an IP-Adapter as published, without predictors."""
    for layer in parts.adapter.layers:  # those of a published IP-Adapter start at random: here at a value known
        torch.nn.init.zeros_(layer.text_to_weight.weight)
    Model(parts).save(folder / "sd")
    weights = XL_WEIGHTS if parts.text_encoder_2 else WEIGHTS
    models = folder / "ip" / ("sdxl_models" if parts.text_encoder_2 else "models")
    models.mkdir(parents=True)
    for name in ("image_encoder", weights):
        (folder / "sd" / name).rename(models / name)
    saved = load_file(models / weights)
    save_file({name: value for name, value in saved.items() if "text_to_weight" not in name}, models / weights)
    return folder / "sd", models


def loaded_loss(folder: Path, ip_adapter: str | Path, batch: dict[str, Any]) -> float:
    parts = load(folder, ip_adapter)
    for layer in parts.adapter.layers:
        assert layer.text_to_weight.weight.any()
        torch.nn.init.zeros_(layer.text_to_weight.weight)
    return loss_of(Model(parts), batch)


def test_a_plain_stable_diffusion_gets_a_published_ip_adapter(either: Parts, tmp_path: Path) -> None:
    batch = tiny_objects(either, BOTH)
    folder, models = plain_stable_diffusion(either, tmp_path)
    expected = loss_of(Model(either), batch)
    assert loaded_loss(folder, models.parent, batch) == pytest.approx(expected, rel=1e-6)
    assert loaded_loss(folder, models, batch) == pytest.approx(expected, rel=1e-6)
    for path in models.iterdir():
        path.rename(folder / path.name)
    assert loaded_loss(folder, "nowhere", batch) == pytest.approx(expected, rel=1e-6)


def test_sizes_are_those_of_the_published_weights() -> None:
    with torch.device("meta"):
        adapter = Adapter(UNet2DConditionModel(cross_attention_dim=768), ImageProjection(1024, 768))
    sizes = {name: tuple(value.shape) for name, value in adapter.state_dict().items()}
    assert sizes["image_proj.proj.weight"] == (3072, 1024)
    assert sizes["image_proj.norm.weight"] == (768,)
    assert sizes["ip_adapter.1.to_k_ip.weight"] == sizes["ip_adapter.3.to_v_ip.weight"] == (320, 768)
    assert sizes["ip_adapter.31.to_k_ip.weight"] == (1280, 768)
    assert sizes["ip_adapter.31.text_to_weight.weight"] == (1, 1280)
    assert len(adapter.layers) == 16


def test_sizes_are_those_of_the_published_weights_for_sdxl() -> None:
    with torch.device("meta"):
        adapter = Adapter(
            UNet2DConditionModel(
                block_out_channels=(320, 640, 1280),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                transformer_layers_per_block=(1, 2, 10),
                attention_head_dim=(5, 10, 20),
                use_linear_projection=True,
                cross_attention_dim=2048,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
            ),
            ImageProjection(1280, 2048),
        )
    sizes = {name: tuple(value.shape) for name, value in adapter.state_dict().items()}
    assert sizes["image_proj.proj.weight"] == (8192, 1280)
    assert sizes["ip_adapter.1.to_k_ip.weight"] == (640, 2048)
    assert sizes["ip_adapter.139.to_v_ip.weight"] == (1280, 2048)
    assert sizes["ip_adapter.139.text_to_weight.weight"] == (1, 1280)
    assert len(adapter.layers) == 70
    widths = itertools.groupby(layer.to_k_ip.out_features for layer in adapter.layers)
    assert [(width, len(list(layers))) for width, layers in widths] == [(640, 4), (1280, 50), (640, 6), (1280, 10)]


def test_weights_have_the_published_names(parts: Parts, tmp_path: Path) -> None:
    Model(parts).save(tmp_path)
    layers = [
        f"ip_adapter.{number}.{kind}.weight"
        for number in range(1, 2 * len(cross_attention_layers(parts.unet)), 2)
        for kind in ("to_k_ip", "to_v_ip", "text_to_weight")
    ]
    projection = [f"image_proj.{layer}.{kind}" for layer in ("proj", "norm") for kind in ("weight", "bias")]
    assert load_file(tmp_path / WEIGHTS).keys() == {*layers, *projection}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda weights: weights.pop("ip_adapter.3.to_v_ip.weight"), "ip_adapter.3.to_v_ip.weight"),
        (lambda weights: weights.update(more=torch.zeros(1)), "more"),
        (lambda weights: weights.clear(), "image_proj.proj.weight"),
        (
            lambda weights: weights.update({"ip_adapter.1.to_k_ip.weight": torch.ones(2, 2)}),
            "ip_adapter.1.to_k_ip.weight",
        ),
    ],
)
def test_weights_that_do_not_fit_are_reported(
    parts: Parts, tmp_path: Path, change: Callable[[dict[str, Any]], Any], name: str
) -> None:
    Model(parts).save(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    change(weights)
    save_file(weights, tmp_path / WEIGHTS)
    with pytest.raises(ModelError, match=f"do not fit the model: .*{name}"):
        load(tmp_path)


def test_damaged_and_missing_weights_are_reported(parts: Parts, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"no model in {tmp_path / 'none'}: .*Stable Diffusion 1.5's layout"):
        load(tmp_path / "none", tmp_path)
    Model(parts).save(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(ModelError, match=f"{WEIGHTS} cannot be read"):
        load(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=rf"with IP-Adapter's {WEIGHTS} and image_encoder/"):
        load(tmp_path, tmp_path)


def test_weights_of_an_earlier_version_are_refused(parts: Parts, tmp_path: Path) -> None:
    Model(parts).save(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    earlier = {name.replace("text_to_weight", "predictor"): value for name, value in weights.items()}
    save_file(earlier, tmp_path / WEIGHTS)
    with pytest.raises(ModelError, match="of an earlier version, which weighted references differently"):
        load(tmp_path)
