"""What is left to the CPU beside a GPU stays within its bounds; with slack, as other tests run beside this one."""

import numpy as np
import pytest
import torch

from benchmarks.host import bits, blob, costs
from schemas.runs import masks_of_bits


def test_handlers_leave_little_to_the_cpu() -> None:
    found = {name: (cost, case.bound) for name, case, cost in costs(2, repeats=3)}
    assert set(found) == {
        "CLIP", "CLIPSeg", "segmenter", "detector", "SAM, 5 boxes", "SAM, 100 automatic masks"
    }  # fmt: skip
    for name, (cost, bound) in found.items():
        assert 0 < cost < 2 * bound, name


def test_the_stub_packs_masks_as_they_are_read() -> None:
    masks = [blob(index) for index in range(9)]
    for mask, found in zip(masks, masks_of_bits(bits(masks).numpy(), 9), strict=True):
        np.testing.assert_array_equal(found.to_array(), mask)


@pytest.mark.gpu
def test_bounds_hold_with_the_copies_to_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.host.DEVICE", "cuda")
    assert torch.cuda.is_available()
    assert all(cost < 2 * case.bound for _, case, cost in costs(2, repeats=3))
