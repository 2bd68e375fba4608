"""Segments from COCO's annotations: the pixels of a panoptic PNG, or polygons and run lengths."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from schemas.errors import RecordError
from schemas.example import Example, Segment
from schemas.maps import COCO_POINTS, Person
from schemas.masks import Mask
from schemas.rejects import Reason
from transforms.sources.files import MAX_PICTURE, File

Categories = Mapping[int, tuple[str, bool]]
"""Name of a class and whether it is a thing, by category ID."""


def mismatch(detail: str) -> RecordError:
    """The error for an annotation that does not fit its picture."""
    return RecordError(Reason.MISMATCHED_ANNOTATION, detail)


def check_size(example: Example, size: tuple[int, int]) -> None:
    """Check that `size`, (height, width) in the annotation, is the picture's.

    It also fails if only the EXIF orientation differs, as it is unknown whether the masks were drawn before or after
    rotating the picture.

    Raises:
        RecordError: MISMATCHED_ANNOTATION, it is another size.
    """
    if size != (example.height, example.width):
        raise mismatch(
            f"the picture is {example.width} x {example.height} pixels (upright), "
            f"its annotation is for {size[1]} x {size[0]}"
        )


def hashable(number: Any) -> Any:  # noqa: ANN401
    """An ID as it stands in the JSON; a list or an object, which cannot be a key, as text."""
    return repr(number) if isinstance(number, list | dict) else number


def is_set(value: object) -> bool:
    """Whether a flag of a JSON is set: 1 or true, also as a text."""
    return str(value).strip().lower() not in ("", "0", "0.0", "false", "no", "none", "null")


@dataclass(frozen=True)
class PanopticSegment:
    """A row of `segments_info`; `area` in pixels, None if it is not given; `label` is None for an unknown category."""

    id: int
    label: str | None
    is_thing: bool
    area: int | None


@dataclass(frozen=True)
class PanopticTruth:
    """A panoptic PNG and the rows of its JSON."""

    png: File | None
    infos: tuple[PanopticSegment, ...]

    @classmethod
    def of(cls, png: File | None, infos: Sequence[Mapping[str, Any]], categories: Categories) -> Self:
        """Take `segments_info`."""
        return cls(png, tuple(_panoptic_segment(info, categories) for info in infos))

    @property
    def stamp(self) -> str:
        """The PNG's stamp and the rows."""
        return f"{self.png.stamp if self.png else ''} {self.infos}"

    def segments(self, size: tuple[int, int]) -> tuple[tuple[Segment, ...], int]:
        """Return a segment per row of the JSON, score 1, and the number of rows that are left out.

        Those are the rows whose category is unknown. `size` is the picture's (height, width) in pixels.

        Raises:
            RecordError: MISMATCHED_ANNOTATION, the PNG is missing or corrupt, or differs from the JSON in its size, its
                segments or the number of pixels of a segment; or all rows are left out.
        """
        if self.png is None:
            raise mismatch("its panoptic PNG is missing")
        ids = decode_ids(self.png.read(MAX_PICTURE), size)
        counts = {int(i): int(n) for i, n in zip(*np.unique(ids, return_counts=True), strict=True) if i != 0}
        self._check(counts)
        segments = [
            Segment(info.label, 1.0, Mask.from_array(ids == info.id), is_thing=info.is_thing)
            for info in self.infos
            if info.label is not None
        ]
        if self.infos and not segments:
            raise mismatch(f"no list names the categories of its {len(self.infos)} segments")
        return tuple(segments), len(self.infos) - len(segments)

    def _check(self, counts: dict[int, int]) -> None:
        listed = [info.id for info in self.infos]
        if len(set(listed)) < len(listed):
            raise mismatch("its JSON lists one segment id twice")
        if unlisted := sorted(set(counts) - set(listed)):
            raise mismatch(f"the PNG holds segments that its JSON does not list: {_some(unlisted)}")
        if absent := sorted(set(listed) - set(counts)):
            raise mismatch(f"the JSON lists segments that the PNG does not hold: {_some(absent)}")
        for info in self.infos:
            if info.area is not None and info.area != counts[info.id]:
                raise mismatch(f"segment {info.id} has {counts[info.id]} pixels in the PNG, {info.area} in its JSON")


@dataclass(frozen=True)
class InstancesTruth:
    """The instance annotations of one picture: (class, is a thing, COCO's `segmentation`) of each.

    `left_out` says of each other annotation what is wrong with it. `people` are those with key points.
    """

    instances: tuple[tuple[str, bool, Any], ...]
    left_out: tuple[str, ...] = ()
    people: tuple[Person, ...] = ()

    @classmethod
    def of(cls, annotations: Sequence[Mapping[str, Any]], categories: Categories) -> Self:
        """Take a picture's annotations, in the order of their ids.

        A crowd is kept, but not as a thing: its mask covers many objects, so it is no single subject. An annotation
        without a mask or a known category is left out, and so are key points that are malformed.
        """
        instances, left_out, people = [], [], []
        for annotation in sorted(annotations, key=_order):
            try:
                people += _people(annotation)
            except (ValueError, TypeError, OverflowError) as error:
                left_out.append(f"the key points of annotation {annotation.get('id')} are malformed: {error}")
        for annotation in sorted(annotations, key=_order):
            if (category := categories.get(hashable(annotation.get("category_id")))) is None:
                left_out.append(_unknown(annotation))
            elif "segmentation" not in annotation:
                left_out.append(f"annotation {annotation.get('id')} ({category[0]}) has no segmentation")
            else:
                label, is_thing = category
                is_thing = is_thing and not is_set(annotation.get("iscrowd"))
                instances.append((label, is_thing, annotation["segmentation"]))
        return cls(tuple(instances), tuple(left_out), tuple(people))

    @property
    def stamp(self) -> str:
        """All instances, people, and what is left out."""
        others = [repr(part) for part in (self.left_out, self.people) if part]
        return "".join([repr(self.instances), *others])

    def segments(self, size: tuple[int, int]) -> tuple[tuple[Segment, ...], int]:
        """Return a segment per annotation, score 1, and the number of annotations that are left out.

        Those are the annotations whose category is unknown and those whose mask is malformed or of another size. COCO
        has a few polygons thinner than a pixel; they cover no pixel, and are neither returned nor counted. `size` is
        the picture's (height, width) in pixels.

        Raises:
            RecordError: MISMATCHED_ANNOTATION, there are annotations, and none of them can be used.
        """
        segments = []
        left_out = [*self.left_out]
        for number, (label, is_thing, segmentation) in enumerate(self.instances):
            try:
                mask = decode_segmentation(segmentation, size)
            except (ValueError, KeyError, TypeError, OverflowError) as error:
                left_out.append(f"the mask of annotation {number} ({label}) is malformed: {error}")
                continue
            if mask.area:
                segments.append(Segment(label, 1.0, mask, is_thing=is_thing))
        check_left_out(left_out, len(segments))
        return tuple(segments), len(left_out)


def check_left_out(problems: Sequence[str], used: int) -> None:
    """Check that something is left of a picture's annotations; `problems` says why each other one is left out.

    Raises:
        RecordError: MISMATCHED_ANNOTATION, none is `used`, and some are left out.
    """
    if problems and not used:
        count = f"all of its annotations are left out ({len(problems)}): " if len(problems) > 1 else ""
        raise mismatch(f"{count}{problems[0]}")


def decode_ids(png: bytes, size: tuple[int, int]) -> NDArray[np.uint32]:
    """Decode a panoptic PNG of `size` (height, width) to IDs [H, W] uint32: R + 256 G + 65,536 B, 0 for no segment.

    Raises:
        RecordError: MISMATCHED_ANNOTATION, it is no RGB PNG, is corrupt or has another size.
    """
    try:
        with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
            if (picture.height, picture.width) != size:
                raise mismatch(
                    f"its PNG is {picture.width} x {picture.height} pixels, the picture {size[1]} x {size[0]}"
                )
            if picture.mode not in ("RGB", "RGBA"):
                raise mismatch(f"its PNG has the mode {picture.mode}: segment ids stand in red, green and blue")
            channels = np.asarray(picture, dtype=np.uint32)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise mismatch(f"its panoptic PNG cannot be decoded: {error}") from error
    return channels[..., 0] + 256 * channels[..., 1] + 65_536 * channels[..., 2]


def decode_segmentation(segmentation: object, size: tuple[int, int]) -> Mask:
    """Decode COCO's `segmentation`, polygons or run lengths (compressed or not), of a picture of `size` (h, w).

    Raises:
        ValueError, KeyError, TypeError, OverflowError: it is malformed or of another size.
    """
    if isinstance(segmentation, list):
        return Mask.from_polygons(segmentation, size)
    if not isinstance(segmentation, Mapping):
        raise TypeError(f"a {type(segmentation).__name__} is neither polygons nor run lengths")
    if tuple(segmentation["size"]) != size:
        raise ValueError(f"it is of {segmentation['size']} (height, width), the picture of {list(size)}")
    if not isinstance(segmentation["counts"], list | str):
        raise TypeError(f"its counts are a {type(segmentation['counts']).__name__}")
    mask = Mask.from_json(segmentation)
    mask.check()
    return mask


def _panoptic_segment(info: Mapping[str, Any], categories: Categories) -> PanopticSegment:
    label, is_thing = categories.get(hashable(info.get("category_id")), (None, False))
    # A crowd is many objects with one ID, and no single subject.
    return PanopticSegment(int(info["id"]), label, is_thing and not is_set(info.get("iscrowd")), info.get("area"))


def _people(annotation: Mapping[str, Any]) -> list[Person]:
    """The person of an annotation with COCO's 17 key points; none if no point is labelled.

    COCO's third number is 0 for a point that is not labelled, 1 for a hidden one, 2 for one that is seen: a half and 1
    of a score.
    """
    numbers = annotation.get("keypoints")
    if not numbers:
        return []
    points = np.asarray(numbers, np.float64)
    if points.size != 3 * len(COCO_POINTS) or not np.isfinite(points).all():
        raise ValueError(f"{points.size} numbers, {3 * len(COCO_POINTS)} finite ones are needed")
    points = points.reshape(-1, 3)
    points[:, 2] = points[:, 2].clip(0, 2) / 2
    return [Person.of(points)] if points[:, 2].any() else []


def _order(annotation: Mapping[str, Any]) -> tuple[bool, Any]:
    """Annotations are ordered by their ids, texts behind numbers."""
    number = annotation.get("id", 0)
    return (False, number) if isinstance(number, int | float) else (True, str(number))


def _unknown(annotation: Mapping[str, Any]) -> str:
    return f"annotation {annotation.get('id')} has the category {annotation.get('category_id')}, which no list names"


def _some(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:5])) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
