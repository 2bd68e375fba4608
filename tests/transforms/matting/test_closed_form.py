from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pymatting import cf_laplacian, estimate_alpha_cf
from scipy import ndimage

from transforms.matting.closed_form import closed_form_alpha, estimate_foreground
from transforms.matting.laplacian import (
    _apply,
    _assemble,
    _coarse,
    _factor,
    _gather,
    _neighbours,
    _precondition,
    _spread,
    _touched,
)
from transforms.scenes import make_scene

Floats = NDArray[np.float64]


def noisy(rng: np.random.Generator, height: int, width: int) -> Floats:
    smooth = ndimage.gaussian_filter(rng.random((height, width, 3)), (2, 2, 0))
    return np.clip(0.5 + 3 * (smooth - smooth.mean()) + rng.normal(0, 0.02, smooth.shape), 0, 1)


def banded(height: int, width: int, band: int = 3) -> NDArray[np.uint8]:
    """Foreground in the middle, background around, a band of unknown pixels between them."""
    inside = np.zeros((height, width), bool)
    inside[height // 4 : -height // 4, width // 4 : -width // 4] = True
    distance = np.where(inside, ndimage.distance_transform_edt(inside), ndimage.distance_transform_edt(~inside))
    return np.where(distance <= band, 128, np.where(inside, 255, 0)).astype(np.uint8)


def levels(trimap: NDArray[np.uint8]) -> Floats:
    return np.where(trimap == 128, 0.5, trimap / 255)


@dataclass(frozen=True)
class System:
    """The equations of the N unknown pixels of a picture, as the solver holds them and as a dense matrix."""

    rows: Floats
    right: Floats
    before: NDArray[np.int32]
    places: NDArray[np.int32]
    colours: NDArray[np.float32]
    dense: Floats


def system(image: Floats, trimap: NDArray[np.uint8]) -> System:
    unknown = trimap == 128
    count = int(unknown.sum())
    places = np.argwhere(unknown).astype(np.int32)
    numbers = np.full((trimap.shape[0] + 4, trimap.shape[1] + 4), -1, np.int32)
    numbers[2:-2, 2:-2][unknown] = np.arange(count)
    rows, right = _assemble(image, trimap, numbers, _touched(unknown), count)
    dense = np.zeros((count, count))
    for i, (y, x) in enumerate(places):
        for k in range(13):
            j = numbers[y + k // 5, x + k % 5]
            if j >= 0:
                dense[i, j] = dense[j, i] = rows[i, k]
            else:
                assert rows[i, k] == 0
    colours = image[unknown].astype(np.float32)
    return System(rows, right, _neighbours(numbers, places), places, colours, dense)


@pytest.mark.parametrize(("height", "width"), [(20, 20), (17, 31), (64, 40)])
def test_the_matrix_is_the_matting_laplacian_of_the_unknown_pixels(height: int, width: int) -> None:
    """The peer builds it for the whole picture."""
    image, trimap = noisy(np.random.default_rng(0), height, width), banded(height, width)
    unknown = (trimap == 128).ravel()
    whole = cf_laplacian(image, epsilon=1e-7).toarray()
    equations = system(image, trimap)
    np.testing.assert_allclose(equations.dense, whole[unknown][:, unknown], atol=1e-7)
    expected = -whole[unknown][:, ~unknown] @ levels(trimap).ravel()[~unknown]
    np.testing.assert_allclose(equations.right, expected, atol=1e-7)


@pytest.mark.parametrize("size", [(20, 20), (17, 31)])
def test_applying_the_rows_is_a_product_with_the_matrix(size: tuple[int, int]) -> None:
    equations = system(noisy(np.random.default_rng(0), *size), banded(*size))
    vector = np.random.default_rng(1).normal(size=len(equations.right))
    result = np.full_like(vector, np.nan)
    _apply(equations.rows, equations.before, vector, result)
    np.testing.assert_allclose(result, equations.dense @ vector, atol=1e-9)


@pytest.mark.parametrize("shift", [0.0, 0.016, 0.5])
def test_where_all_unknown_pixels_are_neighbours_the_factor_is_that_of_the_matrix(shift: float) -> None:
    """In a block of 3 x 3 no product of the factor falls outside its pattern: nothing is neglected."""
    trimap = np.where(np.arange(12) < 6, 255, np.zeros((12, 1))).astype(np.uint8)
    trimap[4:7, 5:8] = 128
    equations = system(noisy(np.random.default_rng(0), 12, 12), trimap)
    lower, pivots = np.empty((9, 12), np.float32), np.empty(9, np.float32)
    assert _factor(equations.rows, equations.before, shift, lower, pivots)
    vector = np.random.default_rng(1).normal(size=9)
    result = np.full(9, 7, np.float32)
    _precondition((lower, pivots, equations.before), vector, result)
    shifted = equations.dense + shift * np.diag(np.diag(equations.dense))
    np.testing.assert_allclose(result, np.linalg.solve(shifted, vector), rtol=2e-3)


def incomplete_factor(matrix: Floats, before: NDArray[np.int32]) -> Floats:
    """L of an incomplete Cholesky factorization that keeps the entries of `before`, by its definition."""
    lower = np.zeros_like(matrix)
    for i in range(len(matrix)):
        for j in sorted(set(before[i]) - {i}):
            lower[i, j] = (matrix[i, j] - lower[i, :j] @ lower[j, :j]) / lower[j, j]
        lower[i, i] = np.sqrt(matrix[i, i] - lower[i, :i] @ lower[i, :i])
    return lower


@pytest.mark.parametrize("size", [(20, 20), (17, 31)])
def test_elsewhere_the_factor_is_the_incomplete_one_of_its_definition(size: tuple[int, int]) -> None:
    equations = system(noisy(np.random.default_rng(0), *size), banded(*size, 2))
    count = len(equations.right)
    lower, pivots = np.empty((count, 12), np.float32), np.empty(count, np.float32)
    assert _factor(equations.rows, equations.before, 0.05, lower, pivots)
    expected = incomplete_factor(equations.dense + 0.05 * np.diag(np.diag(equations.dense)), equations.before)
    found = np.diag(1 / pivots.astype(float))
    for i, k in np.ndindex(count, 12):
        if equations.before[i, k] != i:
            found[i, equations.before[i, k]] = lower[i, k]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    vector = np.random.default_rng(1).normal(size=count)
    result = np.full(count, 7, np.float32)
    _precondition((lower, pivots, equations.before), vector, result)
    solved = np.linalg.solve(expected @ expected.T, vector)
    np.testing.assert_allclose(result, solved, atol=1e-3 * np.abs(solved).max())


def test_some_thirty_steps_do(monkeypatch: pytest.MonkeyPatch) -> None:
    products = []

    def count_products(*arrays: Floats) -> None:
        products.append(arrays)
        _apply(*arrays)

    monkeypatch.setattr("transforms.matting.laplacian._apply", count_products)
    for size in (40, 160):
        products.clear()
        closed_form_alpha(noisy(np.random.default_rng(0), size, size), banded(size, size, size // 8))
        assert 5 < len(products) < 60


def test_where_the_factor_fails_it_is_tried_with_a_larger_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    image, trimap = noisy(np.random.default_rng(0), 40, 40), banded(40, 40)
    expected = closed_form_alpha(image, trimap)
    shifts = []

    def fail_twice(rows: Floats, before: NDArray[np.int32], shift: float, *filled: NDArray[np.float32]) -> bool:
        shifts.append(shift)
        return len(shifts) > 2 and bool(_factor(rows, before, shift, *filled))

    monkeypatch.setattr("transforms.matting.laplacian._factor", fail_twice)
    np.testing.assert_allclose(closed_form_alpha(image, trimap), expected, atol=0.01)
    assert shifts == pytest.approx([0.016, 0.064, 0.256])


def test_a_matrix_that_has_no_factor_is_said_to_have_none() -> None:
    rows = np.zeros((2, 13))
    rows[:, 12] = 1
    rows[1, 11] = -2  # the pixel to the left; [[1, -2], [-2, 1]] has a negative eigenvalue
    before = np.tile(np.arange(2, dtype=np.int32)[:, None], (1, 12))
    before[1, 11] = 0
    lower, pivots = np.empty((2, 12), np.float32), np.empty(2, np.float32)
    assert not _factor(rows, before, 0.0, lower, pivots)
    assert _factor(rows, before, 1.1, lower, pivots)  # [[2.1, -2], [-2, 2.1]] has none
    np.testing.assert_allclose(1 / pivots**2, [2.1, 2.1 - 4 / 2.1], rtol=1e-5)


@pytest.mark.parametrize("size", [(20, 20), (17, 31), (9, 40)])
def test_the_coarse_matrix_is_the_restriction_to_blocks_that_are_affine_in_colour(size: tuple[int, int]) -> None:
    equations = system(noisy(np.random.default_rng(0), *size), banded(*size, 2))
    block, colours, solve = _coarse(equations.places, equations.colours, equations.rows, equations.before)
    cells = [tuple(place) for place in equations.places // 8]
    assert sorted(set(zip(cells, block.tolist(), strict=True))) == [
        (cell, number) for number, cell in enumerate(sorted(set(cells)))
    ]
    basis = np.zeros((len(cells), 4 * len(set(cells))))  # alphas of 1, red, green and blue of each block
    for i, number in enumerate(block):
        basis[i, 4 * number : 4 * number + 4] = 1, *colours[i]
    vector = np.random.default_rng(1).normal(size=len(cells))
    sums = np.full(basis.shape[1], np.nan)
    _gather(block, colours, vector, sums)
    np.testing.assert_allclose(sums, basis.T @ vector, atol=1e-9)
    numbers = np.random.default_rng(2).normal(size=basis.shape[1])
    result = np.ones(len(cells))
    _spread(block, colours, numbers, result)
    np.testing.assert_allclose(result, 1 + basis @ numbers, atol=1e-9)
    restricted = basis.T @ equations.dense @ basis
    np.testing.assert_allclose(restricted @ solve(sums), sums, atol=1e-5 * np.abs(sums).max())


def laplacian(image: Floats) -> Floats:
    """Equation 12 window by window, by singular values: right where colours depend on each other, too."""
    pixels = np.arange(image.shape[0] * image.shape[1]).reshape(image.shape[:2])
    whole = np.zeros((pixels.size, pixels.size))
    for y, x in np.ndindex(image.shape[0] - 2, image.shape[1] - 2):
        window = pixels[y : y + 3, x : x + 3].ravel()
        colours = image.reshape(-1, 3)[window]
        left, values, _ = np.linalg.svd(colours - colours.mean(0), full_matrices=False)
        whole[np.ix_(window, window)] += np.eye(9) - 1 / 9 - (left * (values**2 / (values**2 + 1e-7))) @ left.T
    return whole


WIDE = noisy(np.random.default_rng(0), 30, 50)
PAINTINGS = {
    "noise": WIDE,
    "greys": WIDE[..., :1].repeat(3, axis=2),
    "green": WIDE * (0, 1, 0),
    "black": WIDE * 0,
    "one colour": WIDE * 0 + (0.4, 0.2, 0.9),
    "next to one colour": 0.5 + 1e-8 * WIDE,
    "two colours": np.where(np.arange(50)[:, None] < 25, 0.1, (0.8, 0.3, 0.2)) + WIDE * 0,
    "a slope in steps": np.round(np.linspace(0, 20, 50))[:, None] / 255 + WIDE * 0,
}


@pytest.mark.parametrize("painting", PAINTINGS)
@pytest.mark.parametrize("sure", [3, 1])
def test_a_wide_unknown_region_has_the_exact_alpha(painting: str, sure: int) -> None:
    """Where colours say little, what is sure far away decides, through weak ties: the solver must not stop before."""
    image, trimap = PAINTINGS[painting], np.full((30, 50), 128, np.uint8)
    trimap[-(sure**3) :, :sure], trimap[: sure**3, -sure:] = 0, 255
    matrix, unknown = laplacian(image), (trimap == 128).ravel()
    known = levels(trimap).ravel()[~unknown]
    exact = np.linalg.solve(matrix[unknown][:, unknown], -matrix[unknown][:, ~unknown] @ known)
    difference = np.abs(closed_form_alpha(image, trimap)[trimap == 128] - np.clip(exact, 0, 1))
    assert difference.mean() < 0.001
    assert difference.max() < 0.01


@pytest.mark.parametrize("size", [64, 200])
@pytest.mark.parametrize("band", [2, 6])
def test_alpha_is_the_peers(size: int, band: int) -> None:
    rng = np.random.default_rng(size)
    scene = make_scene(rng, size)
    image = np.clip(scene.image / 255 + rng.normal(0, 0.01, scene.image.shape), 0, 1)
    mask = max((thing.mask for thing in scene.objects), key=np.count_nonzero)
    distance = np.where(mask, ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask))
    trimap = np.where(distance <= band, 128, np.where(mask, 255, 0)).astype(np.uint8)
    peer = estimate_alpha_cf(image, levels(trimap), cg_kwargs={"rtol": 1e-9})
    difference = np.abs(closed_form_alpha(image, trimap) - peer)
    assert difference.mean() <= 0.001
    assert difference[trimap == 128].mean() <= 0.005


@given(seed=st.integers(0, 10**6), height=st.integers(1, 24), width=st.integers(1, 24))
@settings(max_examples=60, deadline=None)
def test_alpha_lies_between_0_and_1_and_is_the_trimap_where_that_is_sure(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    trimap = rng.choice(np.array([0, 128, 255], np.uint8), (height, width), p=rng.dirichlet((1, 1, 1)))
    alpha = closed_form_alpha(rng.random((height, width, 3)), trimap)
    assert alpha.shape == (height, width)
    assert ((alpha >= 0) & (alpha <= 1)).all()
    assert (alpha[trimap == 255] == 1).all()
    assert (alpha[trimap == 0] == 0).all()


def test_a_blend_of_two_colours_gives_its_alpha_back() -> None:
    rng = np.random.default_rng(1)
    truth = np.clip(ndimage.gaussian_filter((banded(60, 60, 0) == 255).astype(float), 2) * 1.2 - 0.1, 0, 1)
    image = truth[..., None] * (0.9, 0.2, 0.1) + (1 - truth[..., None]) * (0.1, 0.3, 0.8)
    image = image + rng.normal(0, 1e-4, image.shape)
    trimap = np.where(truth == 1, 255, np.where(truth == 0, 0, 128)).astype(np.uint8)
    assert np.abs(closed_form_alpha(image, trimap) - truth).max() < 0.01


@pytest.mark.parametrize("turn", [np.flipud, np.fliplr, lambda a: np.swapaxes(a, 0, 1)])
def test_a_turned_picture_has_the_turned_alpha(turn: object) -> None:
    assert callable(turn)
    image, trimap = noisy(np.random.default_rng(3), 48, 64), banded(48, 64)
    alpha = closed_form_alpha(np.ascontiguousarray(turn(image)), np.ascontiguousarray(turn(trimap)))
    np.testing.assert_allclose(alpha, turn(closed_form_alpha(image, trimap)), atol=0.02)


def test_the_answer_is_a_function_of_the_input() -> None:
    image, trimap = noisy(np.random.default_rng(3), 80, 64), banded(80, 64)
    assert np.array_equal(closed_form_alpha(image, trimap), closed_form_alpha(image.copy(), trimap.copy()))


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (2, 2), (1, 1), (2, 30)])
def test_pictures_too_small_for_a_window_take_the_nearest_sure_pixel(shape: tuple[int, int]) -> None:
    trimap = np.full(shape, 128, np.uint8)
    trimap.flat[0] = 255
    assert (closed_form_alpha(np.random.default_rng(0).random((*shape, 3)), trimap) == 1).all()


def test_the_smallest_picture_with_a_window_is_solved() -> None:
    """Its middle column is half of each side; the nearest sure pixel would make it one of them."""
    image = np.array([[0.9, 0.2, 0.1], [0.5, 0.3, 0.5], [0.1, 0.4, 0.9]])[None].repeat(3, axis=0)
    trimap = np.array([[255, 128, 0]], np.uint8).repeat(3, axis=0)
    np.testing.assert_allclose(closed_form_alpha(image, trimap), [[1, 0.5, 0]] * 3, atol=0.01)


def test_a_line_between_two_sure_ends_is_cut_in_the_middle() -> None:
    trimap = np.array([[255, 128, 128, 128, 128, 0]], np.uint8)
    alpha = closed_form_alpha(np.full((1, 6, 3), 0.5), trimap)
    assert alpha.tolist() == [[1, 1, 1, 0, 0, 0]]


def test_where_nothing_is_sure_alpha_is_a_half() -> None:
    alpha = closed_form_alpha(noisy(np.random.default_rng(0), 40, 40), np.full((40, 40), 128, np.uint8))
    np.testing.assert_allclose(alpha, 0.5)


@pytest.mark.parametrize("sure", [0, 255])
def test_without_the_other_side_all_is_one_side(sure: int) -> None:
    trimap = np.full((50, 50), 128, np.uint8)
    trimap[:, :10] = sure
    alpha = closed_form_alpha(noisy(np.random.default_rng(0), 50, 50), trimap)
    np.testing.assert_allclose(alpha, sure / 255, atol=0.02)


def test_nothing_unknown_is_the_trimap() -> None:
    trimap = np.where(np.arange(30)[:, None] < 10, 255, np.zeros((30, 30))).astype(np.uint8)
    assert np.array_equal(closed_form_alpha(np.zeros((30, 30, 3)), trimap), trimap / 255)


def test_holes_islands_and_bands_of_one_pixel() -> None:
    image, trimap = noisy(np.random.default_rng(5), 60, 60), banded(60, 60, 2)
    trimap[30, 30] = 128  # a hole in the foreground
    trimap[3:6, 3:6] = 128  # an island in the background
    trimap[:, 50] = np.where(trimap[:, 50] == 0, 128, trimap[:, 50])  # a line
    alpha = closed_form_alpha(image, trimap)
    peer = estimate_alpha_cf(image, levels(trimap), cg_kwargs={"rtol": 1e-9})
    assert alpha[30, 30] == pytest.approx(1, abs=0.02)
    assert alpha[3:6, 3:6].max() < 0.02
    assert np.abs(alpha - peer).mean() <= 0.001


@pytest.mark.parametrize(
    ("image", "trimap", "message"),
    [
        (np.zeros((4, 4)), np.zeros((4, 4), np.uint8), r"the image must be \[H, W, 3\] float64, it is \[4, 4\]"),
        (
            np.zeros((4, 4, 3), np.float32),
            np.zeros((4, 4), np.uint8),
            r"the image must be .* it is .* float32",
        ),
        (np.zeros((4, 4, 3)), np.zeros((4, 5), np.uint8), r"the trimap must be \[4, 4\] uint8, it is \[4, 5\]"),
        (np.zeros((4, 4, 3)), np.zeros((4, 4)), r"the trimap must be .* it is \[4, 4\] float64"),
        (np.full((4, 4, 3), np.nan), np.zeros((4, 4), np.uint8), "the image holds NaN or infinity"),
        (np.zeros((4, 4, 3)), np.full((4, 4), 127, np.uint8), "the trimap holds 127: its values are 0, 128 and 255"),
    ],
)
def test_what_is_no_picture_or_trimap_is_refused(image: Floats, trimap: NDArray[np.uint8], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        closed_form_alpha(image, trimap)


def test_the_foreground_keeps_nothing_of_the_old_background() -> None:
    truth = np.clip((np.arange(60) - 20) / 20, 0, 1)[None].repeat(40, 0)
    red, blue = np.array([0.9, 0.1, 0.1]), np.array([0.1, 0.1, 0.9])
    image = truth[..., None] * red + (1 - truth[..., None]) * blue
    foreground = estimate_foreground(image, truth)
    assert foreground.shape == (40, 60, 3)
    assert np.abs(foreground[truth > 0.3] - red).max() < 0.1
    again = truth[..., None] * foreground + (1 - truth[..., None]) * blue
    assert np.abs(again - image).max() < 0.05
