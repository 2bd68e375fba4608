from dataclasses import replace
from pathlib import Path

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
from tests.pictures import encode, scene
from transforms.batch import Batch
from transforms.matting.backgrounds import PAINTED, Backgrounds, list_backgrounds
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


SQUARE = (10, 20, 10, 10)  # [x, y, w, h] in a picture of 40 x 60 pixels


def square(box: tuple[int, int, int, int] = SQUARE) -> Floats:
    """Alpha that is 1 in a box of a picture 40 pixels wide and 60 high."""
    x, y, w, h = box
    alpha = np.zeros((60, 40))
    alpha[y : y + h, x : x + w] = 1
    return alpha


class Drawn:
    """Stands for a generator whose numbers are known: the scale, then what `random` returns."""

    def __init__(self, scale: float, *numbers: float) -> None:
        self.scale, self.numbers = scale, list(numbers)

    def uniform(self, low: float, high: float) -> float:
        assert low <= self.scale <= high
        return self.scale

    def random(self) -> float:
        return self.numbers.pop(0)


def placed_by(
    composition: Composition, *numbers: float, box: tuple[int, int, int, int] = SQUARE
) -> tuple[Placement, tuple[int, int, int, int]]:
    """The placement for what was drawn (scale, across, down, flip), and the box in which the subject then lies."""
    alpha = square(box)
    placement = draw_placement(alpha, composition, Drawn(*numbers))  # type: ignore[arg-type]
    _, covered = place(np.ones((60, 40, 3)), alpha, placement)
    assert covered.shape == (60, 40)
    return placement, box_of(covered >= FAINT)


@pytest.mark.parametrize(
    ("numbers", "scale", "shift", "box"),
    [
        ((1.0, 0.0, 0.0, 1.0), 1.0, (-10, -20), (0, 0, 10, 10)),
        ((1.0, 1.0, 1.0, 1.0), 1.0, (20, 30), (30, 50, 10, 10)),
        ((1.0, 0.5, 0.5, 1.0), 1.0, (5, 5), (15, 25, 10, 10)),
        ((0.5, 0.0, 0.0, 1.0), 0.5, (-12, -22), (0, 0, 5, 5)),  # about its middle it lies at (12, 22)
        ((0.5, 0.2, 0.4, 1.0), 0.5, (-5, 0), (7, 22, 5, 5)),  # of 35 and 55 pixels of room
        ((0.51239, 0.0, 0.0, 1.0), 0.5124, (-12, -22), (0, 0, 5, 5)),  # four decimals are kept
        ((2.0, 1.0, 0.0, 1.0), 2.0, (15, -15), (20, 0, 20, 20)),
        ((9.0, 0.0, 1.0, 1.0), 4.0, (5, 15), (0, 20, 40, 40)),  # no wider than the picture
        ((0.04, 1.0, 1.0, 1.0), 0.04, (25, 35), (39, 59, 1, 1)),  # a pixel at least
        ((1.0, 0.0, 0.0, 0.2), 1.0, (-20, -20), (0, 0, 10, 10)),  # mirrored, it lay at x = 20
    ],
)
def test_a_subject_goes_where_it_is_drawn_to(
    numbers: tuple[float, ...], scale: float, shift: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    asked = Composition(scale=(0.04, 9.0), move=True, flip=0.5)
    assert placed_by(asked, *numbers) == (Placement("", scale, shift, flip=numbers[3] < 0.5), box)


@pytest.mark.parametrize(
    ("box", "shift", "placed"),
    [
        (SQUARE, (0, 0), (5, 15, 20, 20)),
        ((1, 2, 10, 10), (4, 3), (0, 0, 20, 20)),  # it would reach over the edge
        ((29, 49, 10, 10), (-4, -4), (20, 40, 20, 20)),
    ],
)
def test_a_scaled_subject_stays_where_it_is_unless_it_would_leave_the_picture(
    box: tuple[int, int, int, int], shift: tuple[int, int], placed: tuple[int, int, int, int]
) -> None:
    asked = Composition(scale=(2.0, 2.0))
    assert placed_by(asked, 2.0, 0.9, 0.9, 0.9, box=box) == (Placement("", 2.0, shift), placed)


def test_a_subject_grows_no_higher_than_the_picture() -> None:
    asked = Composition(scale=(9.0, 9.0), move=True)
    placed = placed_by(asked, 9.0, 0.0, 0.0, 0.9, box=(10, 20, 5, 30))
    assert placed == (Placement("", 2.0, (-7, -5)), (0, 0, 10, 60))


@pytest.mark.parametrize("box", [(0, 20, 10, 10), (10, 0, 10, 10), (30, 20, 10, 10), (10, 50, 10, 10)])
def test_a_subject_at_any_of_the_four_edges_is_neither_scaled_nor_moved(box: tuple[int, int, int, int]) -> None:
    asked = Composition(scale=(0.5, 2.0), move=True)
    assert placed_by(asked, 0.5, 0.9, 0.9, 0.9, box=box) == (Placement(""), box)


def test_a_subject_is_mirrored_with_the_probability_that_is_asked_for() -> None:
    assert placed_by(Composition(flip=0.3), 1.0, 0, 0, 0.29)[0].flip
    assert not placed_by(Composition(flip=0.3), 1.0, 0, 0, 0.3)[0].flip
    assert placed_by(Composition(flip=1.0), 1.0, 0, 0, 0.9)[1] == (20, 20, 10, 10)


@pytest.mark.parametrize(("faint", "is_free"), [(1 / 255, False), (0.9 / 255, True)])
def test_an_edge_cuts_off_what_a_png_can_show(faint: float, is_free: bool) -> None:
    alpha = square()
    alpha[25, 0] = faint
    placement = draw_placement(alpha, Composition(move=True), np.random.default_rng(0))
    assert (placement.shift != (0, 0)) == is_free


def test_one_choice_does_not_change_another() -> None:
    moved = draw_placement(disc(), Composition(move=True), np.random.default_rng(3))
    both = draw_placement(disc(), Composition(move=True, flip=1.0), np.random.default_rng(3))
    assert both.flip
    assert not moved.flip
    assert moved.scale == both.scale == 1


def test_a_subject_that_stays_keeps_every_number_even_around_it() -> None:
    rng = np.random.default_rng(0)
    foreground, alpha = rng.random((40, 40, 3)), disc()
    colours, covered = place(foreground, alpha, Placement(""))
    np.testing.assert_array_equal(colours, foreground)
    np.testing.assert_array_equal(covered, alpha)
    colours, covered = place(foreground, alpha, Placement("", flip=True))
    np.testing.assert_array_equal(colours, np.fliplr(foreground))
    np.testing.assert_array_equal(covered, np.fliplr(alpha))


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


def test_a_flat_subject_on_a_flat_background_by_hand(tmp_path: Path) -> None:
    """Each of JPEG's blocks of 8 x 8 pixels has one colour, which it keeps exactly."""
    (tmp_path / "dark.png").write_bytes(encode(np.full((9, 9, 3), 40, np.uint8)))
    alpha = np.zeros((48, 48))
    alpha[16:32, 16:32] = 1
    alpha[24:32, 24:32] = 128 / 255
    example = replace(matted(alpha), image=encode_jpeg(np.full((48, 48, 3), 200, np.uint8)))
    names = list_backgrounds(str(tmp_path)).names
    composed = add_composite(example, names, Composition(), np.random.default_rng(0))
    expected = np.full((48, 48), 40)
    expected[16:32, 16:32] = 200
    expected[24:32, 24:32] = 120  # 0.502 of 200 and 0.498 of 40
    np.testing.assert_array_equal(decode_image(composed.composite), np.stack([expected] * 3, axis=-1))
    assert composed.placement == Placement("dark.png")


def test_a_record_gets_the_same_input_in_any_batch() -> None:
    records = [matted(key=str(i)) for i in range(3)]
    transform = LayOnBackgrounds(Backgrounds(), FREE, seed=5)
    (together,) = apply(transform, [Batch(0, tuple(records))])
    (alone,) = apply(transform, [Batch(0, (records[2],))])
    assert together.records[2] == alone.records[0]
    expected = add_composite(records[2], (), FREE, rng_of(5, "composite", "2"))
    assert alone.records[0] == expected
    assert len({record.composite for record in together.records}) == 3
