"""GLIGEN's card: the picture with its boxes, and the caption with the phrases that name them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.report import figures
from jobs.report.card import Section, counted, default_card, numbers
from jobs.report.parts import COLOURS, Size, caption_pieces, common_fields, drawing_size, thumbnail
from schemas.dataset import DatasetInfo
from schemas.samples.gligen import FORMAT, BoxField, Record
from schemas.shards import Sample


def fill(sample: Sample) -> dict[str, Any]:
    """Return what `gligen.html.j2` shows of a sample; the boxes of one phrase have one colour."""
    record = Record.from_sample(sample)
    picture, size = thumbnail(sample.members["jpg"])
    drawing = drawing_size((record.width, record.height))
    spans = [span for box in record.boxes for span in box.spans[:1]]
    first = {span: spans.index(span) for span in spans}
    regions = [
        _box(i, box, (record.width, record.height), drawing, first.get(box.spans[0], i) if box.spans else i)
        for i, box in enumerate(record.boxes)
    ]
    places = list(first)
    return common_fields(record) | {
        "picture": picture,
        "width": size[0],
        "height": size[1],
        "drawing": drawing,
        "regions": regions,
        "pieces": list(caption_pieces(record.caption, places, {i: first[span] for i, span in enumerate(places)})),
        "is_detection": record.is_detection,
    }


def _box(index: int, box: BoxField, picture: Size, drawing: Size, colour: int) -> dict[str, Any]:
    x, y, w, h = box.bbox
    left, right = (round(edge * drawing[0] / picture[0]) for edge in (x, x + w))
    top, bottom = (round(edge * drawing[1] / picture[1]) for edge in (y, y + h))
    return {
        "index": index,
        "number": index + 1,
        "colour": f"c{colour % COLOURS}",
        "text": box.text,
        "bbox": ", ".join(map(str, box.bbox)),
        "area": w * h,
        "share": f"{w * h / (picture[0] * picture[1]):.1%}",
        "score": f"{box.score:.2f}",
        "outline": f"M{left} {top}H{right}V{bottom}H{left}z",
        # The number stands in a corner: boxes lie inside each other, and their middles meet.
        "at": (round(100 * (x + min(w, 0.06 * picture[0]) / 2) / picture[0], 1),
               round(100 * (y + min(h, 0.06 * picture[1]) / 2) / picture[1], 1)),
    }  # fmt: skip


def sections(index: pa.Table, info: DatasetInfo) -> list[Section]:
    """Return the histograms of scores and areas, and the boxes by number and text."""
    scores, areas = (numbers(pc.list_flatten(index[name])) for name in ("scores", "areas"))
    rows = info.config.get("rows")
    what = "confidence of a box" if rows == "classes" else "similarity of a phrase and its box"
    return [
        Section(
            "Boxes",
            [
                figures.score_histogram(scores, what, None if rows == "classes" else info.config.get("threshold")),
                figures.score_histogram(areas, "area of a box, as a share of the picture"),
            ],
            panels={
                "Per sample": figures.count_histogram(numbers(index["boxes"], np.int64), "boxes in a sample"),
                "By text": figures.label_bars(counted(pc.list_flatten(index["texts"])), "text", "boxes"),
            },
        )
    ]


CARD = replace(
    default_card(FORMAT),
    title="GLIGEN",
    lead="A colour links each phrase to its boxes, a number each box to its line.",
    template="gligen.html.j2",
    fill=fill,
    sections=sections,
    origin=figures.origin_of_masks,
    score="",
    count="boxes",
    groups={"low": "", "high": "", "many": "Most boxes"},
    layers=("outlines", "numbers"),
)
