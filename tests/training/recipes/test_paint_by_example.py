"""Paint by Example's view and model: holes, references and what the U-Net sees of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from schemas.errors import ModelError
from schemas.example import Grounded
from schemas.images import decode_image
from schemas.samples.paint_by_example import FORMAT
from tests.datasets import example
from tests.training.models import CAPTIONS, save_tiny_autoencoder
from training.configs.paint_by_example import Config
from training.recipes import paint_by_example
from training.recipes.paint_by_example import Model, add_channels, view
from training.shards import make_batch, to_floats
from training.small import small_parts

SIDE = 64
BOX = (30, 10, 30, 40)
DRAWN = Config(resolution=SIDE, reference=SIDE, pad=2)
PLAIN = DRAWN.plain()


def raw_of(key: str = "k", size: tuple[int, int] = (128, 64), *boxes: tuple[int, int, int, int]) -> dict[str, Any]:
    grounded = tuple(Grounded("dog", (), box, 1.0) for box in boxes or (BOX,))
    made = example(key, size=size)
    object.__setattr__(made, "grounded", grounded)
    sample, _ = FORMAT.pack(made)
    return {"__key__": sample.key, "__url__": "", **sample.members}


def batch_of(*raws: dict[str, Any], config: Config = PLAIN) -> dict[str, Any]:
    batch = to_floats(make_batch(list(enumerate(raws)), view, None, config))
    assert batch["skipped"] == []
    return batch


def test_without_chance_the_largest_box_is_the_hole_and_the_reference() -> None:
    """The square nearest to the middle of 128 x 64 pixels that holds [30, 60) begins at column 30."""
    raw = raw_of("k", (128, 64), (5, 5, 10, 10), BOX)
    batch = batch_of(raw)
    expected = torch.ones(64, 64)
    expected[10:50, 0:30] = 0
    torch.testing.assert_close(batch["inpaint_mask"][0, 0], expected)
    pixels = decode_image(raw["jpg"])
    target = torch.from_numpy(pixels[:, 30:94].transpose(2, 0, 1).astype(np.float32) / 127.5 - 1)
    torch.testing.assert_close(batch["pixel_values"][0], target, rtol=0, atol=0.02)
    torch.testing.assert_close(batch["inpaint_values"][0], batch["pixel_values"][0] * expected, rtol=0, atol=1e-6)
    assert (batch["inpaint_values"][0, :, 10:50, 0:30] == 0).all()
    padded = Image.fromarray(pixels[8:52, 28:62]).resize((64, 64), Image.Resampling.BILINEAR)
    reference = (batch["reference_pixel_values"][0] * 255).permute(1, 2, 0).numpy()
    assert np.abs(reference - np.asarray(padded)).mean() < 2


def test_a_square_picture_is_shown_whole() -> None:
    batch = batch_of(raw_of("k", (64, 64), (16, 32, 32, 16)))
    hole = batch["inpaint_mask"][0, 0] == 0
    assert hole[32:48, 16:48].all()
    assert hole.sum() == 32 * 16


def test_what_is_random_is_a_function_of_seed_and_differs_between_samples() -> None:
    raws = [raw_of()] * 40
    first, again = batch_of(*raws, config=DRAWN), batch_of(*raws, config=DRAWN)
    for name in ("inpaint_mask", "reference_pixel_values", "pixel_values"):
        torch.testing.assert_close(first[name], again[name])
        assert len({value.numpy().tobytes() for value in first[name]}) > 20, name
    soft = ((first["inpaint_mask"] > 0) & (first["inpaint_mask"] < 1)).flatten(1).any(1)
    assert soft.any()  # curved holes, scaled
    covered = [float((mask == 0).float().mean()) for mask in first["inpaint_mask"]]
    assert max(covered) > 1.3 * min(covered)
    targets = batch_of(*raws, config=DRAWN.model_copy(update={"shrink": 0.0}))["pixel_values"]
    pixels = decode_image(raws[0]["jpg"])
    whole = np.asarray(Image.fromarray(pixels).resize((64, 64), Image.Resampling.BILINEAR))
    windows = [whole, *(pixels[:, x : x + 64] for x in range(65))]
    for target in targets:  # never mirrored: each is a window of the picture, or all of it
        shown = ((target + 1) * 127.5).permute(1, 2, 0).numpy()
        assert min(np.abs(shown - window.astype(float)).mean() for window in windows) < 2


def test_half_of_the_holes_are_rectangles() -> None:
    config = DRAWN.model_copy(update={"shrink": 0.0, "augment": False})
    masks = batch_of(*[raw_of()] * 200, config=config)["inpaint_mask"][:, 0] < 0.5
    rectangles = 0
    for mask in masks.numpy():
        rows, columns = np.nonzero(mask)
        rectangles += mask.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    assert 0.4 < rectangles / 200 < 0.6


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pbe") / "vae"
    save_tiny_autoencoder(folder)
    return folder


@pytest.fixture(scope="module")
def model(vae: Path) -> Model:
    return Model(paint_by_example.small(vae, CAPTIONS, 0), Config(reference_dropped=0.3, train_encoders=True))


def test_a_widened_u_net_predicts_what_the_plain_one_did(vae: Path) -> None:
    plain = small_parts(vae, CAPTIONS, 0).unet
    wide = add_channels(plain, 4)
    assert wide.config.in_channels == 9
    assert add_channels(wide, 4) is wide
    noisy = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    text, beside = torch.randn(2, 1, 64), torch.randn(2, 5, 16, 16)
    with torch.no_grad():
        expected = plain(noisy, torch.tensor([3, 700]), text).sample
        found = wide(torch.cat([noisy, beside], 1), torch.tensor([3, 700]), text).sample
    torch.testing.assert_close(found, expected)
    with pytest.raises(ModelError, match="9 channels"):
        add_channels(wide, 3)


def test_the_u_net_sees_one_token_and_nine_channels(model: Model) -> None:
    batch = batch_of(raw_of("a"), raw_of("b"))
    with torch.no_grad():
        conditions = model.conditions(batch)
    assert conditions["encoder_hidden_states"].shape == (2, 1, 64)
    assert conditions["beside"].shape == (2, 5, 16, 16)
    mask = conditions["beside"][:, 4]
    assert set(mask.unique().tolist()) == {0, 1}
    assert mask[0, 3:12, 0:7].sum() == 0  # 1 is kept, 0 is the hole
    assert mask[0, :, 8:].all()


def test_the_null_vector_stands_for_no_reference(model: Model) -> None:
    """In dropped batches, and in the unconditional half of sampling."""
    batch = batch_of(raw_of("a"), raw_of("b"))
    other = {**batch, "reference_pixel_values": 1 - batch["reference_pixel_values"]}
    draws = [model.draw(batch, np.random.default_rng(seed)) for seed in range(100)]
    dropped = [d for d in draws if "reference" in d.dropped]
    assert 0.15 < len(dropped) / 100 < 0.45
    kept = next(d for d in draws if not d.dropped)
    with torch.no_grad():
        assert model(batch, dropped[0])["loss"] == model(other, dropped[0])["loss"]
        assert model(batch, kept)["loss"] != model(other, kept)["loss"]
        tokens = model.sampling_conditions(batch, 1)[0]["encoder_hidden_states"]
    torch.testing.assert_close(tokens[:2], model.image_encoder.null.expand(2, -1, -1))
    assert (tokens[2:] - tokens[:2]).abs().min(-1).values.max() > 0
    losses = model(batch, dropped[0])
    losses["loss"].backward()
    assert model.image_encoder.null.grad is not None
    assert model.image_encoder.null.grad.abs().max() > 0
    model.zero_grad()


def test_text_encoder_and_autoencoder_are_frozen(model: Model, vae: Path) -> None:
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"unet", "image_encoder"}
    frozen = Model(paint_by_example.small(vae, CAPTIONS, 0), Config())
    names = {n for n, p in frozen.image_encoder.named_parameters() if p.requires_grad}
    assert not any(name.startswith("model.") for name in names)
    assert {name.split(".")[0] for name in names} == {"mapper", "final_layer_norm", "proj_out", "null"}


def test_a_saved_model_draws_as_before(model: Model, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    loaded = Model(paint_by_example.load(tmp_path / "model"), Config())
    batch = batch_of(raw_of("a"))
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    pictures = [m.sample(batch, noise, steps=2) for m in (model, loaded)]
    torch.testing.assert_close(*pictures)
