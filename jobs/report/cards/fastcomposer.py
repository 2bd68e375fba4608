"""FastComposer's card: the picture with the masks of its subjects, the caption with the phrases that name them."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.report import figures
from jobs.report.card import Section, counted, default_card, numbers
from jobs.report.parts import Size, caption_pieces, common_fields, drawing_size, region, thumbnail
from schemas.dataset import DatasetInfo
from schemas.samples.fastcomposer import FORMAT, Record, Subject
from schemas.shards import Sample
from transforms.text.synonyms import plain_label


def fill(sample: Sample) -> dict[str, Any]:
    """Return what `fastcomposer.html.j2` shows of a sample."""
    record = Record.from_sample(sample)
    picture, size = thumbnail(sample.members["jpg"])
    drawing = drawing_size((record.width, record.height))
    # Of several subjects of one phrase, the first is marked.
    owners = {subject.phrase: index for index, subject in reversed(list(enumerate(record.subjects)))}
    return common_fields(record) | {
        "picture": picture,
        "width": size[0],
        "height": size[1],
        "drawing": drawing,
        "regions": [_subject(index, subject, drawing) for index, subject in enumerate(record.subjects)],
        "pieces": list(caption_pieces(record.caption, [(p.start, p.end) for p in record.phrases], owners)),
        "original": record.source_caption if record.source_caption != record.caption else "",
        "loose": sum(index not in owners for index in range(len(record.phrases))),
        "unmatched": record.segments_unmatched,
    }


def _subject(index: int, subject: Subject, drawing: Size) -> dict[str, Any]:
    mask = subject.segmentation.to_mask()
    drawn = region(index, text=subject.text, bbox=subject.bbox, area=subject.area, mask=mask, drawing=drawing)
    return drawn | {"label": plain_label(subject.label), "score": f"{subject.score:.2f}"}


def sections(index: pa.Table, info: DatasetInfo) -> list[Section]:
    """Return the histogram of scores with the threshold, and the subjects by number and class."""
    scores = numbers(pc.list_flatten(index["scores"]))
    what = "similarity of a phrase and its segment"
    labels = Counter[str]()
    for label, count in counted(pc.list_flatten(index["labels"])).items():
        labels[plain_label(label)] += count
    return [
        Section("Scores", [figures.score_histogram(scores, what, info.config.get("threshold"))]),
        Section(
            "Subjects",
            panels={
                "Per sample": figures.count_histogram(numbers(index["subjects"], np.int64), "subjects in a sample"),
                "By class": figures.label_bars(labels, "class", "subjects"),
            },
        ),
    ]


CARD = replace(
    default_card(FORMAT),
    title="FastComposer",
    lead="A colour and a number link each phrase to its mask.",
    template="fastcomposer.html.j2",
    fill=fill,
    sections=sections,
    origin=figures.origin_of_masks,
    score="score_min",
    count="subjects",
    groups={"low": "Lowest scores", "high": "Highest scores", "many": "Most subjects"},
    layers=("masks", "outlines", "numbers"),
)
