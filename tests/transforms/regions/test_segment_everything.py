from pathlib import Path

import torch

from schemas.example import Example
from schemas.rejects import Reason, Reject
from tests.beam import apply
from tests.examples import make_example
from tests.transforms.models.test_sam import SHAPE
from transforms.batch import Batch
from transforms.models.sam import new_sam, save_sam
from transforms.models.settings import Everything
from transforms.regions.segment import SegmentEverything

ANY = Everything(points=4, predicted_iou=-10, stability=0)


def test_everything_becomes_segments_without_names_and_a_picture_without_any_a_reject(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_sam(new_sam(SHAPE), SHAPE, tmp_path)
    example = make_example("one", size=(60, 40))
    (batch,) = apply(SegmentEverything(str(tmp_path), ANY), [Batch(0, (example,))])
    (found,) = batch.records
    assert isinstance(found, Example)
    assert found.segments
    for segment in found.segments:
        assert segment.label == ""
        assert segment.mask.size == (40, 60)
        assert segment.area > 0
    smallest = min(segment.area for segment in found.segments) / 2400
    (batch,) = apply(SegmentEverything(str(tmp_path), ANY, smallest + 1e-6), [Batch(0, (example,))])
    (kept,) = batch.records
    assert isinstance(kept, Example)
    assert 0 < len(kept.segments) < len(found.segments)
    nothing = Everything(points=4, predicted_iou=10)
    (batch,) = apply(SegmentEverything(str(tmp_path), nothing), [Batch(0, (example,))])
    (refused,) = batch.records
    assert isinstance(refused, Reject)
    assert refused.reason == Reason.NO_SEGMENT
