"""What drawn pictures show of the maps that they were drawn from: each measure takes the map again and compares."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.depth_reader import DepthReader
from benchmarks.text_to_image import Pictures, found_colors, named_colors
from schemas.example import Example
from schemas.maps import canny_edges, decode_map
from training.map_view import LUMA
from training.maps import intensity
from training.shards import Batch
from transforms.maps.edges import canny_gradient, xdog_sketch
from transforms.maps.palette import color_histogram
from transforms.models.clip import Clip, embed_images
from transforms.models.segmenter import Segmenter, segment_images
from transforms.scenes import Scene

BATCH = 16
"""Pictures that are segmented at a time."""
NEAR = 1
"""Distance in pixels within which an edge counts as found."""
EDGES = 100.0, 200.0
"""Thresholds of canny edges."""


@dataclass(frozen=True, eq=False)
class Given:
    """What was given for N pictures.

    Attributes:
        scenes: their scenes.
        examples: with their maps.
        pictures: their own, [N, SIDE, SIDE, 3] uint8.
    """

    scenes: Sequence[Scene]
    examples: Sequence[Example]
    pictures: Pictures


@dataclass(frozen=True)
class Readers:
    """The models that maps are taken with; the one for depth is trained when it is first asked for."""

    segmenter: Segmenter
    clip: Clip
    depth: Callable[[], DepthReader]


def edge_f1(given: Given, pictures: Pictures) -> float:
    """F1 of canny edges, mean over the pictures; an edge within `NEAR` pixels of one of the other counts as found."""
    return float(np.mean([f1(_edges_of(a), _edges_of(b)) for a, b in zip(given.pictures, pictures, strict=True)]))


def _edges_of(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return canny_edges(canny_gradient(picture), *EDGES)


def f1(expected: NDArray[np.bool_], found: NDArray[np.bool_]) -> float:
    """F1 of edges [H, W] bool; those within `NEAR` pixels of one of the other count as found."""
    if not expected.any() or not found.any():
        return float(expected.any() == found.any())
    recall, precision = ((a & _grown(b)).sum() / a.sum() for a, b in ((expected, found), (found, expected)))
    return float(2 * recall * precision / max(recall + precision, 1e-9))


def _grown(edges: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.pad(edges, NEAR)
    size = 2 * NEAR + 1
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size))
    return np.asarray(windows.any((2, 3)))


def depth_error(readers: Readers, given: Given, pictures: Pictures) -> float:
    """Mean absolute error of the estimated nearness, of which 0 and 1 are the farthest and the nearest point."""
    true = np.stack([decode_map("depth", example.maps["depth"].png) for example in given.examples]).astype(np.float32)
    low, high = (getattr(true, name)((1, 2), keepdims=True) for name in ("min", "max"))
    return float(np.abs(readers.depth().read(pictures) - (true - low) / (high - low)).mean())


def segment_iou(readers: Readers, given: Given, pictures: Pictures) -> tuple[float, float]:
    """IoU of each thing and the found segment that overlaps it most: of any class, and of the thing's own."""
    larger = [np.asarray(Image.fromarray(p).resize((256, 256), Image.Resampling.BICUBIC)) for p in pictures]
    found = [s for i in range(0, len(larger), BATCH) for s in segment_images(readers.segmenter, larger[i : i + BATCH])]
    any_class, own_class = [], []
    for example, segments in zip(given.examples, found, strict=True):
        masks = [(s.label, s.mask.to_array()[2::4, 2::4]) for s in segments]
        for thing in example.segments:
            true = thing.mask.to_array()
            overlaps = [(label, (true & mask).sum() / (true | mask).sum()) for label, mask in masks]
            any_class.append(max((share for _, share in overlaps), default=0.0))
            own_class.append(max((share for label, share in overlaps if label == thing.label), default=0.0))
    return float(np.mean(any_class)), float(np.mean(own_class))


def sketch_error(given: Given, pictures: Pictures) -> float:
    """Mean absolute difference of the sketches' strengths, in [0, 1]."""
    pairs = zip(given.pictures, pictures, strict=True)
    return float(np.mean([np.abs(xdog_sketch(a) - xdog_sketch(b)).mean() for a, b in pairs]))


def intensity_error(given: Given, pictures: Pictures) -> float:
    """Mean absolute difference of the greys, in [0, 1]."""
    a, b = (intensity(p, LUMA).astype(float) for p in (given.pictures, pictures))
    return float(np.abs(a - b).mean() / 255)


def palette_distance(given: Given, pictures: Pictures) -> float:
    """Share of the palette's mass that lies on other colours, in [0, 1]."""
    pairs = zip(given.pictures, pictures, strict=True)
    return float(np.mean([np.abs(color_histogram(a) - color_histogram(b)).sum() / 2 for a, b in pairs]))


def image_cosine(readers: Readers, given: Given, pictures: Pictures) -> float:
    """Cosine of the CLIP embeddings."""
    a, b = (embed_images(readers.clip, list(p)) for p in (given.pictures, pictures))
    return float((a * b).sum(1).mean())


def colors_named(given: Given, pictures: Pictures) -> float:
    """Share of the colours named in the captions that the pictures show."""
    shown = [
        color in found_colors(picture)
        for scene, picture in zip(given.scenes, pictures, strict=True)
        for color in sorted(named_colors(scene))
    ]
    return float(np.mean(shown))


def visible_error(batches: Sequence[Batch], pictures: Pictures) -> float:
    """Mean absolute difference of the pixels that the masked picture shows, in [0, 1]."""
    masked = torch.cat([batch["masked"] for batch in batches]).permute(0, 2, 3, 1).numpy()
    visible = masked[..., 3] == 0
    return float(np.abs(masked[..., :3] - pictures / 255)[visible].mean())


Measure = Callable[[Readers, Given, Pictures], float]
MEASURES: Mapping[str, tuple[str, Measure]] = {
    "canny": ("edges within a pixel, F1", lambda _, given, pictures: edge_f1(given, pictures)),
    "depth": ("nearness in [0, 1], mean error", depth_error),
    "segmentation": ("things and segments, IoU", lambda r, g, p: segment_iou(r, g, p)[0]),
    "classes": ("things and segments of their class, IoU", lambda r, g, p: segment_iou(r, g, p)[1]),
    "caption": ("named colours present", lambda _, given, pictures: colors_named(given, pictures)),
    "image": ("CLIP embeddings, cosine", image_cosine),
    "palette": ("palette on other colours, share", lambda _, given, pictures: palette_distance(given, pictures)),
    "sketch": ("sketch in [0, 1], mean error", lambda _, given, pictures: sketch_error(given, pictures)),
    "instances": ("things and segments, IoU", lambda r, g, p: segment_iou(r, g, p)[0]),
    "intensity": ("grey in [0, 1], mean error", lambda _, given, pictures: intensity_error(given, pictures)),
}
"""What is measured by what was given: its title, and how; Composer's masked picture has a measure of its own."""
