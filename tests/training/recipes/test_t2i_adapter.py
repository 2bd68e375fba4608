"""T2I-Adapters: one map and several, weights, drops by batch, and the published names."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import MultiAdapter, T2IAdapter

from tests.training.maps import CAPTION, mapped_raw
from tests.training.models import CAPTIONS
from training.configs.t2i_adapter import Config
from training.diffusion import Draws, LatentDiffusion
from training.recipes.t2i_adapter import Model, as_coadapter, as_published, load, small, view
from training.shards import Batch, make_batch, to_floats
from training.small import small_parts

TWO = Config(resolution=64, maps=("canny", "segmentation"))


@pytest.fixture(scope="module")
def base(vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    LatentDiffusion(small_parts(vae, CAPTIONS, seed=0)).save(folder)
    return folder


@pytest.fixture
def model(base: Path) -> Model:
    return Model(small(base, (), 0), TWO)


@pytest.fixture
def batch(model: Model) -> Batch:
    raws = [(0, mapped_raw("t2i-adapter", key=f"sample{i}")) for i in range(2)]
    return to_floats(make_batch(raws, view, model.tools, TWO))


NOISY = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_features_are_the_weighted_sum_that_diffusers_computes(model: Model, batch: Batch) -> None:
    """One channel beside three: diffusers' MultiAdapter, which wants as many in each, sums the same."""
    model.map_weights = {"canny": 0.3, "segmentation": 1.5}
    maps = [batch["canny"], batch["segmentation"]]
    adapters = [model.adapters["canny"], model.adapters["segmentation"]]
    expected = MultiAdapter(adapters)(maps, [0.3, 1.5])
    text = model.encode_text(batch["input_ids"])
    own = model.unet(NOISY, 500, text, down_intrablock_additional_residuals=list(expected)).sample
    torch.testing.assert_close(model.predict(NOISY, torch.tensor(500), model.conditions(batch)), own)


@torch.no_grad()
def test_the_features_reach_every_step_of_sampling(model: Model, batch: Batch) -> None:
    """The U-Net takes features out of the list that it is given: later steps need it whole."""
    conditions = model.conditions(batch)
    first, second = (model.predict(NOISY, torch.tensor(500), conditions) for _ in range(2))
    assert torch.equal(first, second)
    without = {name: value for name, value in batch.items() if name not in TWO.maps}
    assert not torch.equal(first, model.predict(NOISY, torch.tensor(500), model.conditions(without)))


def test_dropped_maps_count_nothing_and_a_step_without_any_is_possible(model: Model, batch: Batch) -> None:
    draws = model.draw(batch, np.random.default_rng(0))

    def loss(dropped: frozenset[str], given: Batch = batch) -> torch.Tensor:
        fixed = Draws(draws.noise, draws.latent_noise, draws.timesteps, dropped)
        return model(given, fixed)["loss"]

    one = {name: value for name, value in batch.items() if name != "segmentation"}
    torch.testing.assert_close(loss(frozenset({"segmentation"})), loss(frozenset(), one))
    assert loss(frozenset()) != loss(frozenset({"segmentation"}))
    nothing = loss(frozenset(TWO.maps))
    nothing.backward()
    assert all(not p.grad.any() for p in model.adapters.parameters() if p.grad is not None)
    torch.testing.assert_close(nothing, LatentDiffusion(model.parts)(batch, draws)["loss"])


def test_the_adapters_alone_are_trained(model: Model, batch: Batch) -> None:
    model(batch, model.draw(batch, np.random.default_rng(4)))["loss"].backward()
    trained = {name.split(".")[0] for name, value in model.named_parameters() if value.requires_grad}
    assert trained == {"adapters"}
    assert {name.split(".")[1] for name, value in model.named_parameters() if value.requires_grad} == set(TWO.maps)


def test_they_are_saved_as_diffusers_loads_them(model: Model, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    loaded = T2IAdapter.from_pretrained(tmp_path / "model" / "adapters" / "canny")
    own = model.adapters["canny"].state_dict()
    assert all(torch.equal(value, own[name]) for name, value in loaded.state_dict().items())
    again = Model(load(tmp_path / "model"), Config(maps=("canny", "depth")))
    assert sorted(again.adapters) == ["canny", "depth", "segmentation"]
    assert torch.equal(again.adapters["canny"].state_dict()["adapter.conv_in.weight"], own["adapter.conv_in.weight"])


def test_the_published_names(batch: Batch) -> None:
    one, several = as_published(batch, [CAPTION] * 2, "canny"), as_coadapter(batch, [CAPTION] * 2)
    assert list(one) == ["im", "mask", "sentence"]
    assert list(several) == ["jpg", "canny", "segmentation", "txt"]
    assert (tuple(one["mask"].shape), tuple(several["segmentation"].shape)) == ((2, 1, 64, 64), (2, 3, 64, 64))
    torch.testing.assert_close(one["im"], batch["pixel_values"] / 2 + 0.5)
    assert (one["im"].min() >= 0, one["im"].max() <= 1) == (True, True)
