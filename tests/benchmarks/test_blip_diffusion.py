from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from benchmarks.blip_diffusion import (
    AREA,
    HELD_OUT,
    TRAINING,
    example_of,
    examples_of,
    in_standard_errors,
    losses_of,
    measure,
    with_wrong_inputs,
    without_prompts,
    write_pairs,
)
from schemas.images import decode_grey, decode_image
from schemas.samples.blip_diffusion import Record
from tests.training.pairs import tiny_blip_parts, tiny_pairs
from training.recipes.blip_diffusion import Model


def test_examples_show_the_subject_on_another_background() -> None:
    found = [example for example in (example_of(TRAINING, index) for index in range(8)) if example]
    assert len(found) >= 4
    for example in found:
        record = Record.from_example(example)
        alpha = decode_grey(example.alpha)
        difference = np.abs(decode_image(example.composite).astype(int) - decode_image(example.image)).mean(-1)
        assert AREA[0] <= record.foreground_fraction <= AREA[1]
        assert np.median(difference[alpha == 255]) < 6  # JPEG
        assert np.median(difference[alpha == 0]) > 10


def test_a_gap_in_standard_errors_by_hand() -> None:
    """Mean 2, spread 1 with n - 1, so 2 / (1 / sqrt 3)."""
    assert in_standard_errors(np.array([1.0, 2.0, 3.0])) == pytest.approx(2 * 3**0.5)


def test_the_measured_losses_are_the_models_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = tiny_blip_parts(tmp_path / "vae")
    model = Model(parts)
    batch = tiny_pairs(parts, ["ball", "cup"])
    monkeypatch.setattr("benchmarks.blip_diffusion.TIMES", (400,))
    draws = model.draw(batch, np.random.default_rng([0, 400]))
    draws.timesteps[:] = 400
    assert losses_of(model, [batch]).mean() == pytest.approx(model(batch, draws)["loss"].item(), rel=1e-5)
    wrong = with_wrong_inputs(batch)
    assert torch.equal(wrong["input_pixel_values"][0], batch["input_pixel_values"][1])
    assert torch.equal(wrong["input_ids"], batch["input_ids"])
    with torch.no_grad():
        bare, whole = (
            model.conditions(shown)["encoder_hidden_states"] for shown in (without_prompts(batch, model), batch)
        )
        assert torch.equal(bare[:, :10], whole[:, :10])
        assert torch.equal(bare, model.text_encoder(batch["input_ids"]).last_hidden_state)


@pytest.mark.slow
def test_a_short_training_lowers_the_loss_on_unseen_scenes(tmp_path: Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    write_pairs(tmp_path / "training", examples_of(TRAINING, 60))
    write_pairs(tmp_path / "held-out", examples_of(HELD_OUT, 16))
    measured = measure(tmp_path, 0, 30)
    assert measured.after.mean() < 0.5 * measured.before.mean()
    assert in_standard_errors(measured.before - measured.after) > 10
