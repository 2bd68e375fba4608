"""What the samples of the recipes with condition maps have in common: `KEY.jpg`, a PNG per map, and a `Record`.

KEY.jpg                the picture
KEY.canny.png          a map per kind that the dataset was built with, each of the picture's size; see `schemas.maps`
KEY.json               a `Record`
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Annotated, Any, Self, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from schemas.boxes import BBox, box_of
from schemas.dataset import Row
from schemas.errors import RecordError
from schemas.example import Example
from schemas.maps import MAPS, Map, Person, decode_map, draw_people
from schemas.masks import MAX_LABELS
from schemas.palettes import Palette, color_of
from schemas.rejects import Reason
from schemas.samples.base import Decoder, Pictures, SampleFormat, SampleRecord, Score, SourceField
from schemas.strict import StrictModel

Pixel = Annotated[float, AfterValidator(lambda value: round(value, 2))]
"""A coordinate in pixels, rounded to two decimals."""


class MapField(StrictModel):
    """How a map was made, and what its pixels mean.

    `operator` is what made it ("source": it came with the picture), `version` that of its library or its checkpoint,
    `parameters` are the operator's, as "sigma=1.0 tau=0.99": a text, so that loaders see one type. The smallest pixel
    has the value `range[0]`, the largest, 255 or 65,535, the value `range[1]`. `mean` is that of all pixels as a share
    of the largest one.
    """

    operator: str
    version: str
    parameters: str
    range: tuple[float, float]
    mean: Score

    @classmethod
    def of(cls, found: Map) -> Self:
        """Return the field of a map."""
        return cls(
            operator=found.operator,
            version=found.version,
            parameters=" ".join(f"{name}={value}" for name, value in found.parameters.items()),
            range=found.range,
            mean=found.mean,
        )


class PersonField(StrictModel):
    """Key points of a person, [17] of [x, y, score], in the order of `schemas.maps.COCO_POINTS`."""

    keypoints: Annotated[list[tuple[Pixel, Pixel, Score]], Field(min_length=17, max_length=17)]

    @classmethod
    def of(cls, person: Person) -> Self:
        """Return the field of a person."""
        return cls(keypoints=list(person.points))


class SegmentField(StrictModel):
    """The segment whose pixels are `id` in the segmentation map; `color` is that of its class in colour maps."""

    id: int
    label: str
    score: Score
    is_thing: bool
    bbox: BBox
    area: int
    color: tuple[int, int, int]


class Record(SampleRecord):
    """The contents of `KEY.json`.

    `maps` says of each map, by kind, how it was made. `people` is there where one of them is `pose`, `segments` where
    one is `segmentation`. `caption_origin` is "source" or the captioner's name.
    """

    key: str
    caption: str
    caption_origin: str
    other_captions: tuple[str, ...] = ()
    width: int
    height: int
    source: SourceField
    maps: Annotated[dict[str, MapField], Field(min_length=1)]
    people: list[PersonField] | None = None
    segments: list[SegmentField] | None = None

    @classmethod
    def from_example(cls, example: Example) -> Self:
        """Return the record of an example whose maps were made.

        Raises:
            RecordError: FLAT_MAP, none of its maps shows anything.
        """
        return cls(**cls.common_fields(example), **map_fields(example))

    def absent_fields(self) -> frozenset[str]:
        """Also the fields that the dataset's maps do not need."""
        return super().absent_fields() | {name for name in ("people", "segments") if getattr(self, name) is None}

    def columns(self) -> Row:
        """Return the kinds of map with the mean of each, those that show nothing, and counts."""
        return {
            "maps": list(self.maps),
            "means": [found.mean for found in self.maps.values()],
            "people": len(self.people or ()),
            "segments": len(self.segments or ()),
        }

    def decoders(self) -> Mapping[str, Decoder]:
        """A PNG for each map."""
        return {f"{kind}.png": partial(decode_map, kind) for kind in self.maps if kind in MAPS}

    def problems(self, pictures: Pictures) -> Iterator[str]:
        """Yield where a map is not what the record says of it."""
        if unknown := sorted(self.maps.keys() - MAPS.keys()):
            yield f"names a map {unknown[0]!r}, which is none of {', '.join(MAPS)}"
            return
        for kind, stated in self.maps.items():
            yield from _map_problems(kind, stated, pictures.get(f"{kind}.png"))
        for kind, details in (("pose", self.people), ("segmentation", self.segments)):
            if (kind in self.maps) != (details is not None):
                yield f"has a {kind} map or what it shows, but not both"
        if (pose := pictures.get("pose.png")) is not None and self.people is not None:
            drawn = draw_people([np.array(p.keypoints) for p in self.people], self.width, self.height)
            if pose.shape == drawn.shape and (pose != drawn).any():
                yield "has a pose map that does not show its people"
        if (numbers := pictures.get("segmentation.png")) is not None and self.segments is not None:
            yield from self._segment_problems(numbers)

    def _segment_problems(self, numbers: NDArray[np.uint8]) -> Iterator[str]:
        areas = np.bincount(numbers.ravel(), minlength=MAX_LABELS + 1)
        for segment in self.segments or ():
            if areas[segment.id] != segment.area:
                yield f"says that segment {segment.id} has {segment.area} pixels, its map {areas[segment.id]}"
            elif segment.area and box_of(numbers == segment.id) != segment.bbox:
                yield f"says that segment {segment.id} has the bbox {list(segment.bbox)}, its map another"
        unknown = set(np.flatnonzero(areas[1:]) + 1) - {segment.id for segment in self.segments or ()}
        if unknown:
            yield f"has a segmentation map with the number {min(unknown)}, which none of its segments has"


def _map_problems(kind: str, stated: MapField, pixels: NDArray[Any] | None) -> Iterator[str]:
    limits = MAPS[kind].range
    if limits is not None and stated.range != limits:
        yield f"says that {kind} has the range {list(stated.range)}: it is {list(limits)}"
    if pixels is not None:
        mean = float(pixels.mean(dtype=np.float64)) / MAPS[kind].largest
        if abs(mean - stated.mean) > 1e-4:
            yield f"says that {kind} has the mean {stated.mean}, its pixels {mean:.4f}: is it another picture's?"


def map_fields(example: Example) -> dict[str, Any]:
    """Return the fields that describe the maps of an example.

    Raises:
        RecordError: FLAT_MAP, none of its maps shows anything.
    """
    if all(found.is_flat for found in example.maps.values()):
        names = ", ".join(example.maps)
        raise RecordError(Reason.FLAT_MAP, f"all pixels of its maps ({names}) are equal: there is nothing to follow")
    fields: dict[str, Any] = {
        "caption_origin": example.caption_origin,
        "maps": {kind: MapField.of(found) for kind, found in example.maps.items()},
    }
    if "pose" in example.maps:
        fields["people"] = [PersonField.of(person) for person in example.people or ()]
    if "segmentation" in example.maps:
        fields["segments"] = _segments(example)
    return fields


def _segments(example: Example) -> list[SegmentField]:
    found = example.maps["segmentation"]
    numbers, palette = decode_map("segmentation", found.png), cast("Palette", found.parameters["palette"])
    areas = np.bincount(numbers.ravel(), minlength=MAX_LABELS + 1)
    return [
        SegmentField(
            id=number,
            label=segment.label,
            score=segment.score,
            is_thing=segment.is_thing,
            bbox=box_of(numbers == number),
            area=int(areas[number]),
            color=color_of(segment.label, palette),
        )
        for number, segment in enumerate(example.segments[:MAX_LABELS], start=1)
        if areas[number]
    ]


def map_members(example: Example) -> dict[str, bytes]:
    """Return the PNG of each map, by member."""
    return {f"{kind}.png": found.png for kind, found in example.maps.items()}


def _flat(example: Example) -> list[str]:
    return [kind for kind, found in example.maps.items() if found.is_flat]


COLUMNS = pa.schema(
    [
        ("maps", pa.list_(pa.string())),
        ("means", pa.list_(pa.float64())),  # of each map, its mean pixel as a share of the largest one
        ("people", pa.int32()),
        ("segments", pa.int32()),
        ("flat", pa.list_(pa.string())),  # maps whose pixels are all equal
        ("annotations_left_out", pa.int32()),  # of the picture's: those that could not be used
    ]
)
INDEX_ONLY: Mapping[str, Callable[[Example], Any]] = {
    "flat": _flat,
    "annotations_left_out": lambda example: example.left_out,
}


def mapped_format(recipe: str) -> SampleFormat:
    """Return the format of a recipe whose samples are a picture, its maps and a `Record`."""
    return SampleFormat(
        recipe=recipe,
        record=Record,
        members={"jpg": lambda example: example.image},
        columns=COLUMNS,
        index_only=INDEX_ONLY,
        more=map_members,
    )
