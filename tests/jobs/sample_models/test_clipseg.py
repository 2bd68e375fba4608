import itertools

import numpy as np
import pytest
import torch

from jobs.sample_models.clipseg import (
    PATCH,
    SIDE,
    STORED,
    Pool,
    decode,
    draw_batch,
    draw_phrase,
    draw_window,
    mask_loss,
    new_model,
    new_processor,
    patch_loss,
    render,
    run_vision,
    true_objects,
)
from jobs.sample_models.pools import KINDS

RED, BLUE = (KINDS[1].index(color) for color in ("red", "blue"))
BALL, CUP = (KINDS[0].index(noun) for noun in ("ball", "cup"))
OBJECTS = np.array([[BALL, RED, 0], [CUP, RED, 1], [BALL, BLUE, 0], [255] * 3, [255] * 3], np.uint8)


@pytest.fixture(scope="module")
def pool() -> Pool:
    return Pool(*(np.stack(arrays) for arrays in zip(*map(render, range(6)), strict=True)))


def test_a_phrase_is_true_of_objects_with_all_that_it_states() -> None:
    plain = KINDS[2][0]
    assert true_objects(("ball", None, None), OBJECTS).tolist() == [True, False, True, False, False]
    assert true_objects(("ball", "red", None), OBJECTS).tolist() == [True, False, False, False, False]
    assert true_objects(("cup", "red", plain), OBJECTS).any() == (OBJECTS[1, 2] == 0)
    assert not true_objects((None, None, None), OBJECTS).any()
    assert not true_objects(("cup", "blue", None), OBJECTS).any()


def test_phrases_state_their_own_words_and_most_are_true() -> None:
    drawn = [draw_phrase(np.random.default_rng(seed), OBJECTS) for seed in range(300)]
    for phrase, stated in drawn:
        words = phrase.split()
        assert all(value is None or value in words for value in stated[1:])
        if stated[0] is not None:
            assert stated[0][:3] in phrase
    true = np.mean([true_objects(stated, OBJECTS).any() for _, stated in drawn])
    assert 0.8 < true < 0.95
    assert any(stated[0] is None for _, stated in drawn)


def test_a_window_holds_the_middle_of_an_object_or_is_the_whole() -> None:
    owner = np.zeros((STORED, STORED), np.uint8)
    owner[30:60, 100:120] = 2
    for seed in range(30):
        rows, columns = draw_window(np.random.default_rng(seed), owner, 0)
        assert 0 <= rows.start < 45 < rows.stop <= STORED
        assert 0 <= columns.start < 110 < columns.stop <= STORED
        assert rows.stop - rows.start == columns.stop - columns.start
    whole = slice(0, STORED), slice(0, STORED)
    assert draw_window(np.random.default_rng(0), owner, 1) == whole
    assert draw_window(np.random.default_rng(0), np.zeros_like(owner), 0) == whole


def test_a_batch_shows_what_its_phrases_are_true_of(pool: Pool) -> None:
    batch = draw_batch(pool, np.random.default_rng(0), 4, 3, 0.5)
    assert batch["pixels"].shape == (4, 3, SIDE, SIDE)
    assert len(batch["texts"]) == len(batch["masks"]) == 12
    assert batch["patches"].shape == (4, sum(map(len, KINDS)), SIDE // PATCH, SIDE // PATCH)
    masks, objects = batch["masks"].unflatten(0, (4, 3)), batch["objects"][:, None]
    assert (masks <= objects + 1e-6).all()
    # Each object has one noun, one colour and one texture: the three kinds cover the same share of every patch.
    starts = np.cumsum([0, *map(len, KINDS)])
    covered = [batch["patches"][:, a:b].sum(1) for a, b in itertools.pairwise(starts)]
    torch.testing.assert_close(covered[0], covered[1])
    torch.testing.assert_close(covered[0], covered[2])


def test_right_answers_cost_less_than_wrong_ones() -> None:
    masks = torch.zeros(2, 8, 8)
    masks[:, 2:5, 2:5] = 1
    right, wrong = (masks - 0.5) * 12, (0.5 - masks) * 12
    assert mask_loss(right, masks) < 0.1 < 1 < mask_loss(wrong, masks)
    objects = torch.zeros(1, SIDE, SIDE)
    objects[:, :PATCH, :PATCH] = 1
    patches = torch.zeros(1, sum(map(len, KINDS)), SIDE // PATCH, SIDE // PATCH)
    patches[0, [BALL, len(KINDS[0]) + RED, len(KINDS[0]) + len(KINDS[1])], 0, 0] = 1
    logits = torch.zeros(1, patches.shape[1] + PATCH**2, SIDE // PATCH, SIDE // PATCH)
    chance = sum(np.log(len(names)) for names in KINDS) + 3 * np.log(2)
    batch = {"patches": patches, "objects": objects}
    assert patch_loss(logits, batch).item() == pytest.approx(chance, rel=1e-5)
    logits[:, : patches.shape[1]] = 20 * patches
    logits[:, patches.shape[1] :] = 40 * (torch.nn.functional.pixel_unshuffle(objects[:, None], PATCH) - 0.5)
    assert patch_loss(logits, batch).item() < 1e-3


def test_gradients_reach_every_part(pool: Pool) -> None:
    torch.manual_seed(0)
    model, processor = new_model(), new_processor()
    batch = draw_batch(pool, np.random.default_rng(1), 2, 2, 0.5)
    states, features = run_vision(model, batch["pixels"])
    logits = decode(model, processor, batch["texts"], states)
    assert logits.shape == (4, SIDE, SIDE)
    assert logits.abs().max() < 20  # larger ones do not survive the first steps
    (mask_loss(logits, batch["masks"]) + features.square().mean()).backward()
    for part in (model.decoder, model.clip.text_model, model.clip.vision_model):
        reached = [parameter.grad is not None and bool(parameter.grad.any()) for parameter in part.parameters()]
        assert np.mean(reached) > 0.9
