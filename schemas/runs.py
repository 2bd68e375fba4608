"""Run lengths of many masks at once, with array operations over runs instead of a pass over each mask's pixels.

COCO's run lengths go down the columns, so both functions take arrays whose first axis is the picture's width: read in
memory order, their pixels are in the order of the runs.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.masks import Mask


def masks_of_bits(bits: NDArray[np.uint8], count: int) -> list[Mask]:
    """Encode `count` masks that may overlap, eight to a byte.

    Args:
        bits: [ceil(count / 8), W, H] uint8; mask `i` is bit `i % 8` (1 is the lowest) of plane `i // 8`.
        count: number of masks.
    """
    width, height = bits.shape[1:]
    pixels = bits.ravel()
    differs = np.ones(pixels.size, bool)
    np.not_equal(pixels[1:], pixels[:-1], out=differs[1:])
    differs[:: width * height] = True
    place = np.flatnonzero(differs)
    plane, position = np.divmod(place, width * height)
    # Runs begin with zeros, so the first pixel of a plane is compared with none.
    changed = pixels[place] ^ np.where(position, pixels[place - 1], 0)
    bit, change = np.divmod(np.flatnonzero(changed >> np.arange(8, dtype=np.uint8)[:, None] & 1), len(changed))
    changes = (plane[change] * 8 + bit) * width * height + position[change]
    return _encode(changes, count, (height, width))


def masks_of_labels(labels: NDArray[np.integer], regions: Sequence[Sequence[int]]) -> list[Mask]:
    """Encode the regions of a map of labels.

    Args:
        labels: [W, H], the label of each pixel, 0 or greater.
        regions: the labels that make up each mask; no label is in two of them. Pixels of other labels are in no mask.
    """
    width, height = labels.shape
    pixels = labels.ravel()
    used = [label for members in regions for label in members]
    owners = np.full(max(int(pixels.max()), *used, 0) + 1, -1)
    owners[used] = np.repeat(np.arange(len(regions)), [len(members) for members in regions])
    starts = np.concatenate([[0], np.flatnonzero(pixels[1:] != pixels[:-1]) + 1])
    owner = owners[pixels[starts]]
    # Neighbours with different labels may belong to one mask.
    first = np.concatenate([[True], owner[1:] != owner[:-1]])
    starts, owner = starts[first], owner[first]
    changes = np.concatenate([owner * pixels.size + starts, owner[:-1] * pixels.size + starts[1:]])
    return _encode(changes[changes >= 0], len(regions), (height, width))


def _encode(changes: NDArray[np.int64], count: int, size: tuple[int, int]) -> list[Mask]:
    """Encode masks that are given by the pixels at which they change, counted down the columns.

    Args:
        changes: [M], index of the mask x pixels of the picture + index of a pixel from which on that mask has its other
            value, in any order. Masks begin with zeros.
        count: number of masks.
        size: (H, W) of all masks.
    """
    pixels = size[0] * size[1]
    # A sort that profits from parts in order: changes come in long ones.
    owner, position = np.divmod(np.sort(changes, kind="stable"), pixels)
    # The last run of every mask ends with the picture.
    lengths = np.bincount(owner, minlength=count)
    ends = np.insert(position, np.cumsum(lengths), pixels)
    lengths += 1
    firsts = np.cumsum(lengths) - lengths
    starts = np.concatenate([[0], ends[:-1]])
    starts[firsts] = 0
    runs = ends - starts
    # From the fourth run on, COCO writes the difference to the run before the previous one.
    differences = runs.copy()
    differences[2:] -= runs[:-2]
    values = np.where(np.arange(len(runs)) - np.repeat(firsts, lengths) > 2, differences, runs)
    text, digits = _digits(values)
    stops = np.cumsum(np.add.reduceat(digits, firsts)) if count else firsts
    return [
        Mask(size, text[stop - length : stop].decode("ascii"))
        for stop, length in zip(stops.tolist(), np.diff(stops, prepend=0).tolist(), strict=True)
    ]


def _digits(values: NDArray[np.int64]) -> tuple[bytes, NDArray[np.int64]]:
    """Write numbers in COCO's characters; return the text and the number of characters of each.

    Five bits per character, lowest first, above 48 ("0"); the sixth bit says that more follow, and the fifth of the
    last one is the sign (`schemas.masks` reads them).
    """
    # n characters hold the numbers from -2**(5 n - 1) on and below 2**(5 n - 1).
    size = np.where(values < 0, ~values, values)
    digits = np.ones(len(values), np.int64)
    for bits in range(4, int(size.max(initial=0)).bit_length(), 5):
        digits += size >> bits > 0
    place = np.cumsum(digits) - digits
    text = np.empty(digits.sum(), np.uint8)
    left = digits
    while len(values):
        more = left > 1
        text[place] = (values & 31) + 48 + 32 * more
        values, place, left = values[more] >> 5, place[more] + 1, left[more] - 1
    return text.tobytes(), digits
