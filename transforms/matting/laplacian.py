"""The solver of closed-form matting, compiled by numba.

In each window of 3 x 3 pixels alpha is nearly an affine function of colour; what that requires of alpha is a quadratic
form, the matting Laplacian (equation 12 of Levin et al. 2008), whose minimum under the trimap is the alpha.

Known pixels are constants here, so only the rows of unknown ones are built: 13 numbers each, half of a symmetric
matrix, since two pixels that share a window are at most two apart:

     0  1  2  3  4      the neighbours of pixel x in 5 x 5, numbered in reading order:
     5  6  7  8  9      a row of the matrix stores 0 to 11, then x itself (12);
    10 11  x  .  .      those after x (.) store their entry with x in their own rows
     .  .  .  .  .
     .  .  .  .  .

The system is solved by conjugate gradients with two preconditioners together:

- An incomplete Cholesky factor with the sparsity pattern of the matrix: it takes care of what is near.
- The matrix restricted to alphas that are affine in colour in each block of 8 x 8 pixels: it takes care of what is far.
  Such alphas cost next to nothing within a block, so a factor of neighbours alone needs many steps to find them.

With both, some thirty steps are enough for a picture of any size: time and memory grow with the number of unknown
pixels alone.
"""

from collections.abc import Callable

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import splu

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Factor = tuple[Singles, Singles, NDArray[np.int32]]
"""L below its diagonal [N, 12], the inverses of its diagonal [N], the indices of the neighbours [N, 12].

Single precision is enough for a preconditioner."""
Coarse = tuple[NDArray[np.int32], Singles, Callable[[Floats], Floats]]
"""The block [N] and the colour [N, 3] of each unknown pixel, and a function that solves the restricted system, whose
vectors are [4 * B] for B blocks."""

EPSILON = 1e-7
"""Regularisation of a window's colour covariance (the paper's epsilon; PyMatting's default)."""
STILL = 5e-4
"""The solver stops when it expects the mean change of alpha still to come to be below this, from the size of the last
changes and the rate at which they fall. The residual is no measure: in a wide band of one colour, alpha may be far off
where the residual is small."""
FADING, LOOK_BACK = 0.7, 6
"""Factor by which changes are smoothed from step to step, and how many steps back the smoothed change is compared."""
MOST_STEPS = 2000
"""Largest number of steps; pictures take some thirty."""
FIRST_SHIFT = 1.6e-2
"""Share by which the diagonal is enlarged for the incomplete factor; four times as much whenever that fails."""
BLOCK = 8
"""Side of the blocks, pixels. Smaller ones save steps and cost more to factor."""
COARSE_SHIFT = 1e-10
"""Share by which the restricted matrix's diagonal is enlarged: in a grey block the three colours are equal, and the
matrix is singular."""
FREE = {"reassoc", "contract", "arcp"}
"""Floating-point rewrites that the compiler may make: reorder sums, and fuse multiplication and addition."""
LOWER = 12
"""Number of neighbours before the pixel itself, of the 25 in a window of 5 x 5 in reading order."""


def solve(image: Floats, trimap: NDArray[np.uint8]) -> Floats:
    """Return alpha [H, W] float64 in [0, 1]; see `transforms.matting.closed_form.closed_form_alpha`.

    `image` is [H, W, 3] and contiguous; at least one pixel of `trimap` [H, W] is known, and both sides are 3 or more.
    """
    alpha = np.where(trimap == 255, 1.0, 0.0)
    unknown = trimap == 128
    count = int(np.count_nonzero(unknown))
    if not count:
        return alpha
    places = np.argwhere(unknown).astype(np.int32)
    numbers = np.full((trimap.shape[0] + 4, trimap.shape[1] + 4), -1, np.int32)
    numbers[2:-2, 2:-2][unknown] = np.arange(count, dtype=np.int32)
    rows, right = _assemble(image, trimap, numbers, _touched(unknown), count)
    before = _neighbours(numbers, places)
    lower, pivots = np.empty((count, LOWER), np.float32), np.empty(count, np.float32)
    shift = FIRST_SHIFT
    while not _factor(rows, before, shift, lower, pivots):
        shift *= 4
    coarse = _coarse(places, image[unknown].astype(np.float32), rows, before)
    alpha[unknown] = np.clip(_conjugate_gradients(rows, right, (lower, pivots, before), coarse), 0, 1)
    return alpha


def _touched(unknown: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether the window of 3 x 3 around each inner pixel has an unknown pixel: [H - 2, W - 2] bool."""
    across = unknown[:, :-2] | unknown[:, 1:-1] | unknown[:, 2:]
    return across[:-2] | across[1:-1] | across[2:]


@njit(cache=True, fastmath=FREE)
def _assemble(
    image: Floats, trimap: NDArray[np.uint8], numbers: NDArray[np.int32], touched: NDArray[np.bool_], count: int
) -> tuple[Floats, Floats]:
    """Build the rows of the unknown pixels, as sums over windows of 3 x 3.

    Returns:
        [N, 13], the lower half of the symmetric matrix: for each unknown pixel its 12 earlier neighbours in 5 x 5, then
        itself; and [N], the right side.
    """
    height, width = trimap.shape
    rows, right = np.zeros((count, LOWER + 1)), np.zeros(count)
    colour, row = np.empty((9, 3)), np.empty(9, np.int32)
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            if not touched[y - 1, x - 1]:
                continue
            _whiten(image, y, x, colour)
            sure = red = green = blue = 0.0
            for k in range(9):
                row[k] = numbers[y + k // 3 + 1, x + k % 3 + 1]
                if trimap[y + k // 3 - 1, x + k % 3 - 1] == 255:
                    sure, red, green, blue = sure + 1, red + colour[k, 0], green + colour[k, 1], blue + colour[k, 2]
            for k in range(9):
                if row[k] < 0:
                    continue
                r, g, b = colour[k]
                right[row[k]] += (sure + r * red + g * green + b * blue) / 9
                rows[row[k], LOWER] += 1
                for j in range(k + 1):
                    if row[j] >= 0:
                        value = (1 + r * colour[j, 0] + g * colour[j, 1] + b * colour[j, 2]) / 9
                        rows[row[k], (j // 3 - k // 3 + 2) * 5 + j % 3 - k % 3 + 2] -= value
    return rows, right


@njit(cache=True, fastmath={"contract"})
def _whiten(image: Floats, y: int, x: int, colour: Floats) -> None:
    """Fill `colour` [9, 3] with the window's colours, centred and whitened by a Cholesky factor of their covariance.

    The dot product of two rows is then the term of equation 12 for these two pixels. In a grey picture the covariance
    is nearly singular: its inverse would be wrong in the second digit, the factor is accurate.
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
    g_by_r, b_by_r = rg / rr, rb / rr
    gg, gb = gg - g_by_r * rg, gb - g_by_r * rb
    b_by_g = gb / gg
    bb -= b_by_r * rb + b_by_g * gb
    for k in range(9):
        g = colour[k, 1] - g_by_r * colour[k, 0]
        b = colour[k, 2] - b_by_r * colour[k, 0] - b_by_g * g
        colour[k, 0] *= 3 / np.sqrt(rr)
        colour[k, 1] = 3 * g / np.sqrt(gg)
        colour[k, 2] = 3 * b / np.sqrt(bb)


@njit(cache=True, fastmath=FREE)
def _neighbours(numbers: NDArray[np.int32], places: NDArray[np.int32]) -> NDArray[np.int32]:
    """Indices of the 12 earlier neighbours of each unknown pixel, [N, 12]; its own index if one is known or outside."""
    before = np.empty((len(places), LOWER), np.int32)
    for i in range(len(places)):
        for k in range(LOWER):
            number = numbers[places[i, 0] + k // 5, places[i, 1] + k % 5]
            before[i, k] = number if number >= 0 else i
    return before


@njit(cache=True, fastmath=FREE)
def _factor(rows: Floats, before: NDArray[np.int32], shift: float, lower: Singles, pivots: Singles) -> bool:
    """Incomplete Cholesky factorisation with the matrix's own sparsity pattern, its diagonal enlarged by `shift`.

    Fills `lower` [N, 12], L below its diagonal, and `pivots` [N], the inverses of its diagonal. Returns False if a
    pivot is not positive enough, which the neglected entries can cause.
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
                # The neighbour of i at offset m is the neighbour of j at offset m - k.
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


def _coarse(places: NDArray[np.int32], colours: Singles, rows: Floats, before: NDArray[np.int32]) -> Coarse:
    """Restrict the matrix to alphas that are affine in colour in each block, and factor it."""
    y, x = places.T // BLOCK + 1
    wide = int(x.max()) + 2
    cell = (y * wide + x).astype(np.int32)
    cells = np.flatnonzero(np.bincount(cell))
    blocks = np.full(cells[-1] + 2, -1, np.int32)
    blocks[cells] = np.arange(len(cells), dtype=np.int32)
    beside = blocks[cells[:, None] - (-1, 0, 1, wide - 1, wide, wide + 1)]
    block = blocks[cell]
    half = _restrict(rows, before, cell, wide, block, colours, len(cells))
    each = np.arange(4)
    diagonal = half[:, 1, each, each]
    # In a black block, the entries of its colours are 0.
    half[:, 1, each, each] += np.where(diagonal > 0, COARSE_SHIFT * diagonal, 1)
    ends = np.cumsum((beside >= 0).sum(1))
    size = 4 * len(cells)
    matrix = sparse.bsr_array((half[beside >= 0], beside[beside >= 0], [0, *ends]), shape=(size, size)).tocsc()
    options = {"SymmetricMode": True}
    factor = splu(matrix + matrix.T, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0, options=options)
    return block, colours, factor.solve


@njit(cache=True, fastmath=FREE)
def _restrict(
    rows: Floats,
    before: NDArray[np.int32],
    cell: NDArray[np.int32],
    wide: int,
    block: NDArray[np.int32],
    colours: Singles,
    count: int,
) -> Floats:
    """Sum the matrix over pairs of blocks: [B, 6, 4, 4], half of a symmetric matrix.

    Axis 1 is the other block: to the right, the block itself, to the left, and the three above from right to left,
    which hold earlier neighbours of its pixels. Axes 2 and 3 are the basis functions 1, red, green and blue of the
    two blocks.
    """
    half, sums = np.zeros((count, 6, 4, 4)), np.empty((6, 4))
    for i in range(len(rows)):
        sums[:] = 0
        for k in range(LOWER + 1):
            j = before[i, k] if k < LOWER else i
            weight = rows[i, k] if k < LOWER else rows[i, k] / 2
            apart = cell[i] - cell[j]
            which = apart + 1 if apart <= 1 else apart - wide + 4
            sums[which, 0] += weight
            for c in range(3):
                sums[which, c + 1] += weight * colours[j, c]
        for which in range(6):
            for q in range(4):
                if sums[which, q] != 0:
                    half[block[i], which, 0, q] += sums[which, q]
                    for c in range(3):
                        half[block[i], which, c + 1, q] += colours[i, c] * sums[which, q]
    return half


@njit(cache=True, fastmath=FREE)
def _gather(block: NDArray[np.int32], colours: Singles, vector: Floats, sums: Floats) -> None:
    """Project `vector` [N] on the basis functions of the blocks; fills `sums` [4 * B]."""
    sums[:] = 0
    for i in range(len(vector)):
        at = 4 * block[i]
        sums[at] += vector[i]
        for c in range(3):
            sums[at + c + 1] += colours[i, c] * vector[i]


@njit(cache=True, fastmath=FREE)
def _spread(block: NDArray[np.int32], colours: Singles, numbers: Floats, result: Floats | Singles) -> None:
    """Add to `result` [N] the alphas whose coefficients are `numbers` [4 * B]."""
    for i in range(len(result)):
        at = 4 * block[i]
        result[i] += numbers[at]
        for c in range(3):
            result[i] += colours[i, c] * numbers[at + c + 1]


@njit(cache=True, fastmath=FREE)
def _apply(rows: Floats, before: NDArray[np.int32], vector: Floats, result: Floats) -> None:
    """Multiply the matrix by `vector` [N]; entries of known neighbours are 0 and point at the pixel itself."""
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
def _precondition(factor: Factor, vector: Floats, result: Singles) -> None:
    """Solve L L^T result = vector, both [N]; the content of `result` on entry is ignored."""
    lower, pivots, before = factor
    count = len(lower)
    for i in range(count):
        value = np.float32(vector[i])
        # In this order, the neighbour that was computed last is used last, which lets the processor overlap steps.
        for k in range(LOWER):
            value -= lower[i, k] * result[before[i, k]]
        result[i] = value * pivots[i]
    for i in range(count - 1, -1, -1):
        value = result[i] * pivots[i]
        result[i] = value
        for k in range(LOWER):
            result[before[i, k]] -= lower[i, k] * value


def _conjugate_gradients(rows: Floats, right: Floats, factor: Factor, coarse: Coarse) -> Floats:
    """Solve for alpha [N] by conjugate gradients, until the mean change still expected is below `STILL`."""
    *blocks, solve = coarse
    count = len(right)
    sums = np.empty(4 * (int(blocks[0].max()) + 1))
    product, residual, better = np.empty(count), np.empty(count), np.zeros(count, np.float32)
    solution = np.full(count, 0.5)
    _apply(rows, factor[2], solution, product)
    _gather(*blocks, right - product, sums)
    _spread(*blocks, solve(sums), solution)
    _apply(rows, factor[2], solution, product)
    np.subtract(right, product, out=residual)
    direction, gain = np.zeros(count), 1.0
    changes: list[float] = []
    for step in range(MOST_STEPS):
        _gather(*blocks, residual, sums)
        _precondition(factor, residual, better)
        _spread(*blocks, solve(sums), better)
        again = _dot(residual, better)
        _turn_to(direction, better, again / gain)
        gain = again
        _apply(rows, factor[2], direction, product)
        curvature = _dot(direction, product)
        if gain <= 0 or curvature <= 0:
            break
        change = _move(gain / curvature, direction, product, solution, residual)
        changes.append(FADING * changes[-1] + (1 - FADING) * change if step else change)
        if step >= LOOK_BACK:
            rate = min((changes[-1] / changes[-1 - LOOK_BACK]) ** (1 / LOOK_BACK), 0.995)
            if changes[-1] * rate <= STILL * (1 - rate):
                break
    return solution


@njit(cache=True, fastmath=FREE)
def _turn_to(direction: Floats, better: Singles, kept: float) -> None:
    """Direction = better + kept * direction, each [N]."""
    for i in range(len(direction)):
        direction[i] = better[i] + kept * direction[i]


@njit(cache=True, fastmath=FREE)
def _move(length: float, direction: Floats, product: Floats, solution: Floats, residual: Floats) -> float:
    """Move `length` along `direction` [N], whose product with the matrix is `product`; return the mean change."""
    change = 0.0
    for i in range(len(direction)):
        change += abs(direction[i])
        solution[i] += length * direction[i]
        residual[i] -= length * product[i]
    return change * length / len(direction)


@njit(cache=True, fastmath=FREE)
def _dot(a: Floats, b: Floats | Singles) -> float:
    """Dot product of two vectors [N]; NumPy's differs in the last digits with the number of threads."""
    total = 0.0
    for i in range(len(a)):
        total += a[i] * b[i]
    return total
