"""How the report shows a dataset: the default card, which needs nothing but the format of the samples.

A recipe that wants another one changes what differs; see `jobs.report.cards`.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.report import figures
from jobs.report.figures import Figure
from jobs.report.parts import THUMBNAIL, common_fields, thumbnail
from schemas.dataset import DatasetInfo
from schemas.samples.base import SCORES, SampleFormat
from schemas.shards import Sample

PANEL = 400
"""Longest side of a thumbnail in the default card, in pixels, where a sample has several pictures."""


@dataclass(frozen=True)
class Section:
    """A section of the report that is drawn from the index.

    Attributes:
        title: Its heading.
        measures: Histograms that fill the page's width, each below a sentence.
        panels: Histograms and bars that stand side by side, by their headings.

    A figure is None where there is nothing to draw.
    """

    title: str
    measures: Sequence[Figure | None] = ()
    panels: Mapping[str, Figure | None] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw: the section is then left out."""
        return not any(self.measures) and not any(self.panels.values())


@dataclass(frozen=True)
class Card:
    """How the report shows the dataset of a recipe.

    Attributes:
        title: The recipe's name for people.
        lead: A sentence above the samples, or "".
        origin: Returns a sentence on where the masks came from, or "".
        template: The template of one sample.
        fill: Returns what the template shows of a sample. `width` and `height` are those of its picture.
        sections: Returns the sections on the whole dataset.
        score: The column of the index by which samples of low and high score are chosen, or "".
        count: The column of the index that counts what a sample has several of, or "".
        groups: What the chosen samples are called, by group: "low", "high" and "many" (see `figures.choose`).
        layers: What can be switched off in the pictures.
        wide: Whether a sample needs more than a third of the page's width.
    """

    title: str
    lead: str
    template: str
    fill: Callable[[Sample], dict[str, Any]]
    sections: Callable[[pa.Table, DatasetInfo], list[Section]]
    score: str
    count: str
    groups: Mapping[str, str]
    layers: tuple[str, ...] = ()
    wide: bool = False
    origin: Callable[[DatasetInfo], str] = lambda _: ""


def default_card(sample_format: SampleFormat) -> Card:
    """Return the card of a recipe that has none of its own.

    It shows every JPEG and PNG member, the caption and the record's scalar fields. Samples are chosen by the first
    column of floats and the first column of counts; without either they are random.
    """
    pictures = picture_names(sample_format)
    columns = sample_format.columns
    score = next((column.name for column in columns if pa.types.is_floating(column.type)), "")
    count = next((column.name for column in columns if pa.types.is_signed_integer(column.type)), "")
    return Card(
        title=sample_format.recipe[:1].upper() + sample_format.recipe[1:],
        lead=f"From left to right: {', '.join(pictures.values())}." if len(pictures) > 1 else "",
        template="default.html.j2",
        fill=partial(fill, sample_format),
        sections=partial(sections, sample_format),
        score=score,
        count=count,
        # A group is empty where there is no column to choose it by.
        groups={"low": f"Lowest {words(score)}", "high": f"Highest {words(score)}", "many": f"Most {words(count)}"},
        wide=len(pictures) > 1,
    )


def picture_names(sample_format: SampleFormat) -> dict[str, str]:
    """Return the names that the pictures of a sample are shown under, by member: "input" for "input.jpg"."""
    names = [name for name in sample_format.members if name.endswith(("jpg", "png"))]
    return {name: words(name.rpartition(".")[0]) or "picture" for name in names}


def fill(sample_format: SampleFormat, sample: Sample) -> dict[str, Any]:
    """Return what `default.html.j2` shows of a sample."""
    record = sample_format.record.from_sample(sample)
    names = picture_names(sample_format)
    side = THUMBNAIL if len(names) == 1 else PANEL
    pictures = [{"name": name, "address": thumbnail(sample.members[member], side)[0]} for member, name in names.items()]
    return common_fields(record) | {
        "pictures": pictures,
        "width": record.width,
        "height": record.height,
        "caption": record.caption,
        "scalars": scalars(record.model_dump()),
    }


def scalars(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the names and values of a record's scalar fields as text, without empty ones and those of every recipe."""
    shown = []
    for name, value in record.items():
        if name in ("key", "caption", "width", "height") or not isinstance(value, (str, int, float)) or value == "":
            continue
        if isinstance(value, bool):
            text = "yes" if value else "no"
        elif isinstance(value, float):
            text = figures.signed(value, ".4g")
        else:
            text = str(value)
        shown.append((words(name), text))
    return shown


def sections(sample_format: SampleFormat, index: pa.Table, info: DatasetInfo) -> list[Section]:  # noqa: ARG001
    """Return a histogram per column of floats, one per column of counts, and bars per column of lists of text.

    Unsigned integers are hashes and not drawn; text columns neither.
    """
    measures: list[Figure | None] = []
    panels: dict[str, Figure | None] = {}
    for column in sample_format.columns:
        kind, name, values = column.type, words(column.name), index[column.name]
        if pa.types.is_list(kind):
            kind, values = kind.value_type, pc.list_flatten(values)
            if pa.types.is_string(kind):
                panels[name.capitalize()] = figures.label_bars(counted(values), name, "number")
        elif pa.types.is_signed_integer(kind):
            panels[f"{name} per sample".capitalize()] = figures.number_histogram(numbers(values, np.int64), name)
        if pa.types.is_floating(kind):
            measures.append(figures.score_histogram(numbers(values), name))
    return [Section("Values", measures), Section("Contents", panels=panels)]


def score_sections(index: pa.Table, info: DatasetInfo) -> list[Section]:
    """Return the histograms of the axes that were scored, each with its gate; no section if there are none."""
    if SCORES.name not in index.schema.names:
        return []
    values: dict[str, list[float]] = defaultdict(list)
    for row in index[SCORES.name].to_pylist():
        for axis, scores in row or ():
            values[axis] += scores
    gates = info.config.get("gates", {})
    measures: list[Figure | None] = []
    for axis, scores in values.items():
        low, high = gates.get(axis) or (None, None)
        bound, mark = (high, "at most") if low is None else (low, "at least")
        measures.append(figures.score_histogram(np.array(scores), words(axis), bound, mark))
    return [Section("Scores by axis", measures)]


def numbers(column: pa.ChunkedArray, dtype: type = np.float64) -> NDArray[Any]:
    """Return a column of numbers as an array, [N] of `dtype`."""
    return np.asarray(column.to_numpy()).astype(dtype)


def counted(labels: pa.ChunkedArray) -> dict[str, int]:
    """Return how often each label occurs in a column of text."""
    return {row["values"]: row["counts"] for row in pc.value_counts(labels).to_pylist()}


def words(name: str) -> str:
    """Return the name of a field or member as words: "score min" for "score_min"."""
    return name.replace("_", " ").replace(".", " ")
