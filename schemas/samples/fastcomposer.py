"""What a FastComposer sample is: `KEY.jpg`, and `KEY.json` as a `Record`."""

from collections.abc import Iterator
from typing import Annotated, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, ValidationError

from schemas.dataset import Layout, Row, StrictModel
from schemas.errors import RecordError
from schemas.example import Example, Match, Phrase, Segment, Source
from schemas.masks import BBox
from schemas.rejects import Reason
from schemas.samples.base import (
    SampleRecord,
    Score,
    Segmentation,
    SourceField,
    picture_problems,
    row_problems,
    unreadable,
)
from schemas.shards import Sample


class PhraseField(StrictModel):
    """A noun phrase: `text == caption[start:end]`, `root` the lemma of its head noun.

    `origin` is the span [start, end) of `source_caption` that it was made from.
    """

    text: str
    start: int
    end: int
    root: str
    origin: tuple[int, int]


class Subject(StrictModel):
    """A phrase with the region it names.

    `phrase` is an index into the record's phrases, whose `text`, `start` and `end` are repeated. `label` is
    the class of the segment, `score` the similarity by which the two were matched. `bbox` is [x, y, w, h]
    and `area` a count, both in pixels of the stored image.
    """

    phrase: int
    text: str
    start: int
    end: int
    label: str
    score: Score
    bbox: BBox
    area: int
    segmentation: Segmentation


class Record(SampleRecord):
    """The contents of `KEY.json`.

    Spans point into `caption`. `source_caption` is the caption as the source gave it: another text only where
    numbered plurals were expanded. Subjects stand in the order of their phrases.
    """

    key: str
    caption: str
    source_caption: str
    width: int
    height: int
    source: SourceField
    phrases: Annotated[list[PhraseField], Field(min_length=1)]
    subjects: Annotated[list[Subject], Field(min_length=1)]
    segments_unmatched: int

    @classmethod
    def from_example(cls, example: Example) -> Self:
        """Keep what the dataset states of an example that went through phrases, segments and matching.

        Raises:
            RecordError: no phrase was matched with a segment.
        """
        if not example.matches:
            raise RecordError(Reason.NO_MATCH, "no phrase of the caption was matched with a segment")
        return cls(
            key=example.key,
            caption=example.caption,
            source_caption=example.source_caption,
            width=example.width,
            height=example.height,
            source=SourceField(uri=example.source.uri, license=example.source.license),
            phrases=[
                PhraseField(text=p.text, start=p.start, end=p.end, root=p.root, origin=p.origin)
                for p in example.phrases
            ],
            subjects=[_subject(example, match) for match in sorted(example.matches, key=lambda m: m.phrase)],
            segments_unmatched=len(example.segments) - len(example.matches),
        )

    def to_example(self, image: bytes) -> Example:
        """Return the example that this record describes.

        The dataset does not hold segments without a phrase, nor a segment's confidence: that becomes 1.
        """
        return Example(
            key=self.key,
            image=image,
            width=self.width,
            height=self.height,
            caption=self.caption,
            source=Source(self.source.uri, self.source.license),
            source_caption=self.source_caption,
            phrases=tuple(Phrase(p.text, p.start, p.end, p.root, p.origin) for p in self.phrases),
            segments=tuple(Segment(s.label, 1.0, s.segmentation.to_mask()) for s in self.subjects),
            matches=tuple(Match(s.phrase, index, s.score) for index, s in enumerate(self.subjects)),
        )


def _subject(example: Example, match: Match) -> Subject:
    phrase, segment = example.phrases[match.phrase], example.segments[match.segment]
    return Subject(
        phrase=match.phrase,
        text=phrase.text,
        start=phrase.start,
        end=phrase.end,
        label=segment.label,
        score=match.score,
        bbox=segment.bbox,
        area=segment.area,
        segmentation=Segmentation(size=segment.mask.size, counts=segment.mask.counts),
    )


def to_sample(example: Example) -> Sample:
    """Make the sample of an example; its picture's bytes are kept as they are.

    Raises:
        RecordError: no phrase was matched with a segment.
    """
    return Sample(example.key, {"jpg": example.image, "json": Record.from_example(example).to_json()})


def to_row(example: Example) -> Row:
    """Fill the recipe's columns of the index."""
    scores = [match.score for match in example.matches]
    return {
        "phrases": len(example.phrases),
        "subjects": len(example.matches),
        "segments_unmatched": len(example.segments) - len(example.matches),
        "score_mean": round(float(np.mean(scores)), 4),
        "score_min": round(min(scores), 4),
        "scores": [round(score, 4) for score in scores],
        "labels": [example.segments[match.segment].label for match in example.matches],
    }


COLUMNS = pa.schema(
    [
        ("phrases", pa.int32()),
        ("subjects", pa.int32()),
        ("segments_unmatched", pa.int32()),
        ("score_mean", pa.float64()),  # over the subjects
        ("score_min", pa.float64()),
        ("scores", pa.list_(pa.float64())),  # of each subject
        ("labels", pa.list_(pa.string())),  # class of each subject
    ]
)


def problems_of(sample: Sample, row: Row) -> list[str]:
    """Say what is wrong with a sample whose row of the index is `row`; nothing where all is right."""
    try:
        record = Record.from_sample(sample)
    except ValidationError as error:
        return [unreadable(sample.key, "FastComposer", error)]
    return [
        *picture_problems(sample, record.width, record.height),
        *_record_problems(record),
        *row_problems(_columns_of(record), row),
        *_score_problems(record, row),
    ]


def _record_problems(record: Record) -> Iterator[str]:
    for index, phrase in enumerate(record.phrases):
        if record.caption[phrase.start : phrase.end] != phrase.text:
            found = record.caption[phrase.start : phrase.end]
            yield f"phrases[{index}] is {phrase.text!r}, but its span holds {found!r}"
    for index, subject in enumerate(record.subjects):
        yield from (f"subjects[{index}] {problem}" for problem in _subject_problems(subject, record))


def _subject_problems(subject: Subject, record: Record) -> Iterator[str]:
    if not 0 <= subject.phrase < len(record.phrases):
        yield f"names phrase {subject.phrase}, but there are {len(record.phrases)}"
    else:
        phrase = record.phrases[subject.phrase]
        if (phrase.text, phrase.start, phrase.end) != (subject.text, subject.start, subject.end):
            yield f"says {subject.text!r}, its phrase says {phrase.text!r}, or their spans differ"
    height, width = subject.segmentation.size
    if (width, height) != (record.width, record.height):
        yield f"has a mask of {width} x {height} pixels, the picture has {record.width} x {record.height}"
        return
    mask = subject.segmentation.to_mask()
    try:
        pixels = mask.to_array()
    except ValueError as error:
        yield f"has a mask that cannot be decoded: {error}"
        return
    if subject.area != int(pixels.sum()):
        yield f"has area {subject.area}, its mask {int(pixels.sum())} pixels"
    if subject.bbox != mask.bbox:
        yield f"has bbox {list(subject.bbox)}, its mask {list(mask.bbox)}"


def _columns_of(record: Record) -> Row:
    """The index's columns that the record tells."""
    return {
        "caption": record.caption,
        "width": record.width,
        "height": record.height,
        "source": record.source.uri,
        "license": record.source.license,
        "phrases": len(record.phrases),
        "subjects": len(record.subjects),
        "segments_unmatched": record.segments_unmatched,
    }


def _score_problems(record: Record, row: Row) -> Iterator[str]:
    scores = [subject.score for subject in record.subjects]
    # Scores were rounded before and after the mean was taken.
    if abs(row["score_min"] - min(scores)) > 1e-4 or abs(row["score_mean"] - float(np.mean(scores))) > 2e-4:
        yield f"the index says scores {row['score_min']} to mean {row['score_mean']}, the record {scores}"


LAYOUT = Layout(
    recipe="fastcomposer",
    members=frozenset({"jpg", "json"}),
    columns=COLUMNS,
    sample_of=to_sample,
    row_of=to_row,
    problems_of=problems_of,
)
