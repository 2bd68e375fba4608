"""The sample segmenter: its batches, and the targets and loss of its probe by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from jobs.sample_models.pools import NO_OBJECT, Pool, render_pool
from jobs.sample_models.segmenter import (
    SIZES,
    WIDTH,
    draw_batch,
    evaluate,
    new_model,
    new_processor,
    pixel_loss,
    pixel_targets,
)
from transforms.scenes.shapes import NOUNS

BALL, CUP = NOUNS.index("ball"), NOUNS.index("cup")


def pool_of(*nouns: list[int], side: int = 8) -> Pool:
    """A pool of scenes with these nouns, object j in column j, each picture of a grey of its own."""
    kinds = np.full((len(nouns), 5, 3), NO_OBJECT, np.uint8)
    owners = np.zeros((len(nouns), side, side), np.uint8)
    for i, of_scene in enumerate(nouns):
        kinds[i, : len(of_scene), 0] = of_scene
        for j in range(len(of_scene)):
            owners[i, :, j] = j + 1
    greys = np.linspace(0, 255, len(nouns)).astype(np.uint8)
    images = np.broadcast_to(greys[:, None, None, None], (len(nouns), side, side, 3)).copy()
    return Pool(images, owners, kinds)


def box(top: int, bottom: int, left: int, right: int, side: int = 8) -> torch.Tensor:
    mask = torch.zeros(side, side)
    mask[top:bottom, left:right] = 1
    return mask


# Batches.


def test_a_batch_holds_the_masks_and_nouns_of_its_scenes() -> None:
    batch = draw_batch(pool_of([BALL, CUP]), np.random.default_rng(0), 16, 1)
    (masks,), (classes,) = batch["mask_labels"], batch["class_labels"]
    assert batch["pixel_values"].shape == (1, 3, 16, 16)
    assert (classes.tolist(), classes.dtype) == ([BALL, CUP], torch.int64)
    assert masks.shape == (2, 16, 16)
    # A column of 8 pixels becomes two of 16; mirrored, the objects stand at the right.
    columns = [mask.any(dim=0).nonzero().flatten().tolist() for mask in masks]
    assert columns in ([[0, 1], [2, 3]], [[14, 15], [12, 13]])


def test_half_of_the_scenes_are_mirrored_with_their_masks() -> None:
    pool = pool_of(*[[BALL]] * 400)
    pool.images[:] = 0
    pool.images[:, :, 0] = 255  # white where the object is
    batch = draw_batch(pool, np.random.default_rng(0), 8, 400)
    for picture, masks in zip(batch["pixel_values"], batch["mask_labels"], strict=True):
        assert ((picture[0] > 0) == (masks[0] > 0.5)).all()
    mirrored = np.mean([bool(masks[0][0, -1] > 0.5) for masks in batch["mask_labels"]])
    assert abs(mirrored - 0.5) < 4 * math.sqrt(0.25 / 400)


def test_pictures_have_the_mean_and_spread_of_imagenet_and_a_little_noise() -> None:
    pool = pool_of([BALL])
    pool.images[:] = 255
    pixels = draw_batch(pool, np.random.default_rng(0), 128, 1)["pixel_values"][0]
    white = [(1 - mean) / std for mean, std in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))]
    torch.testing.assert_close(pixels.mean(dim=(1, 2)), torch.tensor(white), atol=0.005, rtol=0)
    torch.testing.assert_close(
        pixels.std(dim=(1, 2)), torch.tensor([0.01 / std for std in (0.229, 0.224, 0.225)]), atol=0.003, rtol=0
    )


def test_twins_are_drawn_four_times_as_often() -> None:
    # Two objects of one noun, two of two nouns, one alone (its empty rows are no twins).
    pool = pool_of([BALL, BALL], [BALL, CUP], [CUP])
    rng = np.random.default_rng(0)
    drawn = [draw_batch(pool, rng, 8, 1)["class_labels"][0].tolist() for _ in range(400)]
    twins = np.mean([classes == [BALL, BALL] for classes in drawn])
    assert abs(twins - 4 / 6) < 4 * math.sqrt(2 / 9 / 400)
    single = np.mean([classes == [CUP] for classes in drawn])
    assert abs(single - 1 / 6) < 4 * math.sqrt(5 / 36 / 400)


def test_a_scene_is_at_most_once_in_a_batch() -> None:
    nouns = [[noun] for noun in range(10)]
    batch = draw_batch(pool_of(*nouns), np.random.default_rng(0), 8, 10)
    assert sorted(classes.tolist() for classes in batch["class_labels"]) == nouns


# The probe.


def test_targets_of_the_probe_by_hand() -> None:
    masks = [torch.stack([box(0, 2, 0, 4), box(4, 8, 6, 8)]), box(0, 8, 0, 8)[None]]
    target = pixel_targets(masks, [torch.tensor([BALL, CUP]), torch.tensor([CUP])], 8)
    assert target.shape == (2, 3, 8, 8)
    # Rows 0 and 1 lie at -1 and -5/7, columns 0 to 3 at -1 to -1/7; rows 4 to 7 at 1/7 to 1, columns 6 and 7 at 5/7, 1.
    for (row, column), expected in {
        (1, 2): (BALL + 1, -6 / 7, -4 / 7),
        (7, 6): (CUP + 1, 4 / 7, 6 / 7),
        (3, 3): (0, 0, 0),
    }.items():
        assert target[0, :, row, column].tolist() == pytest.approx(expected, abs=1e-6)
    assert (target[0, 0] > 0).sum() == 16
    assert (target[1, 0] == CUP + 1).all()
    assert target[1, 1:].abs().max() < 1e-6


def test_a_cell_that_an_object_half_fills_is_background() -> None:
    target = pixel_targets([box(0, 3, 0, 8)[None]], [torch.tensor([BALL])], 4)
    # Rows of two pixels: the second is half of the object.
    assert target[0, 0].tolist() == [[BALL + 1] * 4, [0] * 4, [0] * 4, [0] * 4]


class Answer(nn.Module):
    """A probe that always gives the same answer."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.answer


def test_the_loss_of_the_probe_by_hand() -> None:
    batch = {"mask_labels": [box(0, 8, 0, 4)[None]], "class_labels": [torch.tensor([BALL])]}
    features = torch.zeros(1, WIDTH, 8, 8)
    answer = torch.zeros(1, len(NOUNS) + 3, 8, 8)
    # All nouns alike: log of their number, whatever the weights. The centre (0, -4/7) is answered by (0, 0): an error
    # of 4/7 at each pixel of the object, and none is counted elsewhere.
    chance = math.log(len(NOUNS) + 1)
    assert pixel_loss(Answer(answer), features, batch).item() == pytest.approx(chance + 4 / 7, rel=1e-5)
    answer[:, -2:, :, 4:] = 9
    assert pixel_loss(Answer(answer), features, batch).item() == pytest.approx(chance + 4 / 7, rel=1e-5)
    answer[:, -1, :, :4] = -4 / 7
    assert pixel_loss(Answer(answer), features, batch).item() == pytest.approx(chance, rel=1e-5)
    answer[:, BALL + 1] = 100  # a ball everywhere: right on half of the pixels, 100 too much on the others
    wrong = 100 * 0.1 / (1 + 0.1)  # of which each weighs a tenth
    assert pixel_loss(Answer(answer), features, batch).item() == pytest.approx(wrong, rel=1e-3)


def test_a_picture_without_objects_has_a_loss() -> None:
    batch = {"mask_labels": [torch.zeros(1, 8, 8)], "class_labels": [torch.tensor([BALL])]}
    answer = torch.ones(1, len(NOUNS) + 3, 8, 8)
    loss = pixel_loss(Answer(answer), torch.zeros(1, WIDTH, 8, 8), batch).item()
    assert loss == pytest.approx(math.log(len(NOUNS) + 1), rel=1e-5)


# The model.


def test_the_model_learns_from_a_batch_and_is_measured_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    model = new_model().train()
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(2.3e6, rel=0.02)
    assert [model.config.id2label[i] for i in range(len(NOUNS))] == list(NOUNS)
    batch = draw_batch(render_pool(2), np.random.default_rng(0), 64, 2)
    outputs = model(**batch)
    assert outputs.masks_queries_logits.shape[:2] == (2, 20)
    probe = nn.Conv2d(WIDTH, len(NOUNS) + 3, 1)
    (outputs.loss + pixel_loss(probe, outputs.pixel_decoder_last_hidden_state, batch)).backward()
    reached = [p.grad is not None and bool(p.grad.any()) for p in model.parameters()]
    assert np.mean(reached) > 0.9
    scores = evaluate(model, 1)
    assert set(scores) >= {"pq", "sq", "rq"}
    assert all(0 <= score <= 1 for score in scores.values())
    assert model.training


def test_the_processor_resizes_every_picture_to_the_last_size() -> None:
    pixels = new_processor()(images=[np.zeros((40, 90, 3), np.uint8)], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, SIZES[-1], SIZES[-1])
