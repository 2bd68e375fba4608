import numpy as np
import pytest

from jobs.sample_models.metrics import intersection_over_union, panoptic_quality


def box(x0: int, x1: int) -> np.ndarray:
    mask = np.zeros((4, 10), bool)
    mask[:, x0:x1] = True
    return mask


def test_iou_by_hand() -> None:
    assert intersection_over_union(box(0, 4), box(2, 6)) == pytest.approx(2 / 6)
    assert intersection_over_union(box(0, 0), box(0, 0)) == 0


def test_panoptic_quality_by_hand() -> None:
    # cat: a match of IoU 4/5 and a false negative: sq 0.8, rq 1 / 1.5. dog: a false positive: 0.
    pictures = [([("cat", box(0, 4)), ("dog", box(6, 9))], [("cat", box(0, 5)), ("cat", box(6, 10))])]
    scores = panoptic_quality(pictures)
    assert scores["sq"] == pytest.approx((0.8 + 0) / 2)
    assert scores["rq"] == pytest.approx((1 / 1.5 + 0) / 2)
    assert scores["pq"] == pytest.approx((0.8 / 1.5 + 0) / 2)


def test_a_mask_matches_only_its_class_and_only_once() -> None:
    assert panoptic_quality([([("cat", box(0, 4))], [("dog", box(0, 4))])])["pq"] == 0
    twice = panoptic_quality([([("cat", box(0, 4)), ("cat", box(0, 4))], [("cat", box(0, 4))])])
    assert twice["pq"] == pytest.approx(1 / 1.5)


def test_half_is_not_enough() -> None:
    assert panoptic_quality([([("cat", box(0, 2))], [("cat", box(0, 4))])])["pq"] == 0
