"""The measures of drawn pictures, on true scenes and on numbers worked by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import text_to_image
from benchmarks.text_to_image import (
    contact_sheet,
    found_colors,
    frechet_distance,
    held_out_scenes,
    named_colors,
    obeyed,
    score,
)
from jobs.sample_models.text_to_image import halve
from transforms.scenes import Scene, SceneObject
from transforms.scenes.paint import COLORS

EMPTY = np.zeros((4, 4), np.uint8)


def scene_of(caption: str, *things: tuple[str, str]) -> Scene:
    """A scene without a picture: each of `things` is a phrase of the caption and its colour; nouns end phrases."""
    objects = []
    for phrase, color in things:
        start = caption.index(phrase)
        span = (start, start + len(phrase))
        objects.append(SceneObject(phrase.split()[-1], color, "plain", EMPTY, span))
    return Scene(np.zeros((4, 4, 3), np.uint8), caption, tuple(objects), ())


def test_a_colour_is_found_on_a_hundredth_of_the_pixels() -> None:
    picture = np.full((20, 20, 3), 128, np.uint8)
    assert found_colors(picture) == set()
    picture[0, :3] = COLORS["red"]
    assert found_colors(picture) == set()
    picture[0, 3] = np.add(COLORS["red"], [20, 30, 40])  # a fourth pixel of 400, 54 away
    picture[5, :10] = COLORS["blue"]
    assert found_colors(picture) == {"red", "blue"}


def test_scores_of_true_pictures_are_the_best_and_those_of_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = held_out_scenes(16)
    assert {len(scene.objects) for scene in scenes} == {1, 2}

    def truth(_: object, pictures: Any) -> list[dict[str, Any]]:  # noqa: ANN401
        shown = []
        for picture in pictures:
            scene = next(scene for scene in scenes if np.array_equal(halve(scene.image), picture))
            shown.append({thing.noun: np.argwhere(thing.mask)[:, ::-1].mean(0) for thing in scene.objects})
        return shown

    monkeypatch.setattr(text_to_image, "find_centers", truth)
    pictures = np.stack([halve(scene.image) for scene in scenes])
    segmenter: Any = None
    right = score(scenes, pictures, segmenter)
    assert right.color > 0.95
    assert right.wrong_color < 0.05
    assert (right.noun, right.relation) == (1, 1)
    wrong = score(scenes, np.roll(pictures, 1, axis=0), segmenter)
    assert wrong.color < 0.4
    assert wrong.noun < 0.4
    assert wrong.relation < 0.5


@pytest.mark.parametrize(
    ("words", "expected"),
    [("to the left of", True), ("to the right of", False), ("above", False), ("below", True)],
)
def test_relations_by_hand(words: str, expected: bool) -> None:
    scene = scene_of(f"a red ball {words} a cup", ("a cup", "blue"), ("a red ball", "red"))
    ball, cup = np.array([10.0, 30.0]), np.array([40.0, 20.0])  # x, y: the ball is further left and further down
    assert obeyed(scene, {"ball": ball, "cup": cup}) == [expected]
    assert obeyed(scene, {"ball": cup, "cup": ball}) == [not expected]
    assert obeyed(scene, {"ball": ball}) == [False]


def test_only_what_the_caption_says_is_asked_for() -> None:
    scene = scene_of("a red ball next to a cup", ("a red ball", "red"), ("a cup", "blue"))
    assert named_colors(scene) == {"red"}
    assert obeyed(scene, {}) == []
    assert obeyed(scene_of("a red ball above a blue ball", ("a red ball", "red"), ("a blue ball", "blue")), {}) == []


def test_frechet_distance_by_hand() -> None:
    # Four points of variance 1 (with 3 in the denominator) along each axis, without correlation.
    points = np.sqrt(1.5) * np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    assert frechet_distance(points, points) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(points, np.add(points, [3, 4])) == pytest.approx(25)
    # Standard deviations 1 and 3 along each of two axes.
    assert frechet_distance(points, 3 * points) == pytest.approx(2 * (3 - 1) ** 2)


def test_a_contact_sheet_shows_every_picture(tmp_path: Path) -> None:
    pictures = np.zeros((7, 64, 64, 3), np.uint8)
    pictures[6] = 200
    contact_sheet([f"picture {i}" for i in range(7)], pictures, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * (192 + 40), 6 * 192, 3)
    assert (sheet[232 : 232 + 192, :192] == 200).all()
