from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.sample_models.metrics import intersection_over_union
from schemas.errors import ModelError, RecordError
from schemas.example import Example, Segment
from schemas.rejects import Reason, Reject
from tests.beam import apply
from tests.examples import make_example, segment
from tests.pictures import encode
from transforms.batch import Batch
from transforms.models.presets import PRESETS
from transforms.models.segmenter import Segmenter, claimed_pixels, load_segmenter, segment_images
from transforms.regions.segment import SegmentPictures, keep_segments
from transforms.scenes import Scene, make_scene
from transforms.scenes.paint import paint_background

SAMPLE = str(PRESETS["sample"].segmenter)


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return load_segmenter(SAMPLE)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(np.random.default_rng([5, i]), size) for i, size in enumerate((256, 200, 256, 320))]


def test_segments_are_the_objects_apart_from_each_other(segmenter: Segmenter, scenes: list[Scene]) -> None:
    found = segment_images(segmenter, [scene.image for scene in scenes])
    right = 0
    for scene, segments in zip(scenes, found, strict=True):
        masks = [region.mask.to_array() for region in segments]
        assert np.sum(masks, axis=0).max() == 1
        for thing in scene.objects:
            right += any(
                region.label == thing.noun and intersection_over_union(mask, thing.mask) > 0.7
                for region, mask in zip(segments, masks, strict=True)
            )
    assert right >= 0.7 * sum(len(scene.objects) for scene in scenes)


def test_in_bf16_the_segments_stay(segmenter: Segmenter, scenes: list[Scene]) -> None:
    images = [scene.image for scene in scenes]
    found = segment_images(load_segmenter(SAMPLE, "bf16"), images)
    for own, expected in zip(found, segment_images(segmenter, images), strict=True):
        assert [region.label for region in own] == [region.label for region in expected]
        for region, other in zip(own, expected, strict=True):
            assert intersection_over_union(region.mask.to_array(), other.mask.to_array()) > 0.95
            assert abs(region.score - other.score) < 0.05


def test_a_picture_is_segmented_the_same_alone_and_among_others(segmenter: Segmenter, scenes: list[Scene]) -> None:
    wide = scenes[0].image[:120]
    together = segment_images(segmenter, [scenes[1].image, wide, scenes[2].image])
    (alone,) = segment_images(segmenter, [wide])
    assert [region.label for region in together[1]] == [region.label for region in alone]
    assert {region.mask.size for region in together[1]} == {(120, 256)}
    for region, other in zip(together[1], alone, strict=True):
        assert intersection_over_union(region.mask.to_array(), other.mask.to_array()) > 0.999


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (1, 7), (40, 3)])
def test_a_sliver_of_a_picture_is_not_taken_for_channels(segmenter: Segmenter, size: tuple[int, int]) -> None:
    (segments,) = segment_images(segmenter, [np.full((*size, 3), 90, np.uint8)])
    assert {segment.mask.size for segment in segments} <= {size}


def test_a_picture_without_objects_has_no_segments(segmenter: Segmenter) -> None:
    background = paint_background(np.random.default_rng(1), 256, 256).astype(np.uint8)
    assert segment_images(segmenter, [background]) == [()]


def test_a_pixel_is_claimed_only_by_a_query_whose_mask_holds_it() -> None:
    # Query 0: the left half. Query 1: nowhere, but the surer one.
    scores = torch.tensor([0.6, 0.99])
    left = torch.tensor([[4.0, 4, -4, -4]]).expand(2, 4)
    masks = torch.stack([left, torch.full((2, 4), -3.0)])
    assert claimed_pixels(masks, scores, (2, 4)).tolist() == [[True, True, False, False]] * 2
    assert claimed_pixels(masks, scores, (4, 8)).sum() == 4 * 4
    assert not claimed_pixels(masks[1:], scores[1:], (2, 4)).any()


def test_small_segments_are_left_out() -> None:
    example = make_example(size=(100, 10))
    kept = keep_segments(example, [segment("a", 9), segment("b", 10), segment("c", 500)], min_area=0.01)
    assert [region.label for region in kept.segments] == ["b", "c"]


def test_small_segments_of_a_class_that_is_large_together_may_stay() -> None:
    example = make_example(size=(100, 10))
    found = [segment("a", 6), segment("a", 4), segment("b", 9), segment("a", 0), segment("c", 500)]
    regions = keep_segments(example, found, min_area=0.01, join_plurals=True).segments
    assert [region.label for region in regions] == ["a", "a", "c"]
    assert [s.label for s in keep_segments(example, found, min_area=0.01).segments] == ["c"]


def test_an_empty_segment_is_left_out_whatever_the_bound() -> None:
    kept = keep_segments(make_example(size=(100, 10)), [segment("a", 0), segment("b", 1)], min_area=0.0)
    assert [region.label for region in kept.segments] == ["b"]


@pytest.mark.parametrize(
    ("found", "detail"),
    [
        ((), "^no-segment: none found$"),
        ((segment("a", 1),), r"^no-segment: 1 found, all smaller than 1\.00% of the pic"),
    ],
)
def test_nothing_left_is_a_reject(found: tuple[Segment, ...], detail: str) -> None:
    with pytest.raises(RecordError, match=detail) as caught:
        keep_segments(make_example(size=(100, 10)), found, min_area=0.01)
    assert caught.value.reason == Reason.NO_SEGMENT


def test_annotated_examples_need_no_model() -> None:
    good = replace(make_example("good", size=(100, 10)), segments=(segment("dog", 50),))
    bare = make_example("bare", size=(100, 10))
    speck = replace(make_example("speck", size=(100, 10)), segments=(segment("dog", 9),))
    (batch,) = apply(SegmentPictures(None, 0.01), [Batch(2, (good, bare, speck))])
    assert batch.records[0] == good
    rejects = batch.records[1:]
    assert all(isinstance(reject, Reject) for reject in rejects)
    assert [(reject.key, reject.stage, reject.reason) for reject in rejects if isinstance(reject, Reject)] == [
        ("bare", "segments", Reason.NO_SEGMENT),
        ("speck", "segments", Reason.NO_SEGMENT),
    ]
    (batch,) = apply(SegmentPictures(None), [Batch(2, (speck,))])
    assert batch.records == (speck,)  # without a bound all stay


def test_the_transform_runs_the_model(scenes: list[Scene]) -> None:
    # Decoded pixels do not travel, so the pictures must be in the examples' bytes.
    examples = [
        replace(make_example(key, size=scene.image.shape[1::-1]), image=encode(scene.image, "JPEG", quality=95))
        for key, scene in zip("abc", scenes, strict=False)
    ]
    (batch,) = apply(SegmentPictures(SAMPLE), [Batch(1, tuple(examples))])
    assert batch.shard == 1
    assert [record.key for record in batch.records] == ["a", "b", "c"]
    assert [stage for stage, _ in batch.seconds] == ["segments"]
    for record, scene in zip(batch.records, scenes, strict=False):
        assert isinstance(record, Example)
        assert {region.label for region in record.segments} & {thing.noun for thing in scene.objects}
        assert {region.mask.size for region in record.segments} == {scene.image.shape[:2]}


def test_a_missing_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no segmenter .*missing: .* Give --model segmenter=FOLDER"):
        load_segmenter(tmp_path / "missing")
