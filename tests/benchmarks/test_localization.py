import numpy as np
import pytest
import torch

from benchmarks.localization import TRAINING, examples_of, shares_of


def test_shares_of_a_worked_example() -> None:
    """Two objects, a quarter of the picture each; one token attends to its own, the other to the whole picture."""
    masks = torch.zeros(1, 3, 8, 8)
    masks[0, 0, :4, :4] = 1
    masks[0, 1, 4:, 4:] = 1
    first, second = torch.zeros(4, 4), torch.full((4, 4), 0.1)
    first[0, 0], first[1, 1] = 0.3, 0.1
    attention = torch.stack([first.flatten(), second.flatten(), first.flatten()], dim=-1)[None, None].repeat(1, 2, 1, 1)
    shares = shares_of(attention, masks, torch.tensor([[True, True, False]]))
    np.testing.assert_allclose(shares, [[1, 0, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25]])


def test_heads_have_equal_weight() -> None:
    masks = torch.zeros(1, 1, 2, 2)
    masks[0, 0, 0] = 1
    attention = torch.tensor([[[0.9, 0.0, 0.0, 0.0], [0.0, 0.0, 0.001, 0.0]]]).transpose(1, 2)[..., None]
    shares = shares_of(attention.permute(0, 2, 1, 3), masks, torch.tensor([[True]]))
    assert shares[0, 0] == pytest.approx(0.5)


def test_examples_have_two_subjects_or_more_that_are_where_their_phrases_say() -> None:
    examples = examples_of(TRAINING, 6)
    assert len(examples) == 6
    for example in examples:
        assert len(example.matches) == len(example.phrases) == len(example.segments) >= 2
        assert all(
            example.caption[p.start : p.end] == p.text and s.label in p.text
            for p, s in zip(example.phrases, example.segments, strict=True)
        )
