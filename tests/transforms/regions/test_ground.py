from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from segment_anything.modeling import Sam

from schemas.example import Example, Match, Object, Segment
from schemas.masks import BBox, Mask
from tests.beam import apply
from tests.examples import make_example, phrase
from tests.grounding import write_detector
from tests.transforms.models.test_sam import SHAPE
from transforms.batch import Batch
from transforms.models import detector as detectors
from transforms.models import sam as sams
from transforms.models.detector import Detections
from transforms.models.sam import new_sam, save_sam
from transforms.regions.ground import GroundPhrases, TakeMatches, add_objects, choose_boxes, objects_of_matches


def detections(scores: list[list[float]], corners: list[tuple[float, float, float, float]]) -> Detections:
    return Detections(np.array(corners, np.float32), np.array(scores, np.float32))


def test_each_phrase_takes_its_best_box_and_no_box_serves_two() -> None:
    found = detections([[0.9, 0.5, 0.1], [0.8, 0.6, 0.1], [0.2, 0.2, 0.2]], [(0, 0, 5, 5), (5, 5, 9, 9), (1, 1, 2, 2)])
    assert [(p, box) for p, box, _ in choose_boxes(found, 0.25)] == [(0, (0, 0, 5, 5)), (1, (5, 5, 4, 4))]


def test_boxes_hold_every_pixel_that_their_corners_touch_and_none_is_empty() -> None:
    found = detections([[0.5, 0.9]], [(1.2, 2.7, 4.1, 5.3), (3.0, 3.0, 3.0, 8.0)])
    assert choose_boxes(found, 0.25) == [(0, (1, 2, 4, 4), 0.5)]


def test_a_box_of_no_width_or_no_height_is_none_and_a_score_at_the_threshold_counts() -> None:
    flat = [(3.0, 3.0, 3.0, 8.0), (3.0, 3.0, 8.0, 3.0), (0.0, 0.0, 1.0, 1.0)]
    assert choose_boxes(detections([[0.9, 0.8, 0.25]], flat), 0.25) == [(0, (0, 0, 1, 1), 0.25)]
    assert choose_boxes(detections([[0.9, 0.8, 0.24]], flat), 0.25) == []


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
        matches=(Match(0, 1, 0.7), Match(1, 0, 1.3), Match(1, 0, -0.2)),
    )
    objects = objects_of_matches(example).objects
    assert [(grounded.phrase, grounded.bbox, grounded.score) for grounded in objects] == [
        (0, (20, 5, 8, 9), 0.7),
        (1, (1, 2, 10, 12), 1.0),
        (1, (1, 2, 10, 12), 0.0),
    ]
    assert [grounded.mask for grounded in objects] == [masks[1], masks[0], masks[0]]
    batches = apply(TakeMatches(), [Batch(0, (example,))])
    assert batches[0].records[0].objects == objects
    assert [stage for stage, _ in batches[0].seconds] == ["grounding"]


def no_sam() -> Sam:
    raise AssertionError("SAM is not needed")


def test_a_box_takes_the_mask_whose_own_box_is_most_like_it(monkeypatch: pytest.MonkeyPatch) -> None:
    example = captioned()
    near, nearer, other = framed((0, 0, 7, 10)), framed((0, 0, 8, 10)), framed((30, 0, 69 - 30, 10))
    example = replace(example, segments=tuple(Segment("", 1.0, mask) for mask in (near, nearer, other)))
    found = detections([[0.61234567, 0.1], [0.1, 0.5]], [(0, 0, 10, 10), (30, 0, 64, 48)])
    monkeypatch.setattr(detectors, "detect_phrases", lambda *_: [found])
    (grounded,) = add_objects(None, no_sam, [example], 0.25)  # type: ignore[arg-type]
    assert grounded.objects == (Object(0, (0, 0, 10, 10), 0.6123, nearer),)  # the cup's box is like no mask's


@pytest.mark.parametrize(("width", "taken"), [(7, True), (6, False)])
def test_a_mask_fills_a_box_from_an_iou_of_seven_tenths_on(
    width: int, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = replace(captioned(), segments=(Segment("", 1.0, framed((0, 0, width, 10))),))
    monkeypatch.setattr(detectors, "detect_phrases", lambda *_: [detections([[0.9], [0.1]], [(0, 0, 10, 10)])])
    (grounded,) = add_objects(None, no_sam, [example], 0.25)  # type: ignore[arg-type]
    assert len(grounded.objects) == taken


def test_sam_is_asked_once_for_the_boxes_of_pictures_without_masks_and_an_empty_answer_is_no_object(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    example = captioned()
    dot, empty = framed((4, 4, 2, 2)), framed((0, 0, 0, 0))
    filled = replace(example, segments=(Segment("", 1.0, framed((0, 0, 9, 9))),))
    asked = []

    def segment_boxes(sam: object, pictures: list[NDArray[np.uint8]], boxes: list[list[BBox]]) -> list[list[Mask]]:
        asked.append((sam, [picture.shape for picture in pictures], boxes))
        return [[dot, empty], [dot]]

    first = detections([[0.9, 0.1], [0.1, 0.8]], [(0, 0, 10, 10), (30, 0, 60, 40)])
    alone = detections([[0.7], [0.1]], [(0, 0, 9, 9)])
    nothing = detections([[0.1], [0.1]], [(0, 0, 9, 9)])
    monkeypatch.setattr(detectors, "detect_phrases", lambda *_: [first, nothing, alone, alone])
    monkeypatch.setattr(sams, "segment_boxes", segment_boxes)
    grounded = add_objects(None, lambda: "SAM", [example, example, filled, example], 0.25)  # type: ignore[arg-type]
    assert [record.objects for record in grounded] == [
        (Object(0, (0, 0, 10, 10), 0.9, dot),),
        (),
        (Object(0, (0, 0, 9, 9), 0.7, filled.segments[0].mask),),
        (Object(0, (0, 0, 9, 9), 0.7, dot),),
    ]
    # Neither for the picture without boxes, nor for the one with masks of its own.
    assert asked == [("SAM", [(48, 64, 3)] * 2, [[(0, 0, 10, 10), (30, 0, 30, 40)], [(0, 0, 9, 9)]])]


def test_detected_boxes_are_filled_by_sam_or_by_the_source_s_own_masks(tmp_path: Path) -> None:
    write_detector(tmp_path / "detector")
    save_sam(new_sam(SHAPE), SHAPE, tmp_path / "sam")
    example = captioned()
    grounding = GroundPhrases(str(tmp_path / "detector"), str(tmp_path / "sam"), 0.0)
    (batch,) = apply(grounding, [Batch(0, (example,))])
    (found,) = batch.records
    assert isinstance(found, Example)
    for grounded in found.objects:
        x, y, w, h = grounded.bbox
        assert 0 <= x < x + w <= example.width
        assert 0 <= y < y + h <= example.height
        assert grounded.mask.size == (example.height, example.width)
    size = (example.height, example.width)
    frames = [grounded.bbox for grounded in found.objects]
    assert frames
    own = replace(example, segments=tuple(Segment("", 1.0, framed(box, size)) for box in frames))
    # No SAM is there to be loaded: it is not needed.
    (batch,) = apply(GroundPhrases(str(tmp_path / "detector"), "nowhere", 0.0), [Batch(0, (own,))])
    (filled,) = batch.records
    assert isinstance(filled, Example)
    assert [grounded.mask for grounded in filled.objects][: len(frames)] == [framed(box, size) for box in frames]
    far = replace(example, segments=(Segment("", 1.0, framed((0, 0, 1, 1), size)),))
    (batch,) = apply(GroundPhrases(str(tmp_path / "detector"), "nowhere", 0.0), [Batch(0, (far,))])
    assert isinstance(batch.records[0], Example)
    assert batch.records[0].objects == ()
