import numpy as np
import pytest

from schemas.images import decode_grey, decode_image
from schemas.samples import blip_diffusion, fastcomposer, mip_adapter
from transforms.scenes import Scene, SceneObject, make_scene
from transforms.scenes.truth import named_alone, true_example


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(np.random.default_rng([12, i]), 96) for i in range(12)]


def square(noun: str, corner: int, side: int, phrase: tuple[int, int] | None) -> SceneObject:
    """An object of `side` x `side` pixels in a picture of 20 x 20; its outermost pixels are half covered."""
    alpha = np.zeros((20, 20), np.uint8)
    alpha[corner : corner + side, corner : corner + side] = 100
    alpha[corner + 1 : corner + side - 1, corner + 1 : corner + side - 1] = 255
    return SceneObject(noun, "red", "plain", alpha, phrase)


CAPTION = "a ball and two cups"
SCENE = Scene(
    np.full((20, 20, 3), 200, np.uint8),
    CAPTION,
    (
        square("cup", 0, 4, (11, 19)),
        square("cup", 5, 4, (11, 19)),
        square("ball", 9, 5, (0, 6)),
        square("key", 13, 6, None),
    ),
    (),
)


def test_an_example_by_hand() -> None:
    example = true_example(SCENE, "k", np.zeros((20, 20, 3), np.uint8))
    assert named_alone(SCENE) == [SCENE.objects[2]]
    (phrase,), (segment,), (match,), (thing,) = example.phrases, example.segments, example.matches, example.objects
    assert (phrase.text, phrase.start, phrase.end, phrase.root, phrase.origin) == ("a ball", 0, 6, "ball", (0, 6))
    assert (segment.label, segment.bbox, segment.area) == ("ball", (10, 10, 3, 3), 9)
    assert (match.phrase, match.segment) == (0, 0)
    assert (thing.phrase, thing.bbox, thing.mask) == (0, segment.bbox, segment.mask)
    assert example.subject is not None
    assert example.subject.text == "key"
    assert example.subject.mask is not None
    assert example.subject.mask.bbox == (14, 14, 4, 4)
    trimap = decode_grey(example.trimap)
    assert [(trimap == value).sum() for value in (0, 128, 255)] == [400 - 36, 20, 16]
    composite = decode_image(example.composite).astype(int)
    assert np.abs(composite[15:17, 15:17] - 200).max() < 12
    assert composite[:8, :8].max() < 12


def test_every_recipe_stores_scenes_with_their_truth(scenes: list[Scene]) -> None:
    stored = 0
    for index, scene in enumerate(scenes):
        example = true_example(scene, f"{index}", np.zeros_like(scene.image))
        assert blip_diffusion.FORMAT.pack(example)[0].members["json"]
        if example.matches:
            stored += 1
            assert len(fastcomposer.Record.from_example(example).subjects) == len(example.matches)
            assert len(mip_adapter.Record.from_example(example).objects) == len(example.objects)
    assert stored > 6


def test_masks_are_those_of_the_objects_that_the_phrases_name(scenes: list[Scene]) -> None:
    for scene in scenes:
        example = true_example(scene, "k")
        by_span = {thing.phrase: thing for thing in scene.objects}
        for phrase, segment in zip(example.phrases, example.segments, strict=True):
            thing = by_span[phrase.start, phrase.end]
            assert phrase.text == scene.caption[phrase.start : phrase.end]
            assert (segment.mask.to_array() == thing.mask).all()
            assert sum(other.phrase == thing.phrase for other in scene.objects) == 1
        assert example.composite == b""
        assert np.abs(example.pixels().astype(int) - scene.image).mean() < 3
