"""The step that makes the wanted maps of each picture, from its pixels and from what earlier steps found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import apache_beam as beam
import cv2
import numpy as np

from schemas.errors import RecordError
from schemas.example import Example
from schemas.maps import SEEN, Map, Parameter, Person, decode_map, draw_people, make_map, min_max, to_pixels, to_values
from schemas.palettes import Palette
from schemas.rejects import Reason
from transforms.batch import Batch, each
from transforms.maps.edges import canny_gradient, scribble, straight_lines, xdog_sketch
from transforms.maps.given import DepthFiles, read_given
from transforms.maps.normals import camera_normals, relief_normals
from transforms.maps.segmentation import number_segments
from transforms.step import Step, map_batches

STAGE = "maps"
SKETCH = {"sigma": 1.0, "ratio": 1.6, "tau": 0.99, "phi": 40.0}
"""Parameters of sketches, see `xdog_sketch`: of 27 sets on 16 scenes, half of the strength then finds 82 % of the
outlines with a precision of 97 %."""
SCRIBBLE = {"sigma": 3.0, "radius": 6.0}
"""Parameters of scribbles, see `scribble`."""

SOURCES = {"normal": ("depth",), "scribble": ("edges", "sketch")}
"""The maps that a map is made from, where there is no better."""


@dataclass(frozen=True)
class Drawing:
    """How maps are made.

    Attributes:
        palette: the colours of classes.
        depth_files: what depth maps of the source hold.
        focal: focal length of the camera in pixels, for normals from distances; None: it is not known.
        relief: how high the nearest point rises above the farthest where it is not, as a share of the longer side.
        background: nearness, from 0 for the farthest point to 1, below which a surface counts as facing the viewer.
        min_points: least share of a person's key points that are seen; with fewer, the person is left out.
    """

    palette: Palette = "coco"
    depth_files: DepthFiles = "nearness"
    focal: float | None = None
    relief: float = 0.5
    background: float = 0.1
    min_points: float = 0.3


Draw = Callable[[Example, Mapping[str, Map], Drawing], Map]


def draw_maps(example: Example, wanted: Sequence[str], drawing: Drawing) -> Example:
    """Fill `maps` with the wanted kinds, in their order. What the source gives is used as it is.

    Raises:
        RecordError: MISSING_MAP, neither the source nor a model gives a map; INVALID_MAP, what the source gives cannot
            be used; NO_PERSON, NO_SEGMENT, there is nothing to show.
    """
    size = (example.height, example.width)
    example = replace(example, people=enough_points(example.people or (), drawing.min_points))
    made = [kind for kind in wanted if kind not in example.given]
    needed = {*wanted, *(source for kind in made for source in SOURCES.get(kind, ()))}
    given = {k: read_given(k, png, size, drawing.depth_files) for k, png in example.given.items() if k in needed}
    maps = {**example.maps, **given}
    for kind in made:
        if kind not in maps:
            if kind not in DRAW:
                raise _missing(kind)
            maps[kind] = DRAW[kind](example, maps, drawing)
    return replace(example, maps={kind: maps[kind] for kind in wanted}, given={})


def enough_points(people: Sequence[Person], least: float) -> tuple[Person, ...]:
    """Those people of whose key points at least the share `least` is seen."""
    return tuple(p for p in people if sum(score >= SEEN for _, _, score in p.points) >= least * len(p.points))


def _missing(kind: str) -> RecordError:
    return RecordError(
        Reason.MISSING_MAP,
        f"no {kind} map is beside the picture, and no model makes one: --preset hub or --model {kind}=...",
    )


def _opencv(name: str) -> tuple[str, str]:
    return f"opencv {name}", cv2.__version__


def _canny(example: Example, _maps: Mapping[str, Map], _drawing: Drawing) -> Map:
    return make_map("canny", canny_gradient(example.pixels()), *_opencv("Canny"), {"aperture": 3, "norm": "L1"})


def _sketch(example: Example, _maps: Mapping[str, Map], _drawing: Drawing) -> Map:
    strength = xdog_sketch(example.pixels(), SKETCH["sigma"], SKETCH["ratio"], SKETCH["tau"], SKETCH["phi"])
    return make_map("sketch", to_pixels("sketch", strength), *_opencv("XDoG"), SKETCH)


def _scribble(example: Example, maps: Mapping[str, Map], drawing: Drawing) -> Map:
    soft = maps.get("edges") or maps.get("sketch") or _sketch(example, maps, drawing)
    strength = to_values(soft.kind, decode_map(soft.kind, soft.png), soft.range)
    strokes = scribble(strength, SCRIBBLE["sigma"], SCRIBBLE["radius"])
    parameters: dict[str, Parameter] = {"of": soft.kind, **SCRIBBLE}
    return make_map("scribble", to_pixels("scribble", strokes), *_opencv("ridges"), parameters)


def _lines(example: Example, _maps: Mapping[str, Map], _drawing: Drawing) -> Map:
    lengths = straight_lines(example.pixels())
    # Rounded up, so that the shortest line is no background.
    pixels = to_pixels("lines", np.ceil(lengths * 255) / 255)
    return make_map("lines", pixels, *_opencv("LineSegmentDetector"), {"refine": "standard"})


def _normal(_example: Example, maps: Mapping[str, Map], drawing: Drawing) -> Map:
    if "depth" not in maps:
        raise _missing("depth")
    depth = maps["depth"]
    pixels = decode_map("depth", depth.png)
    parameters: dict[str, Parameter]
    if drawing.focal is not None and depth.parameters.get("files") == "distance":
        inverse = np.where(pixels > 0, to_values("depth", pixels, depth.range), np.nan)
        normals = np.nan_to_num(camera_normals(inverse, drawing.focal))  # grey where the distance is not known
        parameters = {"focal": drawing.focal}
    else:
        nearness = min_max(pixels)
        normals = relief_normals(nearness * drawing.relief * max(pixels.shape))
        normals[nearness < drawing.background] = (0, 0, 1)
        parameters = {"relief": drawing.relief, "background": drawing.background}
    return make_map("normal", to_pixels("normal", normals), *_opencv("Sobel"), parameters)


def _pose(example: Example, _maps: Mapping[str, Map], _drawing: Drawing) -> Map:
    if not example.people:
        raise RecordError(Reason.NO_PERSON, "no person's key points are known: there is no pose to show")
    drawn = draw_people([np.array(person.points) for person in example.people], example.width, example.height)
    return make_map("pose", drawn, "OpenPose drawing", "18 points", {"people": len(example.people)})


def _segmentation(example: Example, _maps: Mapping[str, Map], drawing: Drawing) -> Map:
    if not example.segments:
        raise RecordError(Reason.NO_SEGMENT, "none found")
    numbers = number_segments(example.segments, (example.height, example.width))
    parameters: dict[str, Parameter] = {"palette": drawing.palette, "segments": len(example.segments)}
    return make_map("segmentation", numbers, "segments", "", parameters)


DRAW: Mapping[str, Draw] = {
    "canny": _canny,
    "sketch": _sketch,
    "scribble": _scribble,
    "lines": _lines,
    "normal": _normal,
    "pose": _pose,
    "segmentation": _segmentation,
}
"""What makes a map of an example, of the maps that are there, by kind; the others come from a model or the source."""


@dataclass(eq=False)
class DrawMaps(Step):
    """Fill `maps` with the kinds `wanted`."""

    wanted: Sequence[str]
    drawing: Drawing = Drawing()

    def libraries(self) -> Sequence[str]:
        """OpenCV."""
        return ("opencv-python-headless",)

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Make each example's."""
        wanted, drawing = self.wanted, self.drawing
        return map_batches(batches, STAGE, each(lambda example: draw_maps(example, wanted, drawing)))
