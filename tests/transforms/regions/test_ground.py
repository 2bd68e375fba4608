from dataclasses import replace
from pathlib import Path

import numpy as np

from schemas.example import Example, Match, Segment
from schemas.masks import BBox, Mask
from tests.beam import apply
from tests.examples import make_example, phrase
from tests.grounding import write_detector
from tests.transforms.models.test_sam import SHAPE
from transforms.batch import Batch
from transforms.models.detector import Detections
from transforms.models.sam import new_sam, save_sam
from transforms.regions.ground import GroundPhrases, TakeMatches, choose_boxes, objects_of_matches


def detections(scores: list[list[float]], corners: list[tuple[float, float, float, float]]) -> Detections:
    return Detections(np.array(corners, np.float32), np.array(scores, np.float32))


def test_each_phrase_takes_its_best_box_and_no_box_serves_two() -> None:
    found = detections([[0.9, 0.5, 0.1], [0.8, 0.6, 0.1], [0.2, 0.2, 0.2]], [(0, 0, 5, 5), (5, 5, 9, 9), (1, 1, 2, 2)])
    assert [(p, box) for p, box, _ in choose_boxes(found, 0.25)] == [(0, (0, 0, 5, 5)), (1, (5, 5, 4, 4))]


def test_boxes_hold_every_pixel_that_their_corners_touch_and_none_is_empty() -> None:
    found = detections([[0.5, 0.9]], [(1.2, 2.7, 4.1, 5.0), (3.0, 3.0, 3.0, 8.0)])
    assert choose_boxes(found, 0.25) == [(0, (1, 2, 4, 3), 0.5)]


def framed(box: BBox, size: tuple[int, int] = (48, 64)) -> Mask:
    pixels = np.zeros(size, bool)
    pixels[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = True
    return Mask.from_array(pixels)


def captioned() -> Example:
    caption = "a red ball and a cup"
    example = make_example("one", caption, (64, 48))
    return replace(example, phrases=(phrase("a red ball"), phrase("a cup", start=15)))


def test_matched_segments_become_objects_in_their_own_boxes() -> None:
    example = captioned()
    size = (example.height, example.width)
    masks = [framed((1, 2, 10, 12), size), framed((20, 5, 8, 9), size)]
    example = replace(
        example,
        segments=tuple(Segment("", 0.9, mask) for mask in masks),
        matches=(Match(0, 1, 0.7), Match(1, 0, 1.3)),
    )
    objects = objects_of_matches(example).objects
    assert [(one.phrase, one.bbox, one.score) for one in objects] == [(0, (20, 5, 8, 9), 0.7), (1, (1, 2, 10, 12), 1.0)]
    batches = apply(TakeMatches(), [Batch(0, (example,))])
    assert batches[0].records[0].objects == objects


def test_detected_boxes_are_filled_by_sam_or_by_the_source_s_own_masks(tmp_path: Path) -> None:
    write_detector(tmp_path / "detector")
    save_sam(new_sam(SHAPE), SHAPE, tmp_path / "sam")
    example = captioned()
    ground = GroundPhrases(str(tmp_path / "detector"), str(tmp_path / "sam"), 0.0)
    (batch,) = apply(ground, [Batch(0, (example,))])
    (found,) = batch.records
    assert isinstance(found, Example)
    for one in found.objects:
        x, y, w, h = one.bbox
        assert 0 <= x < x + w <= example.width
        assert 0 <= y < y + h <= example.height
        assert one.mask.size == (example.height, example.width)
    size = (example.height, example.width)
    frames = [one.bbox for one in found.objects]
    assert frames
    own = replace(example, segments=tuple(Segment("", 1.0, framed(box, size)) for box in frames))
    # No SAM is there to be loaded: it is not needed.
    (batch,) = apply(GroundPhrases(str(tmp_path / "detector"), "nowhere", 0.0), [Batch(0, (own,))])
    (filled,) = batch.records
    assert isinstance(filled, Example)
    assert [one.mask for one in filled.objects][: len(frames)] == [framed(box, size) for box in frames]
    far = replace(example, segments=(Segment("", 1.0, framed((0, 0, 1, 1), size)),))
    (batch,) = apply(GroundPhrases(str(tmp_path / "detector"), "nowhere", 0.0), [Batch(0, (far,))])
    assert isinstance(batch.records[0], Example)
    assert batch.records[0].objects == ()
