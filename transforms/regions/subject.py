"""The one salient subject of a picture, and the filters: BLIP-Diffusion (section 4.1) keeps pictures that have one.

Candidates are the things that annotations mark, or the phrases of the caption that CLIPSeg finds. The subject covers
the largest part of the picture, and nothing else covers nearly as much. Annotated masks mark what stands in the
background too: among these, what is nearer to the middle counts for more, and the subject must be near the middle, in
one piece and not cut off by the picture's border. The authors published no rule; this one needs no training and does
not depend on the order in which a caption names things. A third of the sample scenes pass it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import apache_beam as beam
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from schemas.errors import RecordError
from schemas.example import Box, Example, Phrase, Salience, Segment, Subject
from schemas.masks import Mask
from schemas.rejects import Reason
from transforms.batch import Batch, each
from transforms.step import Step, map_batches
from transforms.text.inflection import PAIRED
from transforms.text.parses import word_set
from transforms.text.plurals import COUNTS
from transforms.text.synonyms import SYNONYMS, plain_label

STAGE = "subject"

INSIDE = 0.8
"""A region of which more than this share lies in the subject is a part of it, or the same thing in other words (the
share above which MIP-Adapter's loader drops the smaller of two boxes)."""

PEOPLE = (
    SYNONYMS["person"]
    | {"person"}
    | word_set("men women boys girls children kids babies ladies crowd team family couple audience band class")
    | word_set("face hair head hand arm leg foot eye ear nose mouth beard finger skin")
)
"""Head nouns of people and of parts of people."""


@dataclass(frozen=True)
class Filters:
    """Bounds on a subject; areas are shares of the picture's, in [0, 1].

    Attributes:
        min_side: smallest shorter side of a picture, pixels.
        min_area: smallest area of the subject.
        max_area: largest area of the subject.
        rival: a candidate with at least this share of the subject's area is a second subject.
        people: accept people as subjects.
        min_centrality, min_wholeness, max_border: bounds on an annotated subject, see `Salience`.
    """

    min_side: int = 0
    min_area: float = 0.0
    max_area: float = 1.0
    rival: float = 0.5
    people: bool = False
    min_centrality: float = 0.0
    min_wholeness: float = 0.0
    max_border: float = math.inf


@dataclass(frozen=True)
class Candidate:
    """A thing that may be the subject.

    `area` is its share of the picture's area, `place` where it is: a mask or [h, w] bool, of the same size for all
    candidates of a picture. `several` says why it may be more than one thing, "" if it is one.
    """

    subject: Subject
    area: float
    place: Mask | NDArray[np.bool_]
    several: str = ""

    @property
    def score(self) -> float:
        """What the subject has most of: the area, of an annotated mask times its centrality."""
        return self.area * (self.subject.salience.centrality if self.subject.salience else 1.0)

    def region(self) -> NDArray[np.bool_]:
        """The place as an array, [h, w] bool."""
        return self.place.to_array() if isinstance(self.place, Mask) else self.place

    def __str__(self) -> str:
        return f"{self.subject.phrase or self.subject.text} ({self.area:.1%})"


def check_size(example: Example, min_side: int) -> Example:
    """Return the example unchanged.

    Raises:
        RecordError: SMALL_IMAGE, its shorter side has fewer than `min_side` pixels.
    """
    if min(example.width, example.height) < min_side:
        detail = f"{example.width} x {example.height} pixels, the shorter side must have {min_side}"
        raise RecordError(Reason.SMALL_IMAGE, detail)
    return example


def choose_subject(candidates: Sequence[Candidate], filters: Filters) -> Subject:
    """Return the candidate of the highest score if it passes the filters and has no rival.

    Raises:
        RecordError: NO_SUBJECT (no candidate), SMALL_SUBJECT, LARGE_SUBJECT, PERSON_SUBJECT, SCATTERED_SUBJECT,
            CUT_SUBJECT, OFF_CENTER_SUBJECT, or MANY_SUBJECTS (a rival of comparable score, or several things with one
            name).
    """
    if not candidates:
        raise RecordError(Reason.NO_SUBJECT, "nothing in the picture could be its subject")
    largest = max(candidates, key=lambda candidate: candidate.score)
    if largest.area < filters.min_area:
        raise RecordError(
            Reason.SMALL_SUBJECT, f"the largest is {largest}, the smallest allowed is {filters.min_area:.1%}"
        )
    if largest.area > filters.max_area:
        raise RecordError(Reason.LARGE_SUBJECT, f"it is {largest}, the largest allowed is {filters.max_area:.1%}")
    if not filters.people and is_person(largest.subject.text):
        raise RecordError(Reason.PERSON_SUBJECT, f"it is {largest}")
    if largest.several:
        raise RecordError(Reason.MANY_SUBJECTS, f"{largest} {largest.several}")
    if largest.subject.salience:
        _check_salience(largest, largest.subject.salience, filters)
    whole = largest.region()
    for other in candidates:
        if (
            other is not largest
            and other.score >= filters.rival * largest.score
            and not _is_part(other.region(), whole)
        ):
            raise RecordError(Reason.MANY_SUBJECTS, f"{largest} and {other}")
    return largest.subject


def _check_salience(candidate: Candidate, salience: Salience, filters: Filters) -> None:
    if salience.wholeness <= filters.min_wholeness:
        detail = f"the largest piece of {candidate} has {salience.wholeness:.0%} of it, it needs more than "
        raise RecordError(Reason.SCATTERED_SUBJECT, f"{detail}{filters.min_wholeness:.0%}")
    if salience.border > filters.max_border:
        detail = f"{candidate} has {salience.border:.2f} of its width and height on the picture's border, at most "
        raise RecordError(Reason.CUT_SUBJECT, f"{detail}{filters.max_border:.2f} is allowed")
    if salience.centrality < filters.min_centrality:
        detail = f"{candidate} has centrality {salience.centrality:.2f}, the smallest allowed is "
        raise RecordError(Reason.OFF_CENTER_SUBJECT, f"{detail}{filters.min_centrality:.2f}")


def salience_of(mask: NDArray[np.bool_]) -> Salience:
    """Measure a mask [H, W] bool that is not empty."""
    height, width = mask.shape
    down, across = mask.sum(1), mask.sum(0)  # pixels of each row, of each column
    area = int(down.sum())
    # Of the center of mass to that of the picture, in its heights and widths: at most half of each.
    y = float(down @ (np.arange(height) + 0.5)) / area / height - 0.5
    x = float(across @ (np.arange(width) + 0.5)) / area / width - 0.5
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    largest = int(np.bincount(labels.ravel())[1:].max())
    border = mask.copy()
    border[1:-1, 1:-1] = False
    sides = np.ptp(np.flatnonzero(down)) + np.ptp(np.flatnonzero(across)) + 2
    return Salience(
        area=area / mask.size,
        centrality=1 - float(np.hypot(y, x)) / float(np.hypot(0.5, 0.5)),
        wholeness=largest / area,
        border=int(border.sum()) / int(sides),
    )


def _is_part(region: NDArray[np.bool_], whole: NDArray[np.bool_]) -> bool:
    return int((region & whole).sum()) > INSIDE * int(region.sum())


def is_person(name: str) -> bool:
    """Whether a head noun or a class names people, or a part of one ("Human face")."""
    words = name.lower().split()
    return words[:1] == ["human"] or words[-1] in PEOPLE


def candidates_of_segments(segments: Sequence[Segment]) -> list[Candidate]:
    """Things, by their masks; stuff ("sky") and crowds are no subjects."""
    found = []
    for segment in segments:
        if segment.is_thing and segment.area:
            salience = salience_of(segment.mask.to_array())
            subject = Subject(plain_label(segment.label), mask=segment.mask, salience=salience)
            found.append(Candidate(subject, salience.area, segment.mask))
    return found


def candidates_of_boxes(boxes: Sequence[Box], size: tuple[int, int], heatmaps: NDArray[np.float32]) -> list[Candidate]:
    """Things with boxes, in a picture of `size` (height, width) pixels.

    The heatmap of a subject is that of its label, `heatmaps` [N, h, w] float32, inside its box.
    """
    found = []
    for box, heatmap in zip(boxes, heatmaps, strict=True):
        inside = _paint_box(box, size, heatmap.shape)
        subject = Subject(plain_label(box.label), heatmap=heatmap * inside)
        several = "" if box.is_single else "is the box of a group"
        found.append(Candidate(subject, float(inside.mean()), inside, several))
    return found


def _paint_box(box: Box, size: tuple[int, int], grid: tuple[int, ...]) -> NDArray[np.bool_]:
    """The cells that a box covers, of a `grid` (rows, columns) over a picture of `size` (height, width): bool."""
    x, y, w, h = box.bbox
    down, across = grid[0] / size[0], grid[1] / size[1]
    inside = np.zeros(grid, bool)
    rows = slice(int(y * down), max(int(y * down) + 1, int(np.ceil((y + h) * down))))
    inside[rows, int(x * across) : max(int(x * across) + 1, int(np.ceil((x + w) * across)))] = True
    return inside


def candidates_of_phrases(
    phrases: Sequence[Phrase], heatmaps: NDArray[np.float32], level: float, rival: float
) -> list[Candidate]:
    """Phrases that are found in the picture: where their `heatmaps`, [N, h, w] float32, reach `level`.

    A phrase names several things if it is a plural or a copy of an expanded one, or if its second largest connected
    piece has at least `rival` times the area of the largest one.
    """
    origins = [phrase.origin for phrase in phrases]
    found = []
    for phrase, heatmap in zip(phrases, heatmaps, strict=True):
        region = heatmap >= level
        if not region.any():
            continue
        several = ""
        if origins.count(phrase.origin) > 1 or _is_plural(phrase):
            several = "names several things"
        elif _is_scattered(region, rival):
            several = "is found in two places of comparable size"
        subject = Subject(phrase.root, phrase.text, heatmap=_largest_piece(heatmap, region))
        found.append(Candidate(subject, float(region.mean()), region, several))
    return found


def _largest_piece(heatmap: NDArray[np.float32], region: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Set a heatmap to 0 where another piece of the region is nearer than the largest one: that is another thing."""
    labels, count = ndimage.label(region)
    if count < 2:
        return heatmap
    nearest = ndimage.distance_transform_edt(~region, return_distances=False, return_indices=True)
    largest = 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return heatmap * (labels[tuple(nearest)] == largest)


def _is_plural(phrase: Phrase) -> bool:
    words = phrase.text.lower().split()
    return words[0] in COUNTS or (words[-1] != phrase.root.lower() and words[-1] not in PAIRED)


def _is_scattered(region: NDArray[np.bool_], rival: float) -> bool:
    labels, count = ndimage.label(region)
    areas = np.sort(np.bincount(labels.ravel())[1:])
    return count >= 2 and bool(areas[-2] >= rival * areas[-1])


def find_subject(example: Example, filters: Filters, level: float) -> Example:
    """Choose the example's subject among its boxes, else its phrases; without heatmaps, among its segments.

    A pixel belongs to a phrase if its confidence, in [0, 1], is at least `level`.

    Raises:
        RecordError: as `choose_subject`.
    """
    if example.heatmaps is None:
        candidates = candidates_of_segments(example.segments)
    elif example.boxes:
        candidates = candidates_of_boxes(example.boxes, (example.height, example.width), example.heatmaps)
    else:
        candidates = candidates_of_phrases(example.phrases, example.heatmaps, level, filters.rival)
    return replace(example, subject=choose_subject(candidates, filters), heatmaps=None)


@dataclass(eq=False)
class DropSmallPictures(Step):
    """Reject pictures whose shorter side has fewer than `min_side` pixels, before any model sees them."""

    min_side: int

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Check each picture's size."""
        min_side = self.min_side
        return map_batches(batches, "size", each(lambda example: check_size(example, min_side)))


@dataclass(eq=False)
class ChooseSubject(Step):
    """Fill `subject`; `filters` and `level` are those of `find_subject`."""

    filters: Filters
    level: float = 0.5

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Choose for each example by itself."""
        filters, level = self.filters, self.level
        return map_batches(batches, STAGE, each(lambda example: find_subject(example, filters, level)))
