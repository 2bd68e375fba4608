"""Composer's palette and its histogram, against the published construction computed plainly."""

import colorsys

import numpy as np
import pytest
from skimage.color import rgb2lab

from transforms.maps.palette import HUES, color_histogram, palette_colors

# Saturation and light of the colours of each hue, worked out by hand: 11 hues x 15 and 15 greys.
PALE = [(1 / 6, 1), (2 / 6, 1), (3 / 6, 1), (4 / 6, 1), (5 / 6, 1), (1, 1)]
DARKER = [1 - 0.8 * i / 6 for i in range(1, 6)]
ROWS = [*PALE, *((1, light) for light in DARKER), *((0.4, light) for light in DARKER[:4])]


def test_the_palette_has_the_published_colours() -> None:
    expected = [colorsys.hsv_to_rgb(hue, s, v) for hue in HUES for s, v in ROWS]
    expected += [(grey, grey, grey) for grey in (1 - i / 14 for i in range(15))]
    assert palette_colors() == pytest.approx(np.array(expected), abs=1e-9)
    assert len(palette_colors()) == 180
    assert len(palette_colors(5, 4)) == 156


def test_the_histogram_is_the_published_one_made_to_add_up_to_one() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)
    colors, lab = rgb2lab(palette_colors()[None])[0], rgb2lab(pixels).reshape(-1, 3)
    counts = np.zeros(180)
    for pixel in lab:
        counts[((colors - pixel) ** 2).sum(axis=1).argmin()] += 1 / len(lab)
    smooth = np.zeros(180)
    for i, color in enumerate(colors):
        weights = np.exp(-((colors - color) ** 2).sum(axis=1) / 200)
        smooth[i] = (weights / weights.sum() * counts).sum()
    smooth[smooth < 1e-5] = 0
    assert color_histogram(pixels) == pytest.approx(smooth / smooth.sum(), abs=1e-6)
    assert smooth.sum() != pytest.approx(1, abs=1e-3)
    assert color_histogram(pixels, 0) == pytest.approx(counts, abs=1e-6)


def test_a_picture_of_one_colour_has_most_of_that_colour() -> None:
    red = color_histogram(np.full((9, 9, 3), (255, 0, 0), np.uint8))
    assert palette_colors()[red.argmax()] == pytest.approx([1, 0, 0])
    assert red.sum() == pytest.approx(1)
    assert color_histogram(np.full((9, 9, 3), (255, 0, 0), np.uint8), 0).max() == 1
