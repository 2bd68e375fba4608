"""When a picture may be shown mirrored, and that what is drawn about it is mirrored too."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from jobs.scenes import scene_of
from schemas.example import Example
from schemas.samples import FORMATS
from training.geometry import draw_mirrored
from training.recipes import training_of
from training.shards import Batch, make_batch, to_floats
from transforms.models.places import SAMPLE
from transforms.scenes.truth import true_example

DRAWS = 200


def drawn_mirrored(caption: str, count: int = DRAWS) -> float:
    rng = np.random.default_rng(0)
    return float(np.mean([draw_mirrored(caption, rng) for _ in range(count)]))


@pytest.mark.parametrize(
    "caption",
    [
        "a red ball to the left of a cup",
        "Left: a cat. A dog is next to it",
        "the RIGHT-hand door is open",
        "the leftmost of three cups",
        "a man leans rightwards",
        "a left-handed guitar",
        "cars drive counterclockwise around a square",
        "a dial that is turned counter-clockwise",
        "a stop sign beside a road",
        'a shirt with the word "peace"',
        "a wall clock in a station",
        "a bottle whose label is torn",
        "a T-shirt that says hello",
        "an old handwritten note",
    ],
)
def test_a_picture_whose_caption_names_a_side_or_writing_is_never_mirrored(caption: str) -> None:
    assert drawn_mirrored(caption) == 0


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a bright upright lamp above a cup",
        "leftovers in a box",  # of no side
        "a woman designs a poncho",
        "context matters little to a copyrighted swordfish",
        "a house in the east of the city",  # which no picture shows
    ],
)
def test_other_pictures_are_mirrored_half_of_the_time(caption: str) -> None:
    assert drawn_mirrored(caption) == pytest.approx(0.5, abs=0.12)


@cache
def scenes() -> tuple[list[Example], list[Example]]:
    """Scenes with two named objects: those whose caption says which stands to the left, and the others."""
    examples = [true_example(scene_of(3, index, 96), f"{index:06d}") for index in range(60)]
    pairs = [example for example in examples if len(example.matches) == 2]
    sided = [example for example in pairs if " left " in example.caption or " right " in example.caption]
    assert sided
    return sided, [example for example in pairs if example not in sided]


@cache
def tools_of(recipe: str) -> Any:  # noqa: ANN401 - each recipe's own
    training, captions = training_of(recipe), [example.caption for group in scenes() for example in group]
    return training.model(training.small(SAMPLE / "text_to_image", captions, 0), None).tools


def views(recipe: str, example: Example, epochs: range, **fields: Any) -> Batch:  # noqa: ANN401 - of the config
    training = training_of(recipe)
    config = training.config(resolution=32, reference=16).plain().model_copy(update=fields)
    raw = {"__key__": example.key, **FORMATS[recipe].pack(example)[0].members}
    return to_floats(make_batch([(epoch, raw) for epoch in epochs], training.view, tools_of(recipe), config))


@pytest.mark.parametrize("recipe", ["fastcomposer", "captioned"])
def test_no_scene_is_shown_against_its_caption(recipe: str) -> None:
    sided, others = scenes()
    for example, expected, draws in ((sided[0], 0.0, DRAWS), (others[0], 0.5, DRAWS // 2)):
        plain = views(recipe, example, range(1))["pixel_values"]
        shown = views(recipe, example, range(draws), mirror=True)["pixel_values"]
        mirrored = (shown == plain.flip(-1)).flatten(1).all(1)
        assert torch.equal(shown[~mirrored], plain.expand_as(shown[~mirrored]))
        assert mirrored.float().mean().item() == pytest.approx(expected, abs=0.15 if expected else 0)


def test_the_subjects_of_a_scene_stand_as_its_caption_says() -> None:
    sided, _ = scenes()
    for example in sided:
        batch = views("fastcomposer", example, range(8), mirror=True)
        weights = batch["subject_segmentation"].sum(2)  # of each column
        centres = (weights * torch.arange(32)).sum(2) / weights.sum(2)
        first_is_left = " left " in example.caption
        assert batch["num_subjects"].tolist() == [2] * 8
        assert ((centres[:, 0] < centres[:, 1]) == first_is_left).all()


def test_a_mirrored_scene_has_mirrored_masks() -> None:
    _, others = scenes()
    for example in others[:4]:
        plain, drawn = views("fastcomposer", example, range(1)), views("fastcomposer", example, range(8), mirror=True)
        for picture, masks in zip(drawn["pixel_values"], drawn["subject_segmentation"], strict=True):
            mirrored = torch.equal(picture, plain["pixel_values"][0].flip(-1))
            expected = plain["subject_segmentation"][0]
            assert torch.equal(masks, expected.flip(-1) if mirrored else expected)


@pytest.mark.parametrize("mirror", [False, True])
def test_mirroring_and_the_augmentation_of_references_are_separate(mirror: bool) -> None:
    _, others = scenes()
    example = others[0]
    plain = views("fastcomposer", example, range(1))
    batch = views("fastcomposer", example, range(12), mirror=mirror, augment=not mirror)
    moved = [not torch.equal(picture, plain["pixel_values"][0]) for picture in batch["pixel_values"]]
    assert any(moved) == mirror
    lightness = batch["subject_pixel_values"][:, 0].mean((1, 2, 3)).std().item()
    assert (lightness < 0.02) == mirror
