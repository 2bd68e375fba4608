import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from transforms.matting.trimap import trimap_of_heatmap, trimap_of_mask


def row(text: str) -> NDArray[np.uint8]:
    """One line of a trimap: `#` subject, `?` unknown, `.` background."""
    return np.array([[{"#": 255, "?": 128, ".": 0}[c] for c in text]], np.uint8)


@pytest.mark.parametrize(
    ("mask", "band", "expected"),
    [
        ("......######......", 1, ".....??####??....."),
        ("......######......", 2, "....????##????...."),
        ("......######......", 3, "...????????????..."),
        ("############......", 2, "##########????...."),
        ("####", 2, "####"),
        ("....", 2, "...."),
        ("....#....", 1, "...???..."),
        ("##", 9, "##"),
        ("#.", 1, "??"),
    ],
)
def test_a_mask_is_opened_on_both_sides_of_its_edge(mask: str, band: int, expected: str) -> None:
    line = np.array([[c == "#" for c in mask]])
    np.testing.assert_array_equal(trimap_of_mask(line, band), row(expected))
    np.testing.assert_array_equal(trimap_of_mask(line.T, band), row(expected).T)


@pytest.mark.parametrize(
    ("confidence", "band", "expected"),
    [
        ([0.0, 0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.0], 1, "...??###"),  # two unknown pixels are a band of one
        ([0.0, 0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.0], 2, "..????##"),
        ([0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0, 1.0], 1, "..???###"),
        ([0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0], 2, "..????##"),
        ([0.0, 0.2, 0.5, 0.5, 0.5, 0.5, 0.8, 1.0], 2, ".??????#"),  # both bounds are unknown
        ([0.9, 0.5, 0.9, 0.5, 0.9], 1, "#?#?#"),  # without background there is no edge of it
        ([0.5, 0.5, 0.5], 1, "???"),
    ],
)
def test_confidences_between_the_bounds_are_unknown_and_sharp_edges_opened(
    confidence: list[float], band: int, expected: str
) -> None:
    np.testing.assert_array_equal(trimap_of_heatmap(np.array([confidence]), 0.2, 0.8, band), row(expected))


@given(seed=st.integers(0, 10**6), band=st.integers(1, 4), size=st.integers(1, 24))
@settings(max_examples=80, deadline=None)
def test_no_sure_subject_touches_sure_background(seed: int, band: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    confidence = ndimage.gaussian_filter(rng.random((size, 20)), 1.5)
    confidence = (confidence - confidence.min()) / max(np.ptp(confidence), 1e-9)
    trimap = trimap_of_heatmap(confidence, 0.4, 0.6, band)
    assert not (confidence[trimap == 255] <= 0.6).any()
    assert not (confidence[trimap == 0] >= 0.4).any()
    subject, background = np.argwhere(trimap == 255), np.argwhere(trimap == 0)
    if len(subject) and len(background):
        gaps = np.linalg.norm(subject[:, None] - background[None], axis=-1)
        assert gaps.min() > band + 0.5


def test_hair_that_a_mask_cut_off_lies_in_the_unknown_band() -> None:
    y, x = np.mgrid[:60, :60]
    mask = (x - 30) ** 2 + (y - 30) ** 2 <= 15**2
    trimap = trimap_of_mask(mask, 4)
    distance = np.hypot(x - 30, y - 30)
    assert (trimap[(distance > 11.5) & (distance < 18.5)] == 128).all()
    assert (trimap[distance < 10.5] == 255).all()
    assert (trimap[distance > 20] == 0).all()
