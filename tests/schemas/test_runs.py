"""Run lengths of many masks at once, against pycocotools one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from schemas.masks import Mask
from schemas.runs import masks_of_bits, masks_of_labels

SIZES = st.tuples(st.integers(0, 19), st.integers(1, 9), st.integers(1, 9))


def pack(masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Put masks [N, H, W] into bits, [ceil(N / 8), W, H], as NumPy packs them."""
    return np.ascontiguousarray(np.packbits(masks, axis=0, bitorder="little").transpose(0, 2, 1))


@given(SIZES.flatmap(lambda shape: arrays.arrays(bool, shape)))
def test_masks_that_overlap_are_encoded_as_pycocotools_does(masks: NDArray[np.bool_]) -> None:
    assert masks_of_bits(pack(masks), len(masks)) == [Mask.from_array(mask) for mask in masks]


@given(SIZES.flatmap(lambda shape: arrays.arrays(np.uint8, shape[1:], elements=st.integers(0, 5))))
def test_regions_of_a_map_are_encoded_as_pycocotools_does(labels: NDArray[np.uint8]) -> None:
    regions = [[4], [1, 3], [], [5, 9]]  # 2 is in none, and no pixel has 9
    expected = [Mask.from_array(np.isin(labels, members)) for members in regions]
    for integers in (np.uint8, np.int16):
        assert masks_of_labels(np.ascontiguousarray(labels.T).astype(integers), regions) == expected


@pytest.mark.parametrize("size", [(3, 5), (1, 1), (480, 640)])
def test_empty_and_full_masks(size: tuple[int, int]) -> None:
    masks = np.stack([np.zeros(size, bool), np.ones(size, bool)] * 5)
    assert masks_of_bits(pack(masks), 10) == [Mask.from_array(mask) for mask in masks]
    labels = np.full(size[::-1], 2, np.uint8)
    assert masks_of_labels(labels, [[1], [2]]) == [Mask.from_array(mask) for mask in masks[:2]]


def test_runs_of_any_length_are_written() -> None:
    """Differences on both sides of each number of characters: up to 2**4, 2**9, 2**14 and 2**19."""
    lengths = [1, 15, 16, 17, 18, 511, 512, 513, 1, 16_384, 3, 16_385, 524_288, 2, 524_300, 1]
    pixels = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    masks = np.stack([pixels.reshape(1, -1), ~pixels.reshape(1, -1), pixels[::-1].reshape(1, -1)])
    assert masks_of_bits(pack(masks), 3) == [Mask.from_array(mask) for mask in masks]
