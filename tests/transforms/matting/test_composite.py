from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.boxes import box_of
from schemas.example import Example, Placement
from schemas.images import decode_image, encode_grey, encode_jpeg
from schemas.keys import rng_of
from tests.beam import apply
from tests.examples import make_example
from tests.pictures import scene
from transforms.batch import Batch
from transforms.matting.backgrounds import PAINTED, Backgrounds
from transforms.matting.composite import (
    FAINT,
    Composition,
    LayOnBackgrounds,
    add_composite,
    blend,
    draw_placement,
    place,
    to_linear,
    to_srgb,
)

Floats = NDArray[np.float64]
FREE = Composition(scale=(0.5, 1.5), move=True, flip=0.5)


def disc(size: int = 40, middle: tuple[int, int] = (18, 22), radius: int = 9) -> Floats:
    """Alpha of a soft disc about `middle` (y, x): [size, size] float64."""
    y, x = np.mgrid[:size, :size]
    return np.clip(radius + 0.5 - np.hypot(y - middle[0], x - middle[1]), 0, 1)


def matted(alpha: Floats | None = None, key: str = "k") -> Example:
    alpha = disc() if alpha is None else alpha
    example = make_example(key, size=(alpha.shape[1], alpha.shape[0]))
    image = encode_jpeg(scene(*alpha.shape))
    return replace(example, image=image, alpha=encode_grey(np.rint(alpha * 255).astype(np.uint8)), _pixels=None)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_blending_onto_the_pictures_own_colours_gives_the_picture_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    picture, alpha = rng.random((7, 9, 3)), rng.random((7, 9))
    for blending in ("srgb", "linear"):
        np.testing.assert_allclose(blend(picture, picture, alpha, blending), picture, atol=1e-12)


def test_half_of_white_on_black_in_both_blendings() -> None:
    white, black, half = np.ones((1, 1, 3)), np.zeros((1, 1, 3)), np.full((1, 1), 0.5)
    assert blend(white, black, half, "srgb")[0, 0, 0] == 0.5
    assert blend(white, black, half, "linear")[0, 0, 0] == pytest.approx(0.735357, abs=1e-6)  # IEC 61966-2-1


def test_linear_light_and_back() -> None:
    values = np.linspace(0, 1, 256)
    np.testing.assert_allclose(to_srgb(to_linear(values)), values, atol=1e-7)
    assert to_linear(np.array(0.5)) == pytest.approx(0.214041, abs=1e-6)


def test_without_a_choice_the_subject_stays_in_its_place() -> None:
    placement = draw_placement(disc(), Composition(), np.random.default_rng(0))
    assert placement == Placement("", 1.0, (0, 0), flip=False)


@given(seed=st.integers(0, 10**6), y=st.integers(10, 29), x=st.integers(10, 29), radius=st.integers(2, 9))
@settings(max_examples=60, deadline=None)
def test_a_moved_subject_stays_whole_and_lies_where_the_record_says(seed: int, y: int, x: int, radius: int) -> None:
    alpha = disc(middle=(y, x), radius=radius)
    placement = draw_placement(alpha, FREE, np.random.default_rng(seed))
    _, covered = place(np.ones((40, 40, 3)), alpha, placement)
    left, top, w, h = box_of(alpha >= FAINT)
    if placement.flip:
        left = 40 - left - w
    middle = left + w / 2 + placement.shift[0], top + h / 2 + placement.shift[1]
    rows, columns = np.nonzero(covered > 0.5)
    assert abs((columns.min() + columns.max() + 1) / 2 - middle[0]) <= 1
    assert abs((rows.min() + rows.max() + 1) / 2 - middle[1]) <= 1
    assert np.ptp(columns) + 1 == pytest.approx(w * placement.scale, abs=3)
    # its area changes as the square of its size: nothing of it was cut off
    grown = round(w * placement.scale) / w * round(h * placement.scale) / h
    assert covered.sum() == pytest.approx(alpha.sum() * grown, rel=0.15)
    assert (covered[[0, -1]].max(), covered[:, [0, -1]].max()) < (0.999, 0.999)


def test_what_the_pictures_edge_cuts_off_is_never_moved_but_may_be_mirrored() -> None:
    alpha = disc(middle=(2, 20))
    drawn = [draw_placement(alpha, FREE, np.random.default_rng(seed)) for seed in range(20)]
    assert {(placement.scale, placement.shift) for placement in drawn} == {(1.0, (0, 0))}
    assert {placement.flip for placement in drawn} == {True, False}


def test_one_choice_does_not_change_another() -> None:
    moved = draw_placement(disc(), Composition(move=True), np.random.default_rng(3))
    both = draw_placement(disc(), Composition(move=True, flip=1.0), np.random.default_rng(3))
    assert both.flip
    assert not moved.flip
    assert moved.scale == both.scale == 1


def test_scaled_colours_take_none_from_outside_the_subject() -> None:
    alpha = disc()
    red = np.where(alpha[..., None] > 0, np.array([1.0, 0, 0]), np.array([0, 1.0, 0]))
    colours, covered = place(red, alpha, Placement("", 1.4, (1, -2), flip=True))
    inside = covered > 0.05
    np.testing.assert_allclose(colours[inside][:, 0], 1, atol=0.02)
    np.testing.assert_allclose(colours[inside][:, 1], 0, atol=0.02)


def test_the_composite_shows_the_subject_and_nothing_of_its_old_background() -> None:
    alpha = disc()
    picture = np.where(alpha[..., None] >= 0.5, 220, np.array([0, 160, 0])).astype(np.uint8)
    soft = alpha[..., None] * 220 + (1 - alpha[..., None]) * np.array([0, 160.0, 0])
    example = replace(matted(alpha), image=encode_jpeg(np.rint(soft).astype(np.uint8)))
    composed = add_composite(example, (), Composition(), np.random.default_rng(1))
    assert composed.placement == Placement(PAINTED)
    shown = decode_image(composed.composite).astype(int)
    assert np.abs(shown[alpha == 1] - picture[alpha == 1]).max() <= 12
    painted = add_composite(matted(np.zeros((40, 40))), (), Composition(), np.random.default_rng(1))
    behind = decode_image(painted.composite).astype(int)
    assert np.abs(shown[alpha == 0] - behind[alpha == 0]).mean() < 4  # JPEG alone
    edge = (alpha > 0.2) & (alpha < 0.8)
    expected = alpha[..., None] * 220 + (1 - alpha[..., None]) * behind
    assert np.abs(shown - expected)[edge].mean() < 12  # with the green left in, 40


def test_a_record_gets_the_same_input_in_any_batch() -> None:
    records = [matted(key=str(i)) for i in range(3)]
    transform = LayOnBackgrounds(Backgrounds(), FREE, seed=5)
    (together,) = apply(transform, [Batch(0, tuple(records))])
    (alone,) = apply(transform, [Batch(0, (records[2],))])
    assert together.records[2] == alone.records[0]
    expected = add_composite(records[2], (), FREE, rng_of(5, "composite", "2"))
    assert alone.records[0] == expected
    assert len({record.composite for record in together.records}) == 3
