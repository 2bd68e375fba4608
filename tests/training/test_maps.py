"""Maps that are drawn from the picture at training time."""

import numpy as np
import pytest

from training.maps import (
    INTENSITY_WEIGHTS,
    REGIONS,
    Region,
    controlnet_normal,
    draw_region,
    intensity,
    shuffle_content,
    spatial_palette,
    tile,
)


def picture(height: int = 128, width: int = 192) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_spatial_palette_has_a_colour_per_patch() -> None:
    pixels = np.zeros((128, 192, 3), np.uint8)
    pixels[:, :128] = (200, 100, 50)
    coarse = spatial_palette(pixels)
    assert coarse.shape == pixels.shape
    assert (coarse.reshape(2, 64, 3, 64, 3).std(axis=(1, 3)) == 0).all()
    assert coarse[0, 0].tolist() == pytest.approx([200, 100, 50], abs=12)
    assert coarse[127, 191].max() < 60
    assert spatial_palette(picture(5, 7)).shape == (5, 7, 3)


def test_intensity_is_the_weighted_sum() -> None:
    pixels = np.array([[[100, 200, 50]]], np.uint8)
    assert intensity(pixels, np.array([0.5, 0.25, 0.25])).tolist() == [[112]]
    assert INTENSITY_WEIGHTS.sum(axis=1) == pytest.approx(np.ones(len(INTENSITY_WEIGHTS)))


def test_shuffling_keeps_the_colours_and_loses_the_layout() -> None:
    pixels = np.zeros((128, 128, 3), np.uint8)
    pixels[:, 64:] = 255
    moved = shuffle_content(pixels, np.random.default_rng(1))
    assert moved.shape == pixels.shape
    assert 40 < moved.mean() < 215
    assert (moved != pixels).mean() > 0.1
    assert np.array_equal(moved, shuffle_content(pixels, np.random.default_rng(1)))
    assert not np.array_equal(moved, shuffle_content(pixels, np.random.default_rng(2)))
    assert shuffle_content(picture(5, 7), np.random.default_rng(1)).shape == (5, 7, 3)


def test_a_tile_has_the_means_and_no_detail() -> None:
    pixels = picture(64, 64)
    smooth = tile(pixels, 8)
    assert smooth.shape == pixels.shape
    assert smooth.mean() == pytest.approx(pixels.mean(), abs=3)
    assert smooth.std() < pixels.std() / 3
    assert np.array_equal(tile(pixels, 1), pixels)


@pytest.mark.parametrize("shape", REGIONS)
def test_a_region_has_its_shape(shape: Region) -> None:
    regions = [draw_region(np.random.default_rng(i), 128, 192, {shape: 1.0}) for i in range(40)]
    shares = np.array([region.mean() for region in regions])
    assert all(region.shape == (128, 192) for region in regions)
    if shape == "uncrop":
        assert shares == pytest.approx(np.full(40, 0.5))
        assert len({region.tobytes() for region in regions}) == 4
    else:
        assert shares.min() > 0
        assert shares.max() < 0.9
        assert len({region.tobytes() for region in regions}) == 40
    if shape == "rectangles":
        assert not any(region[0].any() or region[:, 0].any() for region in regions)


def test_shapes_come_as_often_as_videocomposer_draws_them() -> None:
    """Of 600 regions, those that are one half are uncrop: a tenth, within three standard deviations."""
    halves = sum(draw_region(np.random.default_rng(i), 64, 64).mean() == 0.5 for i in range(600))
    assert abs(halves - 60) < 3 * np.sqrt(600 * 0.1 * 0.9)


def test_controlnet_s_normals_have_their_channels_reversed_and_x_turned() -> None:
    assert controlnet_normal(np.array([[[255, 10, 200]]], np.uint8)).tolist() == [[[200, 10, 0]]]
