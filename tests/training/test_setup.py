"""Setting a model up for a run: what is trained, precision, memory layout."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.training.models import tiny_batch, tiny_parts
from training.config import RunConfig
from training.configs.fastcomposer import Config
from training.recipes.fastcomposer import Model
from training.setup import set_up


@pytest.fixture
def model(vae: Path) -> Model:
    return Model(tiny_parts(vae), Config(trained_blocks=1))


def test_by_default_nothing_changes(model: Model) -> None:
    before = {name: (value.dtype, value.stride()) for name, value in model.named_parameters()}
    precision = torch.get_float32_matmul_precision()
    set_up(model, RunConfig())
    assert {name: (value.dtype, value.stride()) for name, value in model.named_parameters()} == before
    assert torch.get_float32_matmul_precision() == precision
    assert model.min_snr == model.noise_offset == 0
    assert model.unet._compiled_call_impl is None


def test_frozen_weights_are_held_in_half_precision(model: Model) -> None:
    """The trained ones stay in single precision, and so does the autoencoder; the losses change little."""
    batch = tiny_batch(model.parts, [[True, True]])
    draws = model.draw(batch, np.random.default_rng(0))
    plain = model(batch, draws)["loss"].item()
    set_up(model, RunConfig(precision="bf16", frozen_half=True, lora=2))
    for name, parameter in model.named_parameters():
        half = not parameter.requires_grad and not name.startswith("vae.")
        assert parameter.dtype == (torch.bfloat16 if half else torch.float32), name
    assert model.text_encoder.embeddings.token_embedding.weight.dtype == torch.bfloat16
    assert model.unet.conv_in.weight.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(batch, draws)
    assert losses["loss"].item() == pytest.approx(plain, rel=0.03)
    losses["loss"].backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_frozen_weights_have_no_half_precision_without_mixed_precision() -> None:
    with pytest.raises(ValidationError, match="set precision to bf16 or fp16"):
        RunConfig(frozen_half=True)


def test_channels_last_changes_the_layout_and_not_the_loss(model: Model) -> None:
    batch = tiny_batch(model.parts, [[True, True]])
    draws = model.draw(batch, np.random.default_rng(0))
    plain = model(batch, draws)["loss"].item()
    set_up(model, RunConfig(channels_last=True))
    assert model.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert model(batch, draws)["loss"].item() == pytest.approx(plain, rel=1e-4)


def test_the_objective_and_tf32_are_set(model: Model) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        set_up(model, RunConfig(min_snr=5.0, noise_offset=0.1, tf32=True))
        assert (model.min_snr, model.noise_offset) == (5.0, 0.1)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_compiling_keeps_the_names_of_the_weights(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for name, _ in model.named_parameters()]
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))  # noqa: PLW0108
    set_up(model, RunConfig(compile=True))
    assert compiled == [model.unet]
    assert [name for name, _ in model.named_parameters()] == names


def test_a_lora_is_added_once(model: Model) -> None:
    for _ in range(2):
        set_up(model, RunConfig(lora=2, lora_modules=("to_q",)))
    trained = [name for name, value in model.unet.named_parameters() if value.requires_grad]
    assert trained
    assert all("to_q.lora_" in name for name in trained)
    assert any(value.requires_grad for value in model.fuser.parameters())  # what the recipe adds is trained too
