"""MIP-Adapter's card: the picture with the boxes and masks of its objects, the caption, the quality and its parts."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.report import figures
from jobs.report.card import Section, counted, default_card, numbers
from jobs.report.figures import signed
from jobs.report.parts import Size, caption_pieces, common_fields, drawing_size, region, thumbnail
from schemas.dataset import DatasetInfo
from schemas.samples.mip_adapter import FORMAT, ObjectField, Record
from schemas.shards import Sample


def fill(sample: Sample) -> dict[str, Any]:
    """Return what `mip_adapter.html.j2` shows of a sample."""
    record = Record.from_sample(sample)
    picture, size = thumbnail(sample.members["jpg"])
    drawing = drawing_size((record.width, record.height))
    scale = drawing[0] / record.width, drawing[1] / record.height
    spans = [(thing.start, thing.end) for thing in record.objects]
    return common_fields(record) | {
        "picture": picture,
        "width": size[0],
        "height": size[1],
        "drawing": drawing,
        "regions": [_object(index, thing, drawing, scale) for index, thing in enumerate(record.objects)],
        "pieces": list(caption_pieces(record.caption, spans, {index: index for index in range(len(spans))})),
        "caption_origin": record.caption_origin,
        "quality": signed(record.quality.total, ".2f"),
        "single": signed(record.quality.single, ".2f"),
        "pair": signed(record.quality.pair, ".2f"),
    }


def _object(index: int, thing: ObjectField, drawing: Size, scale: tuple[float, float]) -> dict[str, Any]:
    x, y, w, h = thing.bbox
    mask = thing.segmentation.to_mask()
    return region(index, text=thing.text, bbox=thing.bbox, area=thing.area, mask=mask, drawing=drawing) | {
        "name": thing.name,
        "score": f"{thing.score:.2f}",
        "similarity": signed(thing.text_image_similarity, ".2f"),
        # The box in units of the drawing.
        "frame": [round(x * scale[0]), round(y * scale[1]), round(w * scale[0]), round(h * scale[1])],
    }


def sections(index: pa.Table, info: DatasetInfo) -> list[Section]:
    """Return the histograms of the quality, with the cut, and of its parts, and the objects by number and name."""
    quality = numbers(index["quality"])
    # Samples below the cut are not in the index: its line is drawn at the lowest quality that is.
    best, least = info.config.get("best"), info.config.get("min_quality")
    is_cut = least is not None or (best is not None and len(index) >= best)
    lowest = float(quality.min()) if is_cut and len(quality) else None
    parts = {
        "single": "single part, how well the objects fit their phrases",
        "pair": "pair part, how little they are alike",
    }
    names = counted(pc.list_flatten(index["names"]))
    return [
        Section(
            "Quality",
            [
                figures.score_histogram(quality, "S, the quality of a sample", lowest, "cut at"),
                *(figures.score_histogram(numbers(index[name]), what) for name, what in parts.items()),
            ],
        ),
        Section(
            "Objects",
            panels={
                "Per sample": figures.count_histogram(numbers(index["objects"], np.int64), "objects in a sample"),
                "By name": figures.label_bars(names, "name", "objects"),
            },
        ),
    ]


CARD = replace(
    default_card(FORMAT),
    title="MIP-Adapter",
    lead="A colour and a number link each phrase to its object: its box, and the mask inside it.",
    template="mip_adapter.html.j2",
    fill=fill,
    sections=sections,
    origin=figures.origin_of_masks,
    score="quality",
    count="objects",
    groups={"low": "Lowest quality", "high": "Highest quality", "many": "Most objects"},
    layers=("masks", "outlines", "boxes", "numbers"),
)
