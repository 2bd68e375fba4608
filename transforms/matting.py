"""Closed-form matting: the alpha of the unknown pixels of a trimap.

Levin, Lischinski and Weiss, "A Closed-Form Solution to Natural Image Matting" (TPAMI 2008). In each window of 3 x 3
pixels alpha is nearly an affine function of colour; what that asks of alpha is a quadratic form, the matting Laplacian
(equation 12), whose minimum under the trimap is the alpha.

Known pixels are constants here, so only the rows of unknown ones are built: 13 numbers each, half of a symmetric
matrix, since two pixels that share a window are at most two apart. They are solved from coarse to fine: a picture of
half the size gives the start, and conjugate gradients, preconditioned by an incomplete Cholesky factor with the
matrix' own pattern, do the rest. A coarse start takes away the slow part of the error, so the cheap factor is enough,
and time and memory grow with the number of unknown pixels alone.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float64]
Factor = tuple[NDArray[np.float32], Floats, NDArray[np.int32]]
"""L below its diagonal [N, 12], the inverses [N] of its diagonal, the neighbours' numbers [N, 12].

Single precision is enough for what only has to be near."""

EPSILON = 1e-7
"""Weight of smoothness in a window whose colours say nothing (the paper's epsilon; PyMatting's default)."""
STILL = 5e-4
"""The solver stops where the alphas will change by no more than this, in the mean: what a step changes says how much,
and how fast that fades, how much is to come. The residual would say less: in a wide band of one colour a small one
leaves alpha far off."""
ROUGH = 4
"""A coarse picture is only a start: it is solved to so many times `STILL`."""
FADING, LOOK_BACK = 0.7, 6
"""Changes are smoothed by this factor from step to step, and compared with those of so many steps before."""
MOST_STEPS = 2000
"""Of the solver: only for what has no one solution, as an island that no colour ties to anything."""
FIRST_SHIFT = 4e-3
"""What the incomplete factor adds to the diagonal, as a share of it; four times as much where it fails."""
COARSEST = 3000
"""Unknown pixels that are solved without a coarser picture."""
FREE = {"reassoc", "contract", "arcp"}
"""What the compiler may do with sums and products: order them anew, and round once where two steps can be one."""
LOWER = 12
"""Of the 25 neighbours in a window of 5 x 5, in reading order, those before the pixel itself."""


def closed_form_alpha(image: Floats, trimap: NDArray[np.uint8]) -> Floats:
    """Estimate alpha: [H, W] float64 in [0, 1]; 1 and 0 where the trimap is sure.

    An unknown pixel that no chain of windows ties to a sure one takes the alpha of the nearest sure pixel, or 0.5
    where there is none at all.

    Args:
        image: [H, W, 3] float64 in [0, 1], sRGB.
        trimap: [H, W] uint8: 0 background, 128 unknown, 255 foreground.

    Raises:
        ValueError: shapes, types or values are others.
    """
    _check(image, trimap)
    if (trimap == 128).all():
        return np.full(trimap.shape, 0.5)
    return _solve(np.ascontiguousarray(image), trimap, STILL)


def _check(image: Floats, trimap: NDArray[np.uint8]) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.float64:
        raise ValueError(f"the image must be [H, W, 3] float64, it is {list(image.shape)} {image.dtype}")
    if trimap.shape != image.shape[:2] or trimap.dtype != np.uint8:
        raise ValueError(f"the trimap must be {list(image.shape[:2])} uint8, it is {list(trimap.shape)} {trimap.dtype}")
    if not np.isfinite(image.sum()):
        raise ValueError("the image holds values that are no numbers")
    strange = np.setdiff1d(np.flatnonzero(np.bincount(trimap.ravel(), minlength=256)), (0, 128, 255))
    if strange.size:
        raise ValueError(f"the trimap holds {strange[0]}: its values are 0, 128 and 255")


def _solve(image: Floats, trimap: NDArray[np.uint8], still: float) -> Floats:
    alpha = np.where(trimap == 255, 1.0, 0.0)
    unknown = trimap == 128
    count = int(np.count_nonzero(unknown))
    if not count:
        return alpha
    places = np.argwhere(unknown).astype(np.int32)
    solution = _start(image, trimap, places)
    numbers = np.full((trimap.shape[0] + 4, trimap.shape[1] + 4), -1, np.int32)
    numbers[2:-2, 2:-2][unknown] = np.arange(count, dtype=np.int32)
    rows, right = _assemble(image, trimap, numbers, count)
    before = _neighbours(numbers, places)
    lower, pivots = np.empty((count, LOWER), np.float32), np.empty(count, np.float32)
    shift = FIRST_SHIFT
    while not _factor(rows, before, shift, lower, pivots):
        shift *= 4
    _conjugate_gradients(rows, right, (lower, pivots, before), still, solution)
    alpha[unknown] = np.clip(solution, 0, 1)
    return alpha


def _start(image: Floats, trimap: NDArray[np.uint8], places: NDArray[np.int32]) -> Floats:
    """Guess alpha at `places` [N, 2], (y, x): [N]; a picture of half the size says it, or the nearest sure pixels."""
    if len(places) > COARSEST and min(trimap.shape) >= 8:
        small, half = _halve(image, trimap)
        if (half == 0).any() and (half == 255).any():
            return _enlarge(_solve(small, half, ROUGH * STILL), places)
    return _nearest(trimap)[places[:, 0], places[:, 1]]


def _nearest(trimap: NDArray[np.uint8]) -> Floats:
    known = trimap != 128
    where = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    nearest: Floats = (trimap[tuple(where)] == 255).astype(np.float64)
    return nearest


@njit(cache=True, fastmath=FREE)
def _halve(image: Floats, trimap: NDArray[np.uint8]) -> tuple[Floats, NDArray[np.uint8]]:
    """Halve a picture and its trimap; of four pixels, all must be sure of one thing for theirs to be."""
    height, width = trimap.shape[0] // 2, trimap.shape[1] // 2
    small, half = np.empty((height, width, 3)), np.empty((height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            v, u = 2 * y, 2 * x
            for c in range(3):
                total = image[v, u, c] + image[v, u + 1, c] + image[v + 1, u, c] + image[v + 1, u + 1, c]
                small[y, x, c] = total / 4
            mark = trimap[v, u]
            alike = mark == trimap[v, u + 1] and mark == trimap[v + 1, u] and mark == trimap[v + 1, u + 1]
            half[y, x] = mark if alike else 128
    return small, half


@njit(cache=True, fastmath=FREE)
def _enlarge(coarse: Floats, places: NDArray[np.int32]) -> Floats:
    """Look up what [h, w] is at `places` [N, 2], (y, x), of a picture of twice its size: [N], bilinearly."""
    values = np.empty(len(places))
    bottom, edge = coarse.shape[0] - 1, coarse.shape[1] - 1
    for i in range(len(places)):
        y = min(max(places[i, 0] / 2 - 0.25, 0.0), bottom)
        x = min(max(places[i, 1] / 2 - 0.25, 0.0), edge)
        top, left = int(y), int(x)
        below, beside = min(top + 1, bottom), min(left + 1, edge)
        down, across = y - top, x - left
        high = coarse[top, left] * (1 - across) + coarse[top, beside] * across
        low = coarse[below, left] * (1 - across) + coarse[below, beside] * across
        values[i] = high * (1 - down) + low * down
    return values


def estimate_foreground(image: Floats, alpha: Floats) -> Floats:
    """Estimate the colours of the foreground, so that none of the old background bleeds into a new one.

    Germer et al., "Fast Multi-Level Foreground Estimation" (2020), as PyMatting computes it.

    Args:
        image: [H, W, 3] float64 in [0, 1].
        alpha: [H, W] float64 in [0, 1].

    Returns:
        [H, W, 3] float64 in [0, 1]; where alpha is 0 the colours are those of the nearest foreground.
    """
    # Loading it takes as long as a dozen mattes, and every command loads this module.
    from pymatting import estimate_foreground_ml  # noqa: PLC0415

    foreground: Floats = estimate_foreground_ml(image, alpha)
    return foreground


@njit(cache=True, fastmath=FREE)
def _assemble(
    image: Floats, trimap: NDArray[np.uint8], numbers: NDArray[np.int32], count: int
) -> tuple[Floats, Floats]:
    """Build the rows of the unknown pixels: what each window of 3 x 3 adds for each two of its pixels.

    Returns:
        [N, 13], the matrix, which is symmetric, up to its diagonal: for each unknown pixel those of its neighbours in
        5 x 5 that come before it, in reading order, then itself; and [N], the right side.
    """
    height, width = trimap.shape
    rows, right = np.zeros((count, LOWER + 1)), np.zeros(count)
    colour = np.empty((9, 3))
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            if not _touched(numbers, y, x):
                continue
            inverse = _centre(image, y, x, colour)
            for k in range(9):
                row = numbers[y + k // 3 + 1, x + k % 3 + 1]
                if row < 0:
                    continue
                r, g, b = _turn(inverse, colour[k])
                for j in range(9):
                    is_unknown = numbers[y + j // 3 + 1, x + j % 3 + 1] >= 0
                    if is_unknown and j > k:
                        continue
                    if not is_unknown and trimap[y + j // 3 - 1, x + j % 3 - 1] == 0:
                        continue
                    value = (j == k) - (1 + r * colour[j, 0] + g * colour[j, 1] + b * colour[j, 2]) / 9
                    if is_unknown:
                        rows[row, (j // 3 - k // 3 + 2) * 5 + j % 3 - k % 3 + 2] += value
                    else:
                        right[row] -= value
    return rows, right


@njit(cache=True, fastmath=FREE)
def _touched(numbers: NDArray[np.int32], y: int, x: int) -> bool:
    """Say whether the window around (y, x) holds an unknown pixel."""
    for k in range(9):  # noqa: SIM110 - numba compiles no generator
        if numbers[y + k // 3 + 1, x + k % 3 + 1] >= 0:
            return True
    return False


@njit(cache=True, fastmath=FREE)
def _centre(image: Floats, y: int, x: int, colour: Floats) -> tuple[float, float, float, float, float, float]:
    """Fill `colour` [9, 3] with the window's colours less their mean.

    Returns the inverse of their covariance, with epsilon / 9 on its diagonal, as (rr, rg, rb, gg, gb, bb).
    """
    for c in range(3):
        mean = 0.0
        for k in range(9):
            colour[k, c] = image[y + k // 3 - 1, x + k % 3 - 1, c]
            mean += colour[k, c] / 9
        for k in range(9):
            colour[k, c] -= mean
    rr = gg = bb = EPSILON
    rg = rb = gb = 0.0
    for k in range(9):
        r, g, b = colour[k, 0], colour[k, 1], colour[k, 2]
        rr, rg, rb = rr + r * r, rg + r * g, rb + r * b
        gg, gb, bb = gg + g * g, gb + g * b, bb + b * b
    one, two, three = gg * bb - gb * gb, rb * gb - rg * bb, rg * gb - rb * gg
    scale = 9 / (rr * one + rg * two + rb * three)
    return (
        one * scale,
        two * scale,
        three * scale,
        (rr * bb - rb * rb) * scale,
        (rg * rb - rr * gb) * scale,
        (rr * gg - rg * rg) * scale,
    )


@njit(cache=True, fastmath=FREE)
def _turn(inverse: tuple[float, float, float, float, float, float], colour: Floats) -> tuple[float, float, float]:
    """Multiply the symmetric matrix `inverse` with a colour [3]."""
    r, g, b = colour[0], colour[1], colour[2]
    return (
        inverse[0] * r + inverse[1] * g + inverse[2] * b,
        inverse[1] * r + inverse[3] * g + inverse[4] * b,
        inverse[2] * r + inverse[4] * g + inverse[5] * b,
    )


@njit(cache=True, fastmath=FREE)
def _neighbours(numbers: NDArray[np.int32], places: NDArray[np.int32]) -> NDArray[np.int32]:
    """Number the neighbours that come before each unknown pixel: [N, 12]; its own where one is known or outside."""
    before = np.empty((len(places), LOWER), np.int32)
    for i in range(len(places)):
        for k in range(LOWER):
            number = numbers[places[i, 0] + k // 5, places[i, 1] + k % 5]
            before[i, k] = number if number >= 0 else i
    return before


@njit(cache=True, fastmath=FREE)
def _factor(rows: Floats, before: NDArray[np.int32], shift: float, lower: NDArray[np.float32], pivots: Floats) -> bool:
    """Factor the matrix, its diagonal enlarged by the share `shift`, incompletely: with its own pattern.

    Fills L [N, 12] below the diagonal and the inverses [N] of its diagonal; false where what the pattern neglects
    makes that impossible.
    """
    for i in range(len(rows)):
        rest = rows[i, LOWER] * (1 + shift) + 1e-12
        smallest = 1e-4 * rest
        for k in range(LOWER):
            j = before[i, k]
            if j == i:
                lower[i, k] = 0
                continue
            value = rows[i, k]
            for m in range(k):
                # The pixel at offset m of i lies at offset m - k of j.
                across = m % 5 - k % 5
                if -2 <= across <= 2 and before[i, m] != i:
                    value -= lower[i, m] * lower[j, (m // 5 - k // 5 + 2) * 5 + across + 2]
            value *= pivots[j]
            lower[i, k] = value
            rest -= value * value
        if rest < smallest:
            return False
        pivots[i] = 1 / np.sqrt(rest)
    return True


@njit(cache=True, fastmath=FREE)
def _apply(rows: Floats, before: NDArray[np.int32], vector: Floats, result: Floats) -> None:
    """Multiply the matrix with `vector` [N]; what is known adds 0 times the pixel itself."""
    result[:] = 0
    for i in range(len(rows)):
        value = vector[i]
        total = rows[i, LOWER] * value
        for k in range(LOWER):
            j = before[i, k]
            total += rows[i, k] * vector[j]
            result[j] += rows[i, k] * value
        result[i] += total


@njit(cache=True, fastmath={"contract"})
def _precondition(factor: Factor, vector: Floats, result: NDArray[np.float32]) -> None:
    """Solve L L^T result = vector; `result` [N] holds any numbers on entry."""
    lower, pivots, before = factor
    count = len(lower)
    for i in range(count):
        value = np.float32(vector[i])
        # In this order: the neighbour that was computed last comes last, so nothing waits for it.
        for k in range(LOWER):
            value -= lower[i, k] * result[before[i, k]]
        result[i] = value * pivots[i]
    for i in range(count - 1, -1, -1):
        value = result[i] * pivots[i]
        result[i] = value
        for k in range(LOWER):
            result[before[i, k]] -= lower[i, k] * value


@njit(cache=True, fastmath=FREE)
def _conjugate_gradients(rows: Floats, right: Floats, factor: Factor, still: float, solution: Floats) -> None:
    """Improve `solution` [N] in place until it will change by no more than `still` in the mean."""
    count = len(right)
    product, residual, better = np.empty(count), np.empty(count), np.zeros(count, np.float32)
    _apply(rows, factor[2], solution, product)
    for i in range(count):
        residual[i] = right[i] - product[i]
    _precondition(factor, residual, better)
    direction = better.astype(np.float64)
    gain = _dot(residual, better)
    changes = np.empty(MOST_STEPS)
    for step in range(MOST_STEPS):
        _apply(rows, factor[2], direction, product)
        curvature = _dot(direction, product)
        if gain <= 0 or curvature <= 0:
            return
        length = gain / curvature
        change = 0.0
        for i in range(count):
            change += abs(direction[i])
            solution[i] += length * direction[i]
            residual[i] -= length * product[i]
        change *= length / count
        changes[step] = FADING * changes[step - 1] + (1 - FADING) * change if step else change
        if step >= LOOK_BACK:
            rate = min((changes[step] / changes[step - LOOK_BACK]) ** (1 / LOOK_BACK), 0.995)
            if changes[step] * rate <= still * (1 - rate):
                return
        _precondition(factor, residual, better)
        again = _dot(residual, better)
        for i in range(count):
            direction[i] = better[i] + again / gain * direction[i]
        gain = again


@njit(cache=True, fastmath=FREE)
def _dot(one: Floats, other: Floats) -> float:
    """Multiply two vectors [N]; NumPy's own product has other last digits on another number of threads."""
    total = 0.0
    for i in range(len(one)):
        total += one[i] * other[i]
    return total
