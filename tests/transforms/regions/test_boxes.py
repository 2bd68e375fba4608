"""Boxes with texts: which boxes a phrase or a class has, and what CLIP says of them."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from schemas.errors import RecordError
from schemas.example import Box, Match, Object, Segment
from schemas.masks import Mask
from schemas.rejects import Reason
from tests.datasets import box_mask, example
from transforms.models.clip import Clip, embed_texts, load_clip
from transforms.models.clip_features import embed_crops, embed_phrases, reproject, text_projection
from transforms.models.places import SAMPLE
from transforms.regions.boxes import add_embeddings, ground_classes, ground_phrases


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip(SAMPLE / "clip")


def test_a_phrase_has_a_box_for_each_thing_that_it_names() -> None:
    two = example("k", [("two dogs", (4, 6, 20, 16)), ("a cat", (30, 0, 30, 40))], extra_segments=1)
    two = replace(two, matches=(Match(1, 1, 0.7), Match(0, 0, 0.6, (2,))))
    found = ground_phrases(two).grounded
    assert [(thing.text, thing.spans, thing.bbox, thing.score) for thing in found] == [
        ("two dogs", ((0, 8),), (4, 6, 20, 16), 0.6),
        ("two dogs", ((0, 8),), (0, 0, 2, 2), 0.6),
        ("a cat", ((13, 18),), (30, 0, 30, 40), 0.7),
    ]


def test_detected_boxes_are_cut_to_the_picture() -> None:
    plain = example("k")
    mask = plain.segments[0].mask
    objects = (Object(0, (-3, 40, 80, 30), 0.9, mask),)
    (found,) = ground_phrases(replace(plain, matches=(), objects=objects)).grounded
    assert found.bbox == (0, 40, 64, 8)


def test_classes_name_annotated_things_without_a_caption() -> None:
    plain = example("k")
    stuff = Segment("grass-merged", 1.0, Mask.from_array(box_mask(64, 48, (0, 30, 64, 18))), is_thing=False)
    boxes = (Box("Dog", (1, 2, 30, 40)), Box("Person", (0, 0, 60, 40), is_single=False))
    found = ground_classes(replace(plain, boxes=boxes, segments=(*plain.segments, stuff)))
    assert found.caption == ""
    assert [(thing.text, thing.spans, thing.bbox) for thing in found.grounded] == [
        ("dog", (), (1, 2, 30, 40)),
        ("dog", (), (4, 6, 20, 16)),
    ]


def test_pictures_without_boxes_are_rejected() -> None:
    bare = replace(example("k"), matches=(), segments=())
    with pytest.raises(RecordError) as refused:
        ground_phrases(bare)
    assert refused.value.reason is Reason.NO_MATCH
    with pytest.raises(RecordError) as refused:
        ground_classes(replace(bare, boxes=(Box("Dog", (0, 0, 9, 9), is_single=False),)))
    assert refused.value.reason is Reason.NO_SEGMENT


def test_texts_after_the_projection_are_clip_s_own_and_before_it_their_preimage(clip: Clip) -> None:
    texts = ["a red ball", "a big striped blue cup", ""]
    before, after = embed_phrases(clip, texts)
    np.testing.assert_allclose(after, embed_texts(clip, texts), atol=1e-6)
    projected = before @ text_projection(clip).T
    np.testing.assert_allclose(projected / np.linalg.norm(projected, axis=1, keepdims=True), after, atol=1e-5)
    assert np.linalg.norm(before, axis=1).min() > 2  # not normalised
    assert [array.shape for array in embed_phrases(clip, [])] == [(0, 64), (0, 64)]


def test_crops_are_squashed_to_the_model_s_square(clip: Clip) -> None:
    """As if the box had been resized by itself, whatever its proportions; nothing is cut off its sides."""
    rng = np.random.default_rng(0)
    picture = np.asarray(Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize((90, 60)))
    box = (10, 20, 70, 15)
    square = np.asarray(Image.fromarray(picture[20:35, 10:80]).resize((64, 64), Image.Resampling.BICUBIC))
    found = embed_crops(clip, [picture, square], [[box], [(0, 0, 64, 64)]])
    assert found[0] @ found[1] > 0.999
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    shifted = embed_crops(clip, [picture], [[(25, 20, 40, 15)]])
    assert found[0] @ shifted[0] < 0.999


def test_reprojection_is_the_published_formula() -> None:
    rng = np.random.default_rng(1)
    images, matrix = rng.standard_normal((3, 4), np.float32), rng.standard_normal((4, 6), np.float32)
    images[2] = 0
    rows = reproject(images, matrix, 28.7)
    for image, row in zip(images[:2], rows, strict=False):
        by_hand = np.array([sum(image[i] * matrix[i, j] for i in range(4)) for j in range(6)])
        np.testing.assert_allclose(row, 28.7 * by_hand / np.sqrt((by_hand**2).sum()), rtol=1e-4)
    assert not rows[2].any()


def test_each_box_gets_the_embeddings_of_its_own_text_and_pixels(clip: Clip) -> None:
    first = ground_phrases(example("a", [("a dog", (4, 6, 20, 16)), ("a cat", (30, 0, 30, 40))]))
    second = ground_phrases(example("b", [("a cat", (0, 0, 10, 40))]))
    together = add_embeddings(clip, [first, second], 5.0)
    alone = [add_embeddings(clip, [one_by_one], 5.0)[0] for one_by_one in (first, second)]
    for joint, single in zip(together, alone, strict=True):
        for name, values in joint.embeddings.items():
            np.testing.assert_allclose(values, single.embeddings[name], atol=1e-5)
    texts = together[0].embeddings["text_before"]
    np.testing.assert_allclose(texts[1], together[1].embeddings["text_before"][0], atol=1e-6)
    assert np.abs(texts[0] - texts[1]).max() > 0.01
    lengths = np.linalg.norm(together[0].embeddings["image_reprojected"], axis=1)
    np.testing.assert_allclose(lengths, 5, rtol=1e-4)
