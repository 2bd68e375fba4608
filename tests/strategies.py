"""Hypothesis strategies for keys, captions, masks and boxes."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from schemas.masks import BBox

MAX_SIDE = 24
"""Side in pixels up to which masks and boxes are drawn: small enough for a loop over the pixels."""

raw_keys = st.one_of(
    st.text(max_size=300),
    st.text(alphabet="ab./\\_-\x00é😀", max_size=12),
    st.from_regex(r"[A-Za-z0-9_-]{0,210}", fullmatch=True),
)
"""Any text that may become a key, such as dots, slashes, NUL, emoji or the empty string."""

captions = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=80)
"""Text of any script, without NUL, which every reader rejects."""


def masks(min_side: int = 1, max_side: int = MAX_SIDE) -> st.SearchStrategy[NDArray[np.bool_]]:
    """[H, W] bool of any size in the range, including empty and full masks."""
    return hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=min_side, max_side=max_side))


@st.composite
def boxes(draw: st.DrawFn, max_side: int = MAX_SIDE) -> BBox:
    """[x, y, w, h] of at least one pixel inside a square of `max_side` pixels."""
    x, y = draw(st.integers(0, max_side - 1)), draw(st.integers(0, max_side - 1))
    return x, y, draw(st.integers(1, max_side - x)), draw(st.integers(1, max_side - y))
