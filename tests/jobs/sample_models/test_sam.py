import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs.sample_models.pools import Pool, render
from jobs.sample_models.sam import (
    COARSE,
    FINE,
    MOVED,
    SIDE,
    batch_loss,
    draw_box,
    draw_point,
    mask_agreement,
    mask_losses,
    refine,
)
from transforms.models.sam import new_sam


@given(st.integers(0, 2**32 - 1))
def test_prompts_point_into_the_mask_and_frame_it_nearly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[40:140, 60:100] = True
    x, y = draw_point(mask, rng)
    assert mask[int(y), int(x)]
    left, top, right, bottom = draw_box(mask, rng)
    assert abs(left - 60) <= 40 * MOVED
    assert abs(right - 100) <= 40 * MOVED
    assert abs(top - 40) <= 100 * MOVED
    assert abs(bottom - 140) <= 100 * MOVED


def test_losses_and_iou_are_those_worked_out_by_hand() -> None:
    logits, target = torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[1.0, 0.0]]])
    # Both probabilities are 1/2: focal (1/4 + 3/4) / 2 * 1/4 * ln 2, dice 1 - (2 * 1/2 + 1) / (1 + 1 + 1).
    expected = 20 * 0.5 * 0.25 * np.log(2) + 1 - 2 / 3
    assert mask_losses(logits, target).item() == pytest.approx(expected, rel=1e-6)
    perfect = torch.where(target > 0, 50.0, -50.0)
    assert mask_losses(perfect, target).item() == pytest.approx(0, abs=1e-6)
    half = torch.tensor([[1.0, 1.0, -1.0]])[None]
    assert mask_agreement(half, torch.tensor([[1.0, 0.0, 0.0]])[None]).item() == 0.5


def test_a_few_steps_lower_the_loss_of_a_scene() -> None:
    pool = Pool(*(np.stack([array]) for array in render(0)))
    torch.manual_seed(0)
    sam = new_sam(COARSE)
    optimizer = torch.optim.AdamW(sam.parameters(), lr=1e-3)
    losses = []
    for step in range(7):
        loss = batch_loss(sam, pool, np.random.default_rng(step), 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(parameter.grad is not None for parameter in sam.image_encoder.parameters())


def test_a_fine_sam_starts_from_the_weights_of_a_coarse_one() -> None:
    torch.manual_seed(0)
    coarse, fine = new_sam(COARSE), new_sam(FINE)
    weights = coarse.state_dict()
    for name in weights:
        if "pos" in name:
            torch.nn.init.normal_(weights[name])
    refine(weights, fine)
    small = torch.randn(1, 3, SIDE // 2, SIDE // 2)
    enlarged = torch.nn.functional.interpolate(small, scale_factor=2)
    torch.testing.assert_close(
        fine.image_encoder.patch_embed(small), coarse.image_encoder.patch_embed(enlarged), atol=1e-5, rtol=1e-4
    )
    # Half the distance in the windows of the first layer, as many pixels; the whole grid in the second's.
    ours, theirs = fine.state_dict(), weights
    for layer, reach in ((0, 8), (1, 32)):
        name = f"image_encoder.blocks.{layer}.attn.rel_pos_h"
        assert len(ours[name]) == 2 * reach - 1
        for apart in range(-reach // 2 + 1, reach // 2):
            torch.testing.assert_close(ours[name][reach - 1 + 2 * apart], theirs[name][15 + apart])
    # A place in the middle of four has their mean.
    middle = ours["image_encoder.pos_embed"][0, 2:4, 6:8].mean((0, 1))
    x = theirs["image_encoder.pos_embed"][0]
    expected = 9 / 16 * x[1, 3] + 3 / 32 * (x[0, 3] + x[2, 3] + x[1, 2] + x[1, 4])
    expected += 1 / 64 * (x[0, 2] + x[0, 4] + x[2, 2] + x[2, 4])
    torch.testing.assert_close(middle, expected)
