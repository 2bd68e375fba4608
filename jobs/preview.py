"""`subjectloom preview`: one picture through a recipe, and what each of its steps did, on one page.

It works on the record that travels through the steps, so for every recipe: a section for each step shows the fields
that the step filled, and the last one what would be stored.
"""

import json
import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from jobs.build import compile_code
from jobs.engines import beam_options
from jobs.likeness import look_like_photographs
from jobs.references import read_photograph
from jobs.report.page import environment
from jobs.report.parts import caption_pieces, data_address, drawing_size, region, thumbnail
from jobs.run import run
from pipelines import RECIPES
from pipelines.recipe import BuildConfig
from schemas.errors import RecordError, SubjectloomError
from schemas.example import Example, Object, Segment
from schemas.masks import union
from schemas.rejects import Reject
from transforms.batch import Batch, Outcome
from transforms.listing import Listing
from transforms.models.presets import Models, check_downloads
from transforms.regions.match import MatchPhrases, match_phrases
from transforms.settled import STAGE as LAST
from transforms.step import Step

THRESHOLDS = tuple(k * 0.05 for k in range(-3, 4))
"""What is added to the threshold for the table of links."""

Panel = dict[str, Any]
"""What the template shows of a field: `kind` and what that kind needs."""


@dataclass(frozen=True)
class Traced:
    """A step, and the record that came out of it."""

    step: Step
    record: Outcome


@dataclass(eq=False)
class TraceSteps(beam.PTransform):
    """Put an example through steps; what comes out of step N is written to the file N in `folder`."""

    steps: Sequence[Step]
    example: Example
    folder: str

    def expand(self, root: beam.Pipeline) -> beam.PCollection[Batch]:
        """Chain the steps in their order."""
        batches = root | beam.Create([Batch(0, (self.example,))], reshuffle=False)
        for number, step in enumerate(self.steps):
            batches = (
                batches | f"step {number}" >> step | f"keep {number}" >> beam.Map(_keep, f"{self.folder}/{number}")
            )
        return batches


def _keep(batch: Batch, path: str) -> Batch:
    if not Path(path).exists():  # of several captions, the first one is shown
        Path(path).write_bytes(pickle.dumps(batch.records[0]))
    return batch


def preview(
    recipe: str,
    picture: Path,
    caption: str,
    config: BuildConfig,
    models: Models,
    console: Console,
    *,
    doubts_preset: bool = False,
) -> str:
    """Put a picture through the steps of a recipe and return the page.

    Args:
        recipe: its name.
        picture: a file.
        caption: of the picture.
        config: of the recipe.
        models: the checkpoints.
        console: where is said what takes long.
        doubts_preset: refuse the models of the preset `sample` for what looks like a photograph.

    Raises:
        SubjectloomError: the picture cannot be read, the config contradicts itself, or a model is missing.
    """
    example = read_photograph(caption, picture, None)
    if doubts_preset and look_like_photographs([example.pixels()]):
        raise SubjectloomError(
            f"{picture} looks like a photograph, and the small models know sample scenes only: give --preset hub, or "
            "--preset sample to run them all the same"
        )
    listing, described = Listing("folder", ()), RECIPES[recipe]
    settled = described.settle(config, models, listing)
    steps = described.steps(settled, models, listing)
    check_downloads({kind: name for step in steps for kind, name in step.checkpoints().items()})
    compile_code(steps, console)
    traced = trace(steps, example)
    return render(recipe, settled, example, traced)


def trace(steps: Sequence[Step], example: Example) -> list[Traced]:
    """Run steps on an example, and return what came out of each, up to the one that rejects it."""
    with tempfile.TemporaryDirectory() as folder:
        run(TraceSteps(steps, example, folder), beam_options(()))
        records: list[Outcome] = [
            pickle.loads(Path(folder, str(number)).read_bytes())  # noqa: S301 - our own
            for number in range(len(steps))
        ]
    ends = [number for number, record in enumerate(records) if isinstance(record, Reject)]
    return [Traced(*pair) for pair in zip(steps, records, strict=True)][: ends[0] + 1 if ends else None]


def render(recipe: str, config: BuildConfig, example: Example, traced: Sequence[Traced]) -> str:
    """Return the page."""
    before, sections = example, []
    for number, (step, record) in enumerate((t.step, t.record) for t in traced):
        head = {"number": number + 1, "name": words_of(type(step).__name__), "models": step.checkpoints()}
        if isinstance(record, Reject):
            sections.append(head | {"panels": [], "reject": record})
            break
        sections.append(head | {"panels": list(panels(before, record, step, str(number))), "reject": None})
        before = record
    stored = traced and not isinstance(traced[-1].record, Reject)
    return (
        environment()
        .get_template("preview.html.j2")
        .render(
            recipe=recipe,
            config=config.model_dump(mode="json"),
            picture=picture_panel("picture", example, "first", ()),
            caption=example.caption,
            sections=sections,
            stored=stored_sample(recipe, before) if stored or not traced else None,
        )
    )


def words_of(name: str) -> str:
    """Return the name of a step as words: "Segment pictures" for "SegmentPictures"."""
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name).strip().capitalize()


def panels(before: Example, after: Example, step: Step, name: str) -> Iterator[Panel]:
    """Yield what the page shows of the fields that a step changed."""
    for field in fields(Example):
        value = getattr(after, field.name)
        if field.name.startswith("_") or _same(value, getattr(before, field.name)):
            continue
        show = SHOWN.get(field.name, plain_panels)
        yield from show(field.name, value, after, f"{name}-{field.name}")
    if isinstance(step, MatchPhrases) and before.similarity:
        yield links_panel(before, step)


def _same(value: Any, other: Any) -> bool:  # noqa: ANN401 - of any field
    if isinstance(value, np.ndarray) or isinstance(other, np.ndarray):
        return value is other
    return bool(value == other)


def picture_panel(title: str, example: Example, name: str, regions: Sequence[Panel]) -> Panel:
    """The picture with regions drawn on it."""
    picture, size = thumbnail(example.image)
    drawing = drawing_size((example.width, example.height))
    return {
        "kind": "picture", "title": title, "id": name, "key": example.key, "picture": picture, "width": size[0],
        "height": size[1], "drawing": drawing, "regions": regions,
    }  # fmt: skip


def phrase_panels(_name: str, _value: object, example: Example, _id: str) -> Iterator[Panel]:
    """The caption with its phrases."""
    spans = [(phrase.start, phrase.end) for phrase in example.phrases]
    pieces = list(caption_pieces(example.caption, spans, {i: i for i in range(len(spans))}))
    yield {"kind": "caption", "title": "phrases", "pieces": pieces}


def segment_panels(_name: str, _value: object, example: Example, name: str) -> Iterator[Panel]:
    """The picture with its segments, and a list of them."""
    drawing = drawing_size((example.width, example.height))
    regions = [_segment(i, segment, drawing) for i, segment in enumerate(example.segments)]
    rows = [
        [r["number"], s.label or "-", f"{s.score:.2f}", r["share"]]
        for r, s in zip(regions, example.segments, strict=True)
    ]
    yield picture_panel("segments", example, name, regions)
    yield {"kind": "table", "title": "segments", "heads": ["", "class", "score", "area"], "rows": rows}


def _segment(index: int, segment: Segment, drawing: tuple[int, int]) -> Panel:
    return region(index, text=segment.label, bbox=segment.bbox, area=segment.area, mask=segment.mask, drawing=drawing)


def similarity_panels(_name: str, _value: object, example: Example, _id: str) -> Iterator[Panel]:
    """The matrix of similarities: phrases by segments."""
    matrix = np.array(example.similarity, np.float64).reshape(len(example.phrases), len(example.segments))
    low, high = (float(np.nanmin(matrix)), float(np.nanmax(matrix))) if np.isfinite(matrix).any() else (0.0, 1.0)
    rows = [
        {
            "name": phrase.text,
            "cells": [
                {"text": f"{score:.2f}", "share": 0 if high == low else round(100 * (score - low) / (high - low))}
                for score in scores
            ],
        }
        for phrase, scores in zip(example.phrases, matrix.tolist(), strict=True)
    ]
    heads = [f"{i + 1} {segment.label}".strip() for i, segment in enumerate(example.segments)]
    yield {"kind": "matrix", "title": "similarity of phrases and segments", "heads": heads, "rows": rows}


def match_panels(_name: str, _value: object, example: Example, name: str) -> Iterator[Panel]:
    """The picture with the masks of phrases, and the caption with their numbers."""
    drawing = drawing_size((example.width, example.height))
    regions = []
    for i, match in enumerate(example.matches):
        mask = union([example.segments[n].mask for n in (match.segment, *match.others)])
        text = example.phrases[match.phrase].text
        regions.append(region(i, text=text, bbox=mask.bbox, area=mask.area, mask=mask, drawing=drawing))
    yield picture_panel("links", example, name, regions)
    owners = {match.phrase: i for i, match in enumerate(example.matches)}
    spans = [(phrase.start, phrase.end) for phrase in example.phrases]
    pieces = list(caption_pieces(example.caption, spans, owners))
    yield {"kind": "caption", "title": "links", "pieces": pieces}


def object_panels(_name: str, _value: object, example: Example, name: str) -> Iterator[Panel]:
    """The picture with its objects, and a list of them."""
    drawing = drawing_size((example.width, example.height))
    regions = [_object(i, thing, example, drawing) for i, thing in enumerate(example.objects)]
    rows = [
        [r["number"], r["text"], f"{thing.score:.2f}", f"{thing.similarity:.2f}", r["share"]]
        for r, thing in zip(regions, example.objects, strict=True)
    ]
    yield picture_panel("objects", example, name, regions)
    heads = ["", "phrase", "score", "similarity", "area"]
    yield {"kind": "table", "title": "objects", "heads": heads, "rows": rows}


def _object(index: int, thing: Object, example: Example, drawing: tuple[int, int]) -> Panel:
    text = example.phrases[thing.phrase].text
    drawn = region(index, text=text, bbox=thing.bbox, area=thing.mask.area, mask=thing.mask, drawing=drawing)
    scale = (drawing[0] / example.width, drawing[1] / example.height)
    return drawn | {"frame": [round(side * scale[i % 2]) for i, side in enumerate(thing.bbox)]}


def heatmap_panels(_name: str, value: NDArray[np.float32], example: Example, _id: str) -> Iterator[Panel]:
    """A grey picture for each phrase or label: white where it is surely seen."""
    names = [phrase.text for phrase in example.phrases] or [box.label for box in example.boxes]
    for number, heatmap in enumerate(value):
        grey = Image.fromarray(np.rint(heatmap * 255).astype(np.uint8)).resize((example.width, example.height))
        title = names[number] if number < len(names) else f"{number + 1}"
        yield {"kind": "image", "title": f"confidence that it shows {title!r}", "picture": data_address(grey, "PNG")}


def plain_panels(name: str, value: Any, _example: Example, _id: str) -> Iterator[Panel]:  # noqa: ANN401
    """A field of any kind: the pictures in it, and its values as text."""
    for title, picture in pictures_in(name, value):
        yield {"kind": "image", "title": title.replace("_", " "), "picture": picture}
    rows = [[title.replace("_", " "), text] for title, text in texts_in(name, value)]
    if rows:
        yield {"kind": "table", "title": name.replace("_", " "), "heads": ["field", "value"], "rows": rows}


SHOWN: Mapping[str, Callable[[str, Any, Example, str], Iterator[Panel]]] = {
    "phrases": phrase_panels,
    "segments": segment_panels,
    "similarity": similarity_panels,
    "matches": match_panels,
    "objects": object_panels,
    "heatmaps": heatmap_panels,
}
"""How fields are shown; others as `plain_panels` does."""


def pictures_in(name: str, value: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - of any field
    """Yield the pictures in a value, with names, as data addresses: encoded ones, at any depth."""
    if isinstance(value, bytes) and value[:3] in (b"\xff\xd8\xff", b"\x89PN"):
        yield name, thumbnail(value)[0]
    elif is_dataclass(value):
        for field in fields(value):
            yield from pictures_in(f"{name}, {field.name}", getattr(value, field.name))
    elif isinstance(value, tuple | list):
        for number, part in enumerate(value, start=1):
            yield from pictures_in(f"{name} {number}", part)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from pictures_in(f"{name} {key}", part)


def texts_in(name: str, value: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - of any field
    """Yield the texts and numbers in a value, with names; arrays by their shapes."""
    if isinstance(value, bool | int | str):
        yield name, str(value)
    elif isinstance(value, float):
        yield name, f"{value:.4g}"
    elif isinstance(value, np.ndarray):
        yield name, f"array of {' x '.join(map(str, value.shape))}"
    elif is_dataclass(value):
        for field in fields(value):
            if field.name != "counts":  # run lengths are not for people
                yield from texts_in(f"{name}, {field.name}", getattr(value, field.name))
    elif isinstance(value, tuple | list):
        for number, part in enumerate(value[:20], start=1):
            yield from texts_in(f"{name} {number}", part)


def links_panel(example: Example, step: MatchPhrases) -> Panel:
    """A table of the segments that each phrase is linked with at several thresholds."""
    thresholds = [step.threshold + offset for offset in THRESHOLDS]
    columns = [_links(example, replace(step, threshold=threshold)) for threshold in thresholds]
    rows = [
        [phrase.text, *(column.get(number, "") for column in columns)] for number, phrase in enumerate(example.phrases)
    ]
    heads = ["phrase", *(f"{t:.2f}" + (" (used)" if t == step.threshold else "") for t in thresholds)]
    return {"kind": "table", "title": "linked segments, by threshold", "heads": heads, "rows": rows}


def _links(example: Example, step: MatchPhrases) -> dict[int, str]:
    """The numbers of the segments that each phrase is linked with, by the phrase's number."""
    try:
        matched = match_phrases(example, step.threshold, step.plurals, step.min_area, step.names)
    except RecordError:
        return {}
    return {m.phrase: ", ".join(str(1 + s) for s in (m.segment, *m.others)) for m in matched.matches}


def stored_sample(recipe: str, example: Example) -> Panel:
    """What would be stored of the example, or why it would not."""
    sample_format = RECIPES[recipe].format
    try:
        sample, row = sample_format.pack(example)
    except RecordError as error:
        return {"reject": Reject(example.key, example.source.uri, LAST, error.reason, error.detail)}
    pictures = [
        {"title": f"{sample.key}.{name}", "picture": thumbnail(content)[0]}
        for name, content in sorted(sample.members.items())
        if name.endswith(("jpg", "png"))
    ]
    record = json.loads(sample.members["json"])
    columns = [[name, str(row[name])] for name in sample_format.columns.names if row.get(name) is not None]
    text = json.dumps(shortened(record), indent=1, ensure_ascii=False)
    return {"reject": None, "pictures": pictures, "columns": columns, "json": text, "name": f"{sample.key}.json"}


def shortened(value: Any) -> Any:  # noqa: ANN401 - of a record
    """Return a record with long texts, such as run lengths, cut."""
    if isinstance(value, dict):
        return {name: shortened(part) for name, part in value.items()}
    if isinstance(value, str) and len(value) > 200:
        return f"{value[:40]} ... ({len(value):,} characters)"
    return [shortened(part) for part in value] if isinstance(value, list) else value
