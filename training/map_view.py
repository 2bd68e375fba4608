"""Condition maps as models are shown them: cropped with their picture, thresholds drawn, in [0, 1].

A sample holds its maps soft (`schemas.maps`). Each kind becomes what the published trainers show:

    canny         edges for thresholds that are moved at random by `canny_shift`, white on black
    sketch, edges soft, or cut at a random number of `edge_threshold`, white on black
    scribble      cut at `STROKE`, white on black
    lines         lines of at least `line_length`, white on black
    depth         stretched to [0, 1], nearer is lighter
    normal        (x, y, z) of unit length from [-1, 1]; mirroring a picture negates x
    pose          key points; in a mirrored picture left and right change places, and with them the colours
    segmentation  each segment in the colour of its class
    color         the picture in cells, a colour each (T2I-Adapter's spatial palette)
    intensity     the picture in grey
    tile          the picture without detail (ControlNet)
    shuffle       the picture moved about at random: its style without its layout (ControlNet)

The last four are made of the picture and need not be stored.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.errors import RecordError
from schemas.maps import MIRRORED, STROKE, canny_edges, color_segments, decode_map, draw_people, min_max, to_values
from schemas.rejects import Reason
from schemas.samples.mapped import Record
from training.configs.maps import FROM_PICTURE, MapsConfig
from training.geometry import Crop, crop_middle, decode, draw_mirrored, open_jpeg
from training.maps import intensity, shuffle_content, spatial_palette, tile
from training.shards import Raw

TILE = 8
"""Side, in pixels, of the squares whose detail the map tile lacks (our choice; ControlNet draws it)."""
COLORED = ("normal", "pose", "segmentation", "instances", "color", "tile", "shuffle")
"""Maps of three channels; the others have one."""
LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in the map intensity (ITU-R BT.601)."""


def channels_of(name: str) -> int:
    """Channels of a map as models are shown it, 1 or 3."""
    return 3 if name in COLORED else 1


def read_record(raw: Raw) -> Record:
    """Read a sample's record.

    Raises:
        pydantic.ValidationError: it is none of a recipe with condition maps.
    """
    return Record.model_validate_json(raw.get("json", b""))


def crop_sample(raw: Raw, record: Record, rng: np.random.Generator, config: MapsConfig) -> tuple[Tensor, Crop]:
    """Crop the middle of a sample's picture to [3, R, R] uint8, mirrored at random; return the crop for its maps too.

    Raises:
        RecordError: the picture cannot be decoded.
    """
    opened = open_jpeg(raw.get("jpg", b""), record.width, record.height)
    mirrored = config.mirror and draw_mirrored(record.caption, rng)
    crop = crop_middle(record.width, record.height, config.resolution, mirrored=mirrored)
    picture = crop.crop_picture(decode(opened, crop, [], config.resolution))
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))), crop


def shown_map(
    raw: Raw, record: Record, name: str, picture: Tensor, crop: Crop, rng: np.random.Generator, config: MapsConfig
) -> Tensor:
    """A map of a sample as a model is shown it, [1 or 3, R, R] uint8; 255 stands for 1.

    Args:
        raw: the sample.
        record: its record.
        name: of the map.
        picture: the sample's, cropped, [3, R, R] uint8.
        crop: how it was cropped.
        rng: draws thresholds.
        config: their ranges.

    Raises:
        RecordError: the sample has no such map, or it cannot be decoded.
    """
    if name in FROM_PICTURE:
        values = MADE[name](picture.permute(1, 2, 0).numpy(), rng, config)
    else:
        values = SHOWN[name](_stored(raw, record, name), record, crop, rng, config)
    rounded = np.rint(np.asarray(values, np.float32) * 255).clip(0, 255).astype(np.uint8)
    return torch.from_numpy(np.ascontiguousarray(rounded.transpose(2, 0, 1)))


def three_channels(shown: Tensor) -> Tensor:
    """Repeat the channel of maps [..., 1, R, R]; those of three channels stay as they are."""
    return shown.expand(*shown.shape[:-3], 3, *shown.shape[-2:])


def given_map(pixels: NDArray[np.uint8], name: str, side: int) -> Tensor:
    """A map that somebody drew, as a model is shown it: its middle, [C, side, side] float32 in [0, 1].

    Args:
        pixels: [H, W, 3] uint8, or of a masked picture [H, W, 4], masked where it is transparent.
        name: of the map.
        side: in pixels.
    """
    height, width = pixels.shape[:2]
    cropped = crop_middle(width, height, side, mirrored=False).crop_values(pixels / 255)
    if name == "masked":
        is_masked = cropped[..., 3:] < 0.5
        shown = np.concatenate([np.where(is_masked, 0, cropped[..., :3]), is_masked], axis=2).astype(np.float32)
    else:
        shown = cropped if name in COLORED else cropped.mean(axis=2, keepdims=True)
    return torch.from_numpy(np.ascontiguousarray(shown.transpose(2, 0, 1)))


def _stored(raw: Raw, record: Record, name: str) -> NDArray[Any]:
    """The pixels of a map, [H, W] or [H, W, 3].

    Raises:
        RecordError: the sample has none of this kind, or it cannot be decoded or has another size than the picture.
    """
    if name not in record.maps:
        raise RecordError(Reason.MISSING_MAP, f"it has no map {name!r}, but {', '.join(record.maps)}")
    pixels = decode_map(name, raw.get(f"{name}.png", b""))
    if pixels.shape[:2] != (record.height, record.width):
        raise RecordError(Reason.INVALID_MAP, f"its map {name!r} has another size than its picture")
    return pixels


def _canny(
    gradient: NDArray[Any], _record: Record, crop: Crop, rng: np.random.Generator, config: MapsConfig
) -> NDArray[Any]:
    shift = config.canny_shift
    low, high = np.array([config.canny_low, config.canny_high]) + (rng.uniform(-shift, shift, 2) if shift else 0)
    return crop.crop_values(canny_edges(gradient, max(low, 0), max(high, 0))[..., None])


def _edges(
    strength: NDArray[Any], _record: Record, crop: Crop, rng: np.random.Generator, config: MapsConfig
) -> NDArray[Any]:
    soft = crop.crop_values(strength[..., None] / 255)
    if config.edge_threshold is None:
        return soft
    return soft > rng.uniform(*config.edge_threshold)


def _scribble(
    strength: NDArray[Any], _record: Record, crop: Crop, _rng: np.random.Generator, _config: MapsConfig
) -> NDArray[Any]:
    return crop.crop_values(strength[..., None] >= STROKE * 255)


def _lines(
    lengths: NDArray[Any], _record: Record, crop: Crop, _rng: np.random.Generator, config: MapsConfig
) -> NDArray[Any]:
    return crop.crop_values(((lengths > 0) & (lengths >= config.line_length * 255))[..., None])


def _depth(
    nearness: NDArray[Any], _record: Record, crop: Crop, _rng: np.random.Generator, _config: MapsConfig
) -> NDArray[Any]:
    return min_max(np.rint(crop.crop_values(nearness[..., None])).astype(np.uint16))


def _normal(
    encoded: NDArray[Any], record: Record, crop: Crop, _rng: np.random.Generator, _config: MapsConfig
) -> NDArray[Any]:
    normals: NDArray[Any] = crop.crop_values(to_values("normal", encoded, record.maps["normal"].range))
    if crop.mirrored:
        normals = normals * np.array([-1, 1, 1], np.float32)
    lengths = np.linalg.norm(normals, axis=2, keepdims=True)
    return (normals / np.maximum(lengths, 1e-6) + 1) / 2


def _pose(
    drawn: NDArray[Any], record: Record, crop: Crop, _rng: np.random.Generator, _config: MapsConfig
) -> NDArray[Any]:
    if crop.mirrored:  # what is cropped is mirrored too: the points keep their places and change their sides
        people = [np.array(person.keypoints)[list(MIRRORED)] for person in record.people or ()]
        drawn = draw_people(people, record.width, record.height)
    return crop.crop_values(drawn / 255)


def _segmentation(
    numbers: NDArray[Any], record: Record, crop: Crop, _rng: np.random.Generator, _config: MapsConfig
) -> NDArray[Any]:
    colors = {segment.id: segment.color for segment in record.segments or ()}
    ordered = [colors.get(number, (0, 0, 0)) for number in range(1, max(colors, default=0) + 1)]
    return color_segments(crop.crop_labels(numbers), ordered) / 255


def _color(picture: NDArray[np.uint8], _rng: np.random.Generator, config: MapsConfig) -> NDArray[Any]:
    return spatial_palette(picture, max(1, config.resolution // config.color_cells)) / 255


def _intensity(picture: NDArray[np.uint8], _rng: np.random.Generator, _config: MapsConfig) -> NDArray[Any]:
    return intensity(picture, LUMA)[..., None] / 255


def _tile(picture: NDArray[np.uint8], _rng: np.random.Generator, _config: MapsConfig) -> NDArray[Any]:
    return tile(picture, TILE) / 255


def _shuffle(picture: NDArray[np.uint8], rng: np.random.Generator, _config: MapsConfig) -> NDArray[Any]:
    return shuffle_content(picture, rng) / 255


SHOWN: Mapping[str, Callable[..., NDArray[Any]]] = {
    "canny": _canny,
    "sketch": _edges,
    "edges": _edges,
    "scribble": _scribble,
    "lines": _lines,
    "depth": _depth,
    "normal": _normal,
    "pose": _pose,
    "segmentation": _segmentation,
}
"""By the names of `schemas.maps.MAPS`, what makes [R, R, C] values in [0, 1] of a stored map."""
MADE: Mapping[str, Callable[..., NDArray[Any]]] = {
    "color": _color,
    "intensity": _intensity,
    "tile": _tile,
    "shuffle": _shuffle,
}
"""By the names of `FROM_PICTURE`, what makes [R, R, C] values in [0, 1] of a picture [R, R, 3]."""
