"""Condition maps as models are shown them: cropped and mirrored with their picture, with thresholds drawn."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.errors import RecordError
from schemas.images import decode_image
from schemas.maps import MIRRORED, draw_people, encode_png
from tests.training.maps import CAPTION, HEIGHT, PERSON, WIDTH, mapped_raw, stored
from training.configs import t2i_adapter
from training.configs.controlnet import Config
from training.configs.maps import FROM_PICTURE
from training.geometry import crop_middle
from training.map_view import (
    SHOWN,
    channels_of,
    crop_sample,
    given_map,
    read_record,
    shown_map,
    three_channels,
)
from training.shards import Raw

SIDED = "a ball to the left of a cup"
LEFT = (WIDTH - HEIGHT) // 2
"""First column of the middle square, which is HEIGHT pixels wide."""


def show(name: str, raw: Raw | None = None, seed: int = 0, **fields: Any) -> NDArray[np.float64]:  # noqa: ANN401
    """A map [R, R, C] in [0, 1] of the sample, by default at its own size and not mirrored."""
    shown, _ = show_both(name, raw, seed, **fields)
    return shown


def show_both(
    name: str,
    raw: Raw | None = None,
    seed: int = 0,
    **fields: Any,  # noqa: ANN401
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    raw, rng = raw or mapped_raw("controlnet"), np.random.default_rng(seed)
    config = Config(**{"resolution": HEIGHT, **fields})
    record = read_record(raw)
    picture, crop = crop_sample(raw, record, rng, config)
    shown = shown_map(raw, record, name, picture, crop, rng, config)
    return as_array(shown) / 255, as_array(picture)


def as_array(values: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = values.permute(1, 2, 0).numpy()
    return array


def mirrored(caption: str = CAPTION) -> int:
    """A seed for which the picture is mirrored."""
    raw = mapped_raw("controlnet", caption=caption)
    config = Config(resolution=HEIGHT, mirror=True)
    found = (s for s in range(20) if crop_sample(raw, read_record(raw), np.random.default_rng(s), config)[1].mirrored)
    return next(found)


@pytest.mark.parametrize("name", [*SHOWN, *FROM_PICTURE])
def test_every_map_has_the_picture_s_square_and_its_channels(name: str) -> None:
    for side in (HEIGHT, 40):
        shown = show(name, resolution=side)
        assert shown.shape == (side, side, channels_of(name))
        assert shown.max() > shown.min()


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("side", [HEIGHT, 40])
def test_a_map_moves_with_its_picture(mirror: bool, side: int) -> None:
    """The picture's own grey as its map: both are cropped, scaled and mirrored by the same numbers."""
    raw = mapped_raw("controlnet")
    raw = {**raw, "sketch.png": encode_png(decode_image(raw["jpg"]).mean(2).astype(np.uint8))}
    shown, picture = show_both("sketch", raw, mirrored() if mirror else 0, mirror=mirror, resolution=side)
    assert np.abs(shown[..., 0] * 255 - picture.mean(2)).max() <= 2.5
    assert np.abs(shown[..., 0] - shown[:, ::-1, 0]).max() > 0.3  # the mirrored one is another picture


def test_canny_edges_are_those_of_the_thresholds() -> None:
    """The edge's gradient grows from 0 to 400 down a column: it starts above the lower threshold."""
    gradient = stored()["canny"][:, 40]
    for low, high in ((100, 200), (20, 390), (50, 399)):
        edge = show("canny", canny_low=low, canny_high=high)
        np.testing.assert_array_equal(edge[:, 40 - LEFT, 0], gradient > low)
        assert edge.sum() == (gradient > low).sum()
    assert not show("canny", canny_low=100, canny_high=400).any()


def test_random_thresholds_are_within_their_range_and_a_function_of_the_generator() -> None:
    starts = {seed: int(show("canny", seed=seed, canny_shift=50)[:, :, 0].sum()) for seed in range(40)}
    assert starts == {seed: int(show("canny", seed=seed, canny_shift=50)[:, :, 0].sum()) for seed in range(40)}
    gradient = stored()["canny"][:, 40]
    fewest, most = (gradient > 150).sum(), (gradient > 50).sum()
    assert fewest <= min(starts.values()) < fewest + 3
    assert most - 3 < max(starts.values()) <= most


def test_soft_edges_are_cut_at_a_number_of_the_range() -> None:
    soft = show("sketch")
    assert len(np.unique(soft)) > 20
    np.testing.assert_array_equal(show("sketch", edge_threshold=(0.5, 0.5)), soft > 0.5)
    shares = [show("sketch", seed=seed, edge_threshold=(0.3, 0.8)).mean() for seed in range(40)]
    assert (soft > 0.8).mean() <= min(shares) < 0.3
    assert 0.7 < max(shares) <= (soft > 0.3).mean()


def test_scribbles_and_lines_are_binary() -> None:
    ramp = stored()["lines"][:, LEFT : LEFT + HEIGHT]
    np.testing.assert_array_equal(show("scribble")[..., 0], ramp >= 128)
    np.testing.assert_array_equal(show("lines")[..., 0], ramp > 0)
    np.testing.assert_array_equal(show("lines", line_length=0.5)[..., 0], ramp >= 128)


def test_depth_is_stretched_within_the_crop() -> None:
    shown = show("depth")[..., 0]
    assert (shown.min(), shown.max()) == (0, 1)
    assert (np.diff(shown, axis=1) >= 0).all()  # nearer to the right


@pytest.mark.parametrize("mirror", [False, True])
def test_mirroring_negates_the_x_of_normals(mirror: bool) -> None:
    """Normals that lean to the right on the left side lean to the left on the right side of the mirrored picture."""
    shown = show("normal", seed=mirrored() if mirror else 0, mirror=mirror) * 2 - 1
    left, right = shown[:, :24].reshape(-1, 3), shown[:, 40:].reshape(-1, 3)
    leaning, flat = (right, left) if mirror else (left, right)
    np.testing.assert_allclose(leaning, np.broadcast_to((-0.6 if mirror else 0.6, 0, 0.8), leaning.shape), atol=0.02)
    np.testing.assert_allclose(flat, np.broadcast_to((0, 0, 1), flat.shape), atol=0.02)


def test_scaled_normals_keep_unit_length() -> None:
    lengths = np.linalg.norm(show("normal", resolution=24) * 2 - 1, axis=2)
    np.testing.assert_allclose(lengths, 1, atol=0.02)


@pytest.mark.parametrize("mirror", [False, True])
def test_mirroring_swaps_left_and_right_of_people(mirror: bool) -> None:
    points = np.array(PERSON.points)
    if mirror:
        points = points[list(MIRRORED)] * (-1, 1, 1) + (WIDTH - 1, 0, 0)
    expected = draw_people([points], WIDTH, HEIGHT)[:, LEFT : LEFT + HEIGHT]
    shown = show("pose", seed=mirrored() if mirror else 0, mirror=mirror) * 255
    error = np.abs(shown - expected).mean()
    if not mirror:
        assert error == 0
    else:  # but for the edges of the drawn limbs; with the sides' colours as they were, most of it is wrong
        assert error < np.abs(shown - show("pose")[:, ::-1] * 255).mean() / 3


def test_labels_are_never_mixed() -> None:
    """Whatever the size, there are the three classes' colours alone, and each where its segment is."""
    full = {tuple(color) for color in show("segmentation").reshape(-1, 3)}
    assert len(full) == 3
    for side in (40, 104):
        shown = show("segmentation", resolution=side)
        assert {tuple(color) for color in shown.reshape(-1, 3)} == full
        assert (shown[side - 1, 0] != shown[side - 1, side - 1]).any()
        assert (shown[0, 0] != shown[side - 1, 0]).any()


def test_pictures_whose_caption_names_a_side_are_not_mirrored() -> None:
    raw, config = mapped_raw("controlnet", caption=SIDED), Config(resolution=HEIGHT, mirror=True)
    crops = [crop_sample(raw, read_record(raw), np.random.default_rng(seed), config)[1] for seed in range(20)]
    assert not any(crop.mirrored for crop in crops)


def test_the_spatial_palette_has_a_colour_per_cell() -> None:
    shown, picture = show_both("color", color_cells=4)
    cells = shown.reshape(4, 16, 4, 16, 3)
    assert (cells == cells[:, :1, :, :1]).all()
    means = picture.reshape(4, 16, 4, 16, 3).mean((1, 3)) / 255
    assert np.abs(cells[:, 0, :, 0] - means).mean() < 0.1


def test_a_sample_without_the_map_cannot_be_used() -> None:
    with pytest.raises(RecordError, match="it has no map 'depth', but canny, pose"):
        show("depth", mapped_raw("controlnet", kinds=("canny", "pose")))
    small = {**mapped_raw("controlnet"), "canny.png": encode_png(np.zeros((4, 4), np.uint16))}
    with pytest.raises(RecordError, match="its map 'canny' has another size than its picture"):
        show("canny", small)


def test_a_drawn_map_is_shown_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
    colored, grey = given_map(pixels, "segmentation", 30), given_map(pixels, "canny", 30)
    np.testing.assert_allclose(colored.permute(1, 2, 0), pixels[:, 10:40] / 255, atol=1e-6)
    torch.testing.assert_close(grey, colored.mean(0, keepdim=True))
    assert three_channels(grey).shape == three_channels(colored).shape == (3, 30, 30)
    crop = crop_middle(50, 30, 15, mirrored=False)
    np.testing.assert_array_equal(given_map(pixels, "pose", 15).permute(1, 2, 0), crop.crop_values(pixels / 255))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"map": "cany"}, "there is no map 'cany', did you mean 'canny'"),
        ({"canny_low": 300}, "canny_low is above canny_high"),
        ({"edge_threshold": (0.8, 0.3)}, "edge_threshold needs two numbers"),
    ],
)
def test_impossible_configs_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**fields)
    for maps, problem in (
        (("canny", "cany"), "there is no map 'cany'"),
        (("depth", "depth"), "'depth' is named twice"),
    ):
        with pytest.raises(ValueError, match=problem):
            t2i_adapter.Config(maps=maps)
