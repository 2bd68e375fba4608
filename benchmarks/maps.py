"""Condition maps against what is known to be true, on scenes that no model was trained on and on measured depth.

    python -m benchmarks.maps [--count 100] [--real FOLDER] [--write]

The truths are the scenes' outlines, depth and normals, Middlebury's disparity, OpenCV's own Canny, and the published
construction of Composer's palette. Edges are compared with the outlines of what is seen of the objects, where a pixel
within two of the other counts as the same. Precision is that of scenes whose objects are all plain: the edges of
stripes and dots are no outlines. Angles are between normals; the scenes' true normals are closed formulas, Middlebury's
are cross products of neighbouring points in space. FOLDER holds `middlebury_motorcycle` (see its SOURCE.txt).
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_dilation, distance_transform_edt
from skimage.color import rgb2lab

from benchmarks.accuracy import SEED, SHARED
from benchmarks.tables import Row, Write, report
from jobs.scenes import scene_of
from schemas.example import Segment
from schemas.images import decode_image, encode_jpeg
from schemas.maps import canny_edges, decode_map, encode_png, to_pixels, to_values
from schemas.masks import Mask
from transforms.maps.draw import SKETCH
from transforms.maps.edges import canny_gradient, scribble, straight_lines, xdog_sketch
from transforms.maps.given import read_given
from transforms.maps.normals import camera_normals, relief_normals
from transforms.maps.palette import color_histogram, palette_colors
from transforms.maps.segmentation import number_segments
from transforms.models.presets import resolve
from transforms.scenes import Scene
from transforms.scenes.relief import outlines, true_relief

REAL = SHARED / "real"
FOCAL, BASELINE, SHIFT = 994.978, 193.001, 31.086
"""Of the Motorcycle at a quarter of its size: focal length in pixels, baseline in mm, shift of principal points."""
CENTER = (311.193, 254.877)
NEAR = 2
"""Pixels between an edge and an outline that still count as the same."""

EDGES: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.bool_]]] = {
    "canny, 100 and 200": lambda picture: canny_edges(canny_gradient(picture), 100, 200),
    "canny, 50 and 100": lambda picture: canny_edges(canny_gradient(picture), 50, 100),
    "sketch, 0.5": lambda picture: xdog_sketch(picture, *SKETCH.values()) >= 0.5,
    "scribble, 0.5": lambda picture: scribble(xdog_sketch(picture, *SKETCH.values())) >= 0.5,
    "lines": lambda picture: straight_lines(picture) > 0,
}
"""Maps of edges, thresholded."""


def measure(count: int, real: Path) -> list[Row]:
    """Measure on `count` scenes and, where it is there, the measured disparity in `real`."""
    scenes = [scene_of(SEED, index) for index in range(count)]
    pictures = [decode_image(encode_jpeg(scene.image)) for scene in scenes]  # as a dataset stores them
    return [
        *edge_rows(scenes, pictures),
        *depth_rows(scenes),
        *(middlebury_rows(real / "middlebury_motorcycle")),
        *segmentation_rows(scenes, pictures),
        *palette_rows(pictures),
        *time_rows(pictures),
    ]


def edge_rows(scenes: list[Scene], pictures: list[NDArray[np.uint8]]) -> Iterator[Row]:
    """Agreement with OpenCV, and precision and recall of edges."""
    thresholds = [(low, high) for low in (20, 100, 180.5) for high in (100, 200, 400)]
    different = sum(
        int(((cv2.Canny(picture, low, high) > 0) != canny_edges(canny_gradient(picture), low, high)).sum())
        for picture in pictures
        for low, high in thresholds
    )
    pairs = len(pictures) * len(thresholds)
    yield Row("canny: pixels that differ from cv2.Canny", f"{different:,}", f"0 expected; {pairs} maps")
    for name, find in EDGES.items():
        found = [find(picture) for picture in pictures]
        truths = [outlines(scene) for scene in scenes]
        recall = [_covered(truth, edges) for truth, edges in zip(truths, found, strict=True)]
        plain = [all(thing.texture == "plain" for thing in scene.objects) for scene in scenes]
        kept = [_covered(edges, truth) for truth, edges, is_plain in zip(truths, found, plain, strict=True) if is_plain]
        yield Row(f"{name}: recall of outlines", f"{np.nanmean(recall):.3f}", f"{len(scenes)} scenes")
        yield Row(f"{name}: precision", f"{np.nanmean(kept):.3f}", f"{sum(plain)} scenes of plain objects")


def _covered(edges: NDArray[np.bool_], others: NDArray[np.bool_]) -> float:
    """The share of `edges` that is near one of `others`; NaN if there are none."""
    if not edges.any():
        return float("nan")
    near = distance_transform_edt(~others) <= NEAR if others.any() else np.zeros_like(edges)
    return float(near[edges].mean())


def depth_rows(scenes: list[Scene]) -> Iterator[Row]:
    """The order of objects in stored depth, and the angles of normals from it and of stored normals."""
    right, inner, whole, stored = [], [], [], []
    for scene in scenes:
        height, normals = true_relief(scene)
        side = float(scene.image.shape[0])
        depth = to_values("depth", to_pixels("depth", height, (0.0, side)), (0.0, side))
        medians = [float(np.median(depth[thing.mask])) for thing in scene.objects if thing.mask.any()]
        right += [behind < before for i, behind in enumerate(medians) for before in medians[i + 1 :]]
        found = angles(relief_normals(depth.astype(np.float64)), normals)
        smooth = ~binary_dilation(outlines(scene), np.ones((3, 3)), iterations=3)
        inner.append(found[smooth])
        whole.append(found.ravel())
        stored.append(angles(to_values("normal", to_pixels("normal", normals), (-1.0, 1.0)), normals).ravel())
    yield Row("depth of scenes: pairs of objects in the right order", f"{np.mean(right):.3f}", f"{len(right)} pairs")
    yield from _angle_rows("normals from the scenes' depth, away from outlines", np.concatenate(inner))
    yield from _angle_rows("normals from the scenes' depth, everywhere", np.concatenate(whole))
    yield from _angle_rows("normals of scenes as stored, 8 bits", np.concatenate(stored))


def middlebury_rows(folder: Path) -> Iterator[Row]:
    """The angles of normals from measured disparity, by a depth file in tenths of a millimetre."""
    if not (folder / "motorcycle_disp.npz").is_file():
        yield Row("normals of Middlebury's Motorcycle", "not run", f"{folder} is not there")
        return
    with np.load(folder / "motorcycle_disp.npz") as file:
        disparity = file[file.files[0]].astype(np.float64)
    disparity[~np.isfinite(disparity)] = np.nan
    distance = BASELINE * FOCAL / (disparity + SHIFT)
    truth = normals_in_space(distance)
    tenths = np.nan_to_num(np.rint(distance * 10)).astype(np.uint16)  # of a millimetre, 0 for unknown: a depth file
    depth = read_given("depth", encode_png(tenths), tenths.shape, "distance")
    pixels = decode_map("depth", depth.png)
    inverse = np.where(pixels > 0, to_values("depth", pixels, depth.range), np.nan)
    share = (inverse - np.nanmin(inverse)) / np.nanmax(inverse - np.nanmin(inverse))
    known = np.isfinite(truth).all(axis=2)
    for name, found in (
        ("with its focal length", camera_normals(inverse, FOCAL, CENTER)),
        ("without its principal point", camera_normals(inverse, FOCAL)),
        ("as a relief of half the longer side", relief_normals(share * 0.5 * max(share.shape))),
        ("all facing the viewer, for comparison", np.broadcast_to((0.0, 0.0, 1.0), truth.shape)),
    ):
        is_there = known & np.isfinite(found).all(axis=2)
        yield from _angle_rows(f"normals of Middlebury's Motorcycle, {name}", angles(found, truth)[is_there])


def normals_in_space(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Normals of the surface through the points that pixels show, by cross products of central differences.

    Args:
        distance: along the camera's axis, [H, W] in mm, NaN where it is not known.

    Returns:
        [H, W, 3], x to the right, y up, z to the viewer; NaN where a neighbour is not known.
    """
    rows, columns = np.indices(distance.shape, dtype=np.float64)
    points = np.stack([(columns - CENTER[0]) / FOCAL, (rows - CENTER[1]) / FOCAL, np.ones_like(rows)], axis=2)
    points *= distance[..., None]
    along, down = (np.gradient(points, axis=axis) for axis in (1, 0))
    across = np.cross(along, down)  # away from the camera, whose axis goes into the picture
    unit: NDArray[np.float64] = across / np.linalg.norm(across, axis=2, keepdims=True)
    return unit * np.array([-1.0, 1.0, 1.0]) if np.nanmean(unit[..., 2]) > 0 else unit * np.array([1.0, -1.0, -1.0])


def angles(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Angles between the vectors of two fields, [H, W, 3] each: [H, W] float64 in degrees."""
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    across = np.linalg.norm(np.cross(first, second), axis=2)
    found: NDArray[np.float64] = np.degrees(np.arctan2(across, (first * second).sum(axis=2)))
    return found


def _angle_rows(name: str, found: NDArray[np.float64]) -> Iterator[Row]:
    within = float((found < 11.25).mean())
    note = f"median {np.median(found):.2f}, {within:.1%} within 11.25; {found.size:,} pixels"
    yield Row(f"{name}: mean angle, degrees", f"{found.mean():.2f}", note)


def segmentation_rows(scenes: list[Scene], pictures: list[NDArray[np.uint8]]) -> Iterator[Row]:
    """Maps of true masks, and the class of each pixel by the sample segmenter."""
    from transforms.models.segmenter import load_segmenter, segment_images  # noqa: PLC0415 - it imports torch

    exact, right = [], []
    segmenter = load_segmenter(resolve("sample", {}).segmenter or "")
    for scene, picture in zip(scenes, pictures, strict=True):
        size = picture.shape[0], picture.shape[1]
        things = [thing for thing in scene.objects if thing.mask.any()]
        own = number_segments([Segment(t.noun, 1.0, Mask.from_array(t.mask)) for t in things], size)
        exact += [bool((own[thing.mask] == number).all()) for number, thing in enumerate(things, start=1)]
        truth = np.full(size, "", dtype=object)
        for thing in things:
            truth[thing.mask] = thing.noun
        segments = segment_images(segmenter, [picture])[0]
        labels = np.array(["", *(segment.label for segment in segments)], dtype=object)
        right.append(float((labels[number_segments(segments, size)] == truth).mean()))
    yield Row("segmentation of true masks: objects kept to the pixel", f"{np.mean(exact):.3f}", f"{len(exact)} objects")
    yield Row("segmentation by the sample segmenter: pixels of the right class", f"{np.mean(right):.3f}")


def palette_rows(pictures: list[NDArray[np.uint8]]) -> Iterator[Row]:
    """The palette's sizes, and the distance of histograms from a dense computation of the published formula."""
    sizes = f"{len(palette_colors(5, 5))} and {len(palette_colors(5, 4))}"
    yield Row("palette: colours for 5 lights and for 4", sizes, "180 and 156 published")
    colors = rgb2lab(palette_colors()[None])[0]
    between = ((colors[:, None] - colors[None]) ** 2).sum(axis=2)
    weights = np.exp(-between / (2 * 10.0**2))
    weights /= weights.sum(axis=1, keepdims=True)
    worst = 0.0
    for picture in pictures[:10]:
        lab = rgb2lab(picture).reshape(-1, 1, 3)
        nearest = np.concatenate(
            [((part - colors[None]) ** 2).sum(axis=2).argmin(axis=1) for part in np.array_split(lab, 16)]
        )
        smooth = (weights * np.bincount(nearest, minlength=len(colors)) / len(lab)).sum(axis=1)
        smooth[smooth < 1e-5] = 0
        worst = max(worst, float(np.abs(color_histogram(picture) - smooth / smooth.sum()).max()))
    yield Row("palette: largest difference of a share from the published formula", f"{worst:.1e}", "10 scenes")


def time_rows(pictures: list[NDArray[np.uint8]]) -> Iterator[Row]:
    """Processor time of each operator, per megapixel of pictures enlarged to 1,024 pixels."""
    large = [
        np.asarray(Image.fromarray(picture).resize((1024, 1024), Image.Resampling.BICUBIC)) for picture in pictures[:4]
    ]
    depth = [picture[..., 0].astype(np.float64) for picture in large]
    operators: dict[str, Callable[[int], Any]] = {
        "canny": lambda i: canny_gradient(large[i]),
        "sketch": lambda i: xdog_sketch(large[i]),
        "scribble, with its sketch": lambda i: scribble(xdog_sketch(large[i])),
        "lines": lambda i: straight_lines(large[i]),
        "normals": lambda i: relief_normals(depth[i]),
        "palette": lambda i: color_histogram(large[i]),
    }
    for name, run in operators.items():
        run(0)
        started = time.process_time()
        for i in range(len(large)):
            run(i)
        seconds = (time.process_time() - started) / len(large)
        yield Row(f"{name}: processor time", f"{1000 * seconds / 1.048576:.0f} ms", "per megapixel")


def main(
    count: Annotated[int, typer.Option(help="Scenes.", min=8)] = 100,
    real: Annotated[Path, typer.Option(help="Folder that holds middlebury_motorcycle.")] = REAL,
    write: Write = False,
) -> None:
    """Measure, and print a table."""
    report("maps", __doc__ or "", measure(count, real), write=write)


if __name__ == "__main__":
    typer.run(main)
