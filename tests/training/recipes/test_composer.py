"""Composer: its view, which conditions reach the U-Net and how, and guidance between two sets of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.maps import mapped_raw
from tests.training.models import CAPTIONS
from training.conditioner import LOCAL
from training.configs.composer import CONDITIONS, Config
from training.diffusion import LatentDiffusion
from training.recipes.composer import Model, load, small, view
from training.shards import Batch, make_batch, to_floats
from training.small import small_parts

CONFIG = Config(resolution=64)
NOISY = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def base(vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    LatentDiffusion(small_parts(vae, CAPTIONS, seed=0)).save(folder)
    return folder


@pytest.fixture
def model(base: Path) -> Model:
    return Model(small(base, (), 0), CONFIG)


def batch_of(model: Model, kinds: tuple[str, ...] = ()) -> Batch:
    raws = [(0, mapped_raw("composer", key=f"sample{i}", kinds=kinds)) for i in range(2)]
    return to_floats(make_batch(raws, view, model.tools, CONFIG.plain()))


def test_the_masked_picture_and_intensity_are_made_of_the_picture(model: Model) -> None:
    batch = batch_of(model)
    picture, masked = batch["pixel_values"] / 2 + 0.5, batch["masked"]
    assert set(masked[:, 3].unique().tolist()) == {0.0, 1.0}
    hidden = masked[:, 3:] == 1
    torch.testing.assert_close(masked[:, :3], torch.where(hidden, 0, picture), atol=1e-6, rtol=0)
    grey = batch["intensity"]
    assert (grey.amin() >= picture.amin(), grey.amax() <= picture.amax()) == (True, True)
    assert (grey >= picture.amin(1, keepdim=True) - 0.003).all()
    assert (grey <= picture.amax(1, keepdim=True) + 0.003).all()


def test_instances_are_the_things_alone(model: Model) -> None:
    """The top rows of the picture show a sky, which is no thing."""
    instances = batch_of(model)["instances"][0]
    assert not instances[:, :8].any()
    assert instances[:, 20:].amax(0).min() > 0
    assert (instances[:, 40, 2] != instances[:, 40, 60]).any()


def test_conditions_that_a_sample_lacks_are_dropped(model: Model) -> None:
    keep = batch_of(model)["keep"]
    assert keep.all()
    lacking = batch_of(model, kinds=("sketch",))
    assert dict(zip(CONDITIONS, lacking["keep"][0].tolist(), strict=True)) == {
        name: name not in ("instances", "depth") for name in CONDITIONS
    }
    assert not lacking["depth"].any()


@torch.no_grad()
@pytest.mark.parametrize("name", CONDITIONS[1:])
def test_a_condition_matters_where_it_is_kept_and_only_there(model: Model, name: str) -> None:
    for parameter in (
        model.unet.conv_in.weight,
        *model.conditioner.to_time[name if name == "image" else "caption"].parameters(),
    ):
        torch.nn.init.normal_(parameter, std=0.2)
    batch = batch_of(model)
    entry = model.entry_of(name)
    other = {**batch, entry: 1 - batch[entry]}
    dropped = batch["keep"] & torch.tensor([condition != name for condition in CONDITIONS])
    kept = [model.predict(NOISY, torch.tensor(500), model.conditions(b)) for b in (batch, other)]
    gone = [model.predict(NOISY, torch.tensor(500), model.conditions({**b, "keep": dropped})) for b in (batch, other)]
    assert (kept[0] - kept[1]).abs().max() > 1e-6
    assert torch.equal(*gone)
    model.map_weights = {name: 0.0}
    assert torch.equal(model.predict(NOISY, torch.tensor(500), model.conditions(batch)), gone[0])


@torch.no_grad()
def test_local_conditions_change_nothing_before_training(model: Model) -> None:
    batch = batch_of(model)
    other = {**batch, **{name: 1 - batch[name] for name in LOCAL}}
    same = [model.predict(NOISY, torch.tensor(500), model.conditions(b)) for b in (batch, other)]
    torch.testing.assert_close(*same, atol=1e-6, rtol=0)


@torch.no_grad()
def test_guidance_leads_from_the_shared_conditions_to_all(model: Model) -> None:
    batch = batch_of(model)
    keep = model.unconditional(batch)["keep"]
    assert not keep.any()
    assert torch.equal(model.unconditional(batch)["input_ids"][0], model.tokenize([""])[0])
    model.shared = ("caption", "depth")
    shared = model.unconditional(batch)
    assert [name for name, kept in zip(CONDITIONS, shared["keep"][0], strict=True) if kept] == ["caption", "depth"]
    assert torch.equal(shared["input_ids"], batch["input_ids"])
    model.shared = CONDITIONS  # both sets are the same: the weight of the guidance does not matter
    drawn = [model.sample(batch, NOISY, steps=2, guidance=weight) for weight in (1.0, 9.0)]
    torch.testing.assert_close(*drawn, atol=1e-4, rtol=0)


def test_unet_and_conditioner_are_trained_and_saved(model: Model, tmp_path: Path) -> None:
    batch = batch_of(model)
    draws = model.draw(batch, np.random.default_rng(0))
    loss = model(batch, draws)["loss"]
    loss.backward()
    assert {name.split(".")[0] for name, value in model.named_parameters() if value.requires_grad} == {
        "unet",
        "conditioner",
    }
    model.save(tmp_path / "model")
    with torch.no_grad():
        torch.testing.assert_close(Model(load(tmp_path / "model"), CONFIG)(batch, draws)["loss"], loss)
