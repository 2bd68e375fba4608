"""GLIGEN's view and model: boxes follow the picture, drops have their shares, new layers alone learn."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import ConfigError, ModelError
from schemas.samples.gligen import FORMAT
from tests.gligen import WIDTH, grounded_example
from tests.training.models import CAPTIONS, save_tiny_autoencoder
from training import small
from training.configs.gligen import Config
from training.diffusion import LatentDiffusion
from training.recipes import gligen
from training.recipes.gligen import Model, add_gates, is_new, view
from training.shards import make_batch, to_floats
from training.small import small_parts
from training.tokenizer import small_tokenizer

SIDE = 64
TOOLS = [small_tokenizer(["a dog and a cat, dog, cat"])]
PLAIN = Config(resolution=SIDE, reference=SIDE).plain()


def raw_of(example: Any) -> dict[str, Any]:  # noqa: ANN401 - an Example
    sample, _ = FORMAT.pack(example)
    return {"__key__": sample.key, "__url__": "", **sample.members}


def batch_of(*examples: Any, config: Config = PLAIN, seed: int = 0) -> dict[str, Any]:  # noqa: ANN401
    batch = to_floats(make_batch([(seed + i, raw_of(e)) for i, e in enumerate(examples)], view, TOOLS, config))
    assert batch["skipped"] == []
    return batch


def caption_of(batch: dict[str, Any], index: int = 0) -> str:
    return str(TOOLS[0].decode(batch["input_ids"][index], skip_special_tokens=True)).strip()


def test_boxes_are_cropped_sorted_and_small_ones_left_out() -> None:
    """A picture of 128 x 64: its middle 64 columns are the square."""
    boxes = [
        ("a hat", (40, 10, 8, 8)),  # 1.6 % of the square
        ("a dog", (0, 0, 64, 64)),  # its right half is visible
        ("a pin", (40, 10, 6, 6)),  # 0.9 %
        ("a cat", (100, 0, 20, 60)),  # outside
        ("a sky", (32, 0, 64, 60)),
    ]
    batch = batch_of(grounded_example("k", boxes, (128, 64)))
    assert batch["masks"][0, :4].tolist() == [1, 1, 1, 0]
    expected = torch.tensor([[0, 0, 1, 60 / 64], [0, 0, 0.5, 1], [8 / 64, 10 / 64, 16 / 64, 18 / 64], [0, 0, 0, 0]])
    torch.testing.assert_close(batch["boxes"][0, :4], expected)
    embeddings = grounded_example("k", boxes, (128, 64)).embeddings
    for place, row in enumerate([4, 1, 0]):
        np.testing.assert_array_equal(batch["text_embeddings"][0, place], embeddings["text_before"][row])
        np.testing.assert_array_equal(batch["image_embeddings"][0, place], embeddings["image_reprojected"][row])
    assert not batch["text_embeddings"][0, 3:].any()
    all_boxes = batch_of(grounded_example("k", boxes, (128, 64)), config=PLAIN.model_copy(update={"min_box": 0.0}))
    assert all_boxes["masks"][0].sum() == 4


def test_the_thirty_largest_boxes_are_kept() -> None:
    boxes = [("a dog", (0, 0, 20 + i, 30)) for i in range(35)]
    batch = batch_of(grounded_example("k", boxes, (64, 64)))
    assert batch["masks"].sum() == 30
    np.testing.assert_allclose(batch["boxes"][0, [0, 29], 2], [54 / 64, 25 / 64], rtol=1e-6)


@given(st.integers(0, 40), st.integers(0, 30), st.integers(8, 24), st.integers(8, 18), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_a_mirrored_picture_has_mirrored_boxes(x: int, y: int, w: int, h: int, seed: int) -> None:
    example = grounded_example("k", [("a dog", (x, y, w, h)), ("a cat", (0, 0, 64, 48))])
    plain = batch_of(example)
    mirroring = PLAIN.model_copy(update={"mirror": True})
    drawn = batch_of(example, config=mirroring, seed=seed)
    if torch.equal(drawn["pixel_values"], plain["pixel_values"]):
        torch.testing.assert_close(drawn["boxes"], plain["boxes"])
    else:
        torch.testing.assert_close(drawn["pixel_values"], plain["pixel_values"].flip(-1))
        count = int(plain["masks"].sum())
        flipped = plain["boxes"][0, :count][:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([1, 0, 1, 0])
        torch.testing.assert_close(drawn["boxes"][0, :count], flipped)


def test_pictures_are_mirrored_half_of_the_time() -> None:
    example = grounded_example("k")
    batch = batch_of(*[example] * 100, config=PLAIN.model_copy(update={"mirror": True}))
    assert len({tuple(box.flatten().tolist()) for box in batch["boxes"]}) == 2
    share = (batch["boxes"] == batch["boxes"][0]).flatten(1).all(1).float().mean()
    assert 0.35 < share < 0.65


def test_drops_have_the_published_shares() -> None:
    """Both features half of the time, either alone a quarter, never neither; half of the captions."""
    config = Config(resolution=SIDE, reference=SIDE, mirror=False)
    batch = batch_of(*[grounded_example("k")] * 300, config=config)
    kept = batch["masks"].bool()
    pairs = Counter(zip(batch["text_masks"][kept].tolist(), batch["image_masks"][kept].tolist(), strict=True))
    assert set(pairs) == {(1, 1), (1, 0), (0, 1)}
    assert 0.43 < pairs[1, 1] / 600 < 0.57
    assert 0.18 < pairs[1, 0] / 600 < 0.32
    empty = sum(caption_of(batch, i) == "" for i in range(300))
    assert 0.4 < empty / 300 < 0.6
    assert not batch["text_masks"][~kept].any()


def test_the_caption_of_classes_is_their_names_largest_first() -> None:
    boxes = [("cat", (0, 0, 20, 20)), ("pin", (0, 0, 3, 3)), ("dog", (10, 6, 30, 40))]
    assert caption_of(batch_of(grounded_example("k", boxes, detection=True))) == "dog , cat"
    assert caption_of(batch_of(grounded_example("k"))) == "a dog and a cat"


def test_damaged_embeddings_are_skipped_with_a_line() -> None:
    raw = raw_of(grounded_example("k"))
    for member in ({"text_before.npy": b""}, {"text_before.npy": raw["text_before.npy"][:-3]}):
        batch = make_batch([(0, raw | member)], view, TOOLS, PLAIN)
        assert len(batch["skipped"]) == 1


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gligen") / "vae"
    save_tiny_autoencoder(folder)
    return folder


@pytest.fixture(scope="module")
def model(vae: Path) -> Model:
    assert small.WIDTH % WIDTH == 0
    return Model(gligen.small(vae, CAPTIONS, 0), Config(grounding_dropped=0.3))


def wide_batch(model: LatentDiffusion) -> dict[str, Any]:
    """A batch whose embeddings have the model's width."""
    batch = batch_of(grounded_example("k"), grounded_example("l"))
    for name in ("text_embeddings", "image_embeddings"):
        batch[name] = batch[name].repeat(1, 1, small.WIDTH // WIDTH)
    return {**batch, "input_ids": model.tokenize(["a red ball"] * 2)}


def open_gates(model: Model) -> None:
    with torch.no_grad():
        for name, parameter in model.unet.named_parameters():
            if name.endswith(("alpha_attn", "alpha_dense")):
                parameter.fill_(0.7)


def test_only_the_added_layers_learn_and_they_start_closed(vae: Path, model: Model) -> None:
    """With closed gates the model predicts what the plain U-Net does."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"unet.{name}" for name, _ in model.unet.named_parameters() if is_new(name)}
    assert any("position_net" in name for name in trained)
    assert any("fuser" in name for name in trained)
    plain = small_parts(vae, CAPTIONS, 0)
    batch = wide_batch(model)
    noisy, times = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([10, 500])
    with torch.no_grad():
        conditions = model.conditions(batch)
        text = {"encoder_hidden_states": conditions["encoder_hidden_states"]}
        gated = add_gates(plain.unet, 0)
        torch.testing.assert_close(gated(noisy, times, **conditions).sample, plain.unet(noisy, times, **text).sample)
    assert add_gates(gated, 0) is gated
    gated.register_to_config(attention_type="gated")
    with pytest.raises(ModelError, match="gated"):
        add_gates(gated, 0)


def test_a_share_of_the_batches_has_no_boxes(model: Model) -> None:
    open_gates(model)
    batch = wide_batch(model)
    draws = [model.draw(batch, np.random.default_rng(seed)) for seed in range(200)]
    dropped = [d for d in draws if "grounding" in d.dropped]
    assert 0.2 < len(dropped) / 200 < 0.4  # the fixture's 0.3
    with torch.no_grad():
        with_boxes, without = (model(batch, d)["loss"] for d in (draws[0], dropped[0]))
        moved = {**batch, "boxes": 1 - batch["boxes"]}
        assert model(moved, dropped[0])["loss"] == without
        kept = next(d for d in draws if not d.dropped)
        assert model(moved, kept)["loss"] != model(batch, kept)["loss"]
    assert with_boxes > 0


def test_sampling_uses_boxes_in_its_first_steps_alone(model: Model) -> None:
    open_gates(model)
    model.grounded_share = 0.3
    conditions = model.sampling_conditions(wide_batch(model), 10)
    assert ["cross_attention_kwargs" in step for step in conditions] == [True] * 3 + [False] * 7
    masks = conditions[0]["cross_attention_kwargs"]["gligen"]["masks"]
    assert masks.sum(1).tolist() == [0, 0, 2, 2]  # the unconditional half has no boxes


def test_a_saved_model_is_loaded_with_its_gates(model: Model, tmp_path: Path) -> None:
    open_gates(model)
    model.save(tmp_path / "model")
    loaded = gligen.load(tmp_path / "model")
    for name, value in model.unet.state_dict().items():
        torch.testing.assert_close(loaded.unet.state_dict()[name], value)


def test_embeddings_of_another_clip_are_refused(model: Model) -> None:
    batch = batch_of(grounded_example("k"))
    with pytest.raises(ConfigError, match=f"{WIDTH} wide, the model takes {small.WIDTH}"):
        model.conditions(batch)
