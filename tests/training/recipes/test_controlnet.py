"""ControlNet: what it changes and what it does not, its views, and that it learns."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel

from tests.training.maps import CAPTION, mapped_raw
from tests.training.models import CAPTIONS
from training.config import RunConfig
from training.configs.controlnet import Config
from training.diffusion import LatentDiffusion
from training.recipes.controlnet import Model, as_published, drop_table, load, small, view
from training.setup import set_up
from training.shards import Batch, make_batch, to_floats
from training.small import small_parts

CONFIG = Config(resolution=64, map="depth")


@pytest.fixture(scope="module")
def base(vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small untrained Stable Diffusion, whose output layer is not zero."""
    folder = tmp_path_factory.mktemp("base") / "model"
    LatentDiffusion(small_parts(vae, CAPTIONS, seed=0)).save(folder)
    return folder


def model_of(base: Path, config: Config = CONFIG) -> Model:
    return Model(small(base, (), 0), config)


def batch_of(model: Model, config: Config = CONFIG, count: int = 2) -> Batch:
    raws = [(0, mapped_raw("controlnet", key=f"sample{i}")) for i in range(count)]
    return to_floats(make_batch(raws, view, model.tools, config))


def test_an_untrained_controlnet_changes_nothing_to_the_last_bit(base: Path) -> None:
    model = model_of(base)
    plain, batch = LatentDiffusion(small(base, (), 0)), batch_of(model)
    draws = model.draw(batch, np.random.default_rng(0))
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(batch, draws)["loss"], plain(batch, draws)["loss"])
    assert torch.equal(model.sample(batch, noise, steps=2), plain.sample(batch, noise, steps=2))


def test_a_step_trains_the_controlnet_alone_and_then_the_map_matters(base: Path) -> None:
    model = model_of(base)
    batch = batch_of(model)
    draws = model.draw(batch, np.random.default_rng(0))
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for _ in range(2):  # the first step moves the convolutions that were zero, the second what is before them
        optimizer.zero_grad()
        model(batch, draws)["loss"].backward()
        optimizer.step()
    moved = {name.split(".")[0] for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"controlnet"}
    other = {**batch, "conditioning_pixel_values": 1 - batch["conditioning_pixel_values"]}
    with torch.no_grad():
        assert not torch.equal(model(batch, draws)["loss"], model(other, draws)["loss"])
        model.map_weights = {"depth": 0.0}
        plain = LatentDiffusion(small(base, (), 0))
        assert torch.equal(model(batch, draws)["loss"], plain(batch, draws)["loss"])


def test_the_weight_of_a_map_scales_what_is_added(base: Path) -> None:
    """Half the weight adds half of each residual: diffusers' `conditioning_scale`."""
    model = model_of(base)
    for convolution in model.controlnet.controlnet_down_blocks:
        torch.nn.init.normal_(convolution.weight, std=0.1)
    batch = batch_of(model)
    noisy, time = torch.randn(2, 4, 16, 16), torch.tensor(500)
    with torch.no_grad():
        conditions = model.conditions(batch)
        text = conditions["encoder_hidden_states"]
        down, middle = model.controlnet(noisy, time, text, conditions["map"], return_dict=False)
        half = {"down_block_additional_residuals": [value / 2 for value in down]}
        expected = model.unet(noisy, time, text, **half, mid_block_additional_residual=middle / 2).sample
        model.map_weights = {"depth": 0.5}
        torch.testing.assert_close(model.predict(noisy, time, conditions), expected)


def test_it_is_saved_as_diffusers_loads_it(base: Path, tmp_path: Path) -> None:
    model = model_of(base)
    torch.nn.init.normal_(model.controlnet.controlnet_mid_block.weight)
    model.save(tmp_path / "model")
    loaded = ControlNetModel.from_pretrained(tmp_path / "model", subfolder="controlnet")
    assert torch.equal(loaded.controlnet_mid_block.weight, model.controlnet.controlnet_mid_block.weight)
    again = load(tmp_path / "model")
    assert torch.equal(again.controlnet.controlnet_mid_block.weight, model.controlnet.controlnet_mid_block.weight)


def test_the_published_names_and_layouts(base: Path) -> None:
    model = model_of(base)
    batch = batch_of(model)
    published = as_published(batch, [CAPTION, CAPTION])
    assert published["jpg"].shape == published["hint"].shape == (2, 64, 64, 3)
    assert (published["jpg"].min() < -0.5, published["jpg"].max() <= 1) == (True, True)
    assert (published["hint"].min(), published["hint"].max()) == (0, 1)
    assert published["txt"] == [CAPTION, CAPTION]
    torch.testing.assert_close(published["hint"][1, 5, 7], batch["conditioning_pixel_values"][1, :, 5, 7])
    assert (published["hint"] == published["hint"][..., :1]).all()


def test_half_of_the_captions_are_empty_unless_the_config_says_otherwise(base: Path) -> None:
    model = model_of(base)
    raw, empty = mapped_raw("controlnet"), model.tokenize([""])[0]

    def count(config: Config, draws: int = 300) -> int:
        rng = np.random.default_rng(0)
        ids = (view(raw, rng, model.tools, config)["input_ids"] for _ in range(draws))
        return sum(isinstance(value, torch.Tensor) and torch.equal(value, empty) for value in ids)

    assert abs(count(CONFIG) - 150) < 3 * (300 * 0.25) ** 0.5
    assert count(CONFIG.model_copy(update={"empty_prompts": 0.0}), 20) == 0
    assert count(CONFIG.plain(), 20) == 0
    assert drop_table(CONFIG)["sample"].independent[0].p == 0.5


@pytest.mark.parametrize("sampling", ["uniform", "cubic"])
def test_the_config_says_how_timesteps_are_drawn(base: Path, sampling: Any) -> None:  # noqa: ANN401
    model = model_of(base)
    set_up(model, RunConfig(time_sampling=sampling))
    draws = [model.draw(batch_of(model, count=1), np.random.default_rng(seed)).timesteps for seed in range(60)]
    late = np.mean([float(t) >= 500 for t in draws])
    assert abs(late - (0.5 if sampling == "uniform" else 0.794)) < 3 * (0.25 / 60) ** 0.5
