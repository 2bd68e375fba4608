import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.scenes import Scene, make_scene
from transforms.scenes.grammar import Group, describe
from transforms.scenes.paint import COLORS, TEXTURES, paint_background
from transforms.scenes.shapes import NOUNS, draw_silhouette


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(np.random.default_rng([11, i]), 128) for i in range(80)]


def test_a_scene_is_a_function_of_its_generator() -> None:
    one, other = (make_scene(np.random.default_rng(5), 96) for _ in range(2))
    assert one.caption == other.caption
    assert one.image.tobytes() == other.image.tobytes()
    assert make_scene(np.random.default_rng(6), 96).image.tobytes() != one.image.tobytes()


def test_visible_parts_share_no_pixel(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert np.sum([thing.mask for thing in scene.objects], axis=0).max() <= 1
        # Visible alphas are shares of a pixel: each rounds by at most half a step.
        total = np.sum([thing.alpha.astype(int) for thing in scene.objects], axis=0)
        assert total.max() <= 255 + len(scene.objects)


def test_between_one_and_five_objects_each_to_be_seen(scenes: list[Scene]) -> None:
    counts = {len(scene.objects) for scene in scenes}
    assert counts == {1, 2, 3, 4, 5}
    assert min(thing.mask.sum() for scene in scenes for thing in scene.objects) > 20


def test_at_most_three_objects_are_larger(scenes: list[Scene]) -> None:
    few = [make_scene(np.random.default_rng([11, i]), 128, (2, 3), omitted=0) for i in range(40)]
    assert {len(scene.objects) for scene in few} == {2, 3}
    assert all(thing.phrase for scene in few for thing in scene.objects)
    # Sides lie between 0.3 and 0.6 of the picture's in place of 0.2 and 0.5: areas are 2 times as large on average.
    areas = [np.mean([thing.mask.sum() for scene in group for thing in scene.objects]) for group in (scenes, few)]
    assert 1.5 < areas[1] / areas[0] < 2.8


def test_phrases_tell_the_truth(scenes: list[Scene]) -> None:
    for scene in scenes:
        for thing in scene.objects:
            if thing.phrase is None:
                continue
            words = scene.caption[slice(*thing.phrase)].lower().split()
            assert words[-1] in {thing.noun, thing.noun + "s", thing.noun + "es"}
            assert set(words) & set(COLORS) <= {thing.color}
            assert set(words) & set(TEXTURES) <= {thing.texture}


def test_no_phrase_names_an_object_that_is_not_its_own(scenes: list[Scene]) -> None:
    for scene in scenes:
        spans = {thing.phrase for thing in scene.objects} - {None}
        for span in spans:
            assert span is not None
            words = set(scene.caption[slice(*span)].lower().split())
            for thing in scene.objects:
                fits = thing.noun in words and not (words & set(COLORS)) - {thing.color}
                assert not fits or thing.phrase == span


def test_numbers_count_the_objects(scenes: list[Scene]) -> None:
    numbers = {"two": 2, "three": 3}
    counted = 0
    for scene in scenes:
        for span in {thing.phrase for thing in scene.objects if thing.phrase}:
            first = scene.caption[slice(*span)].split()[0].lower()
            counted += first in numbers
            assert sum(thing.phrase == span for thing in scene.objects) == numbers.get(first, 1)
    assert counted > 3


def test_some_objects_are_left_out_and_some_phrases_show_nothing(scenes: list[Scene]) -> None:
    assert any(thing.phrase is None for scene in scenes for thing in scene.objects)
    assert any(span.group is None for scene in scenes for span in scene.phrases)
    assert all(any(thing.phrase for thing in scene.objects) for scene in scenes)


@pytest.mark.parametrize("noun", NOUNS)
def test_silhouettes_are_drawn_to_size(noun: str) -> None:
    alpha = draw_silhouette(noun, 100, angle=0, mirrored=False, softness=0)
    assert 70 <= max(alpha.shape) <= 108
    assert alpha.max() == 255
    assert ((alpha > 0) & (alpha < 255)).any()  # soft edges


def test_a_ball_has_the_area_of_a_circle() -> None:
    alpha = draw_silhouette("ball", 100, angle=0, mirrored=False, softness=0)
    assert alpha.sum() / 255 == pytest.approx(np.pi * 50**2, rel=0.01)


@settings(max_examples=30)
@given(st.sampled_from(NOUNS), st.sampled_from(tuple(COLORS)), st.sampled_from(TEXTURES), st.integers(0, 2**32))
def test_the_article_fits(noun: str, color: str, texture: str, seed: int) -> None:
    group = Group(noun, color, texture, 1, (0.5, 0.5), 0.4)
    article, following, *_ = describe(np.random.default_rng(seed), group, needs_color=False).split()
    assert article == ("an" if following[0] in "aeiou" else "a")


@pytest.mark.parametrize("seed", range(12))
def test_backgrounds_are_muted_and_textured(seed: int) -> None:
    background = paint_background(np.random.default_rng(seed), 64, 48)
    assert background.shape == (64, 48, 3)
    assert background.min() >= 0
    assert background.max() <= 255
    assert np.ptp(background, axis=2).max() < 80  # grey enough: a pure colour has 255
    assert background.std(axis=(0, 1)).min() > 2
