"""What a FastComposer sample is: `KEY.jpg`, and `KEY.json` as a `Record`."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Self

import numpy as np
import pyarrow as pa
from pydantic import Field

from schemas.dataset import Row
from schemas.errors import RecordError
from schemas.example import Example, Match, Phrase, Segment, Source
from schemas.masks import BBox, union
from schemas.rejects import Reason
from schemas.samples.base import (
    Pictures,
    SampleFormat,
    SampleRecord,
    Score,
    Scored,
    Segmentation,
    SourceField,
    find_spans,
    mask_problems,
    span_problems,
    subject_scores,
)
from schemas.strict import StrictModel


class PhraseField(StrictModel):
    """A noun phrase: `text == caption[start:end]`, `root` is the lemma of its head noun.

    `origin` is the span [start, end) of `source_caption` that it was made from.
    """

    text: str
    start: int
    end: int
    root: str
    origin: tuple[int, int]


class Subject(Scored):
    """A phrase with the region it names.

    `phrase` is an index into the record's phrases, whose `text`, `start` and `end` are repeated. `label` is
    the class of the segment, `score` the similarity by which the two were matched. `bbox` is [x, y, w, h]
    and `area` a count, both in pixels of the stored image. The mask is the union of `segments` segments: 1, or more
    where the phrase names several things ("a group of people"); the score is that of the best of them.
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
    segments: int = 1


class Record(SampleRecord):
    """The contents of `KEY.json`.

    Spans point into `caption`. `source_caption` is the caption as the source gave it: another text only where
    numbered plurals were expanded. Subjects stand in the order of their phrases.
    """

    key: str
    caption: str
    source_caption: str
    other_captions: tuple[str, ...] = ()
    width: int
    height: int
    source: SourceField
    phrases: Annotated[list[PhraseField], Field(min_length=1)]
    subjects: Annotated[list[Subject], Field(min_length=1)]
    segments_unmatched: int

    @classmethod
    def from_example(cls, example: Example) -> Self:
        """Return the record of an example that went through phrases, segments and matching.

        Raises:
            RecordError: NO_MATCH, no phrase was matched with a segment.
        """
        if not example.matches:
            raise RecordError(Reason.NO_MATCH, "no phrase of the caption was matched with a segment")
        matches = sorted(example.matches, key=lambda m: m.phrase)
        scores = subject_scores(example, len(matches))
        return cls(
            **cls.common_fields(example),
            source_caption=example.source_caption,
            phrases=[
                PhraseField(text=p.text, start=p.start, end=p.end, root=p.root, origin=p.origin)
                for p in example.phrases
            ],
            subjects=[_subject(example, match, s) for match, s in zip(matches, scores, strict=True)],
            segments_unmatched=len(example.segments) - sum(1 + len(match.others) for match in example.matches),
        )

    def to_example(self, image: bytes) -> Example:
        """Return the example that this record describes.

        The dataset does not hold segments without a phrase, nor a segment's confidence: that becomes 1. The segments
        of a phrase for several things are one segment.
        """
        return Example(
            key=self.key,
            image=image,
            width=self.width,
            height=self.height,
            caption=self.caption,
            source=Source(self.source.uri, self.source.license),
            source_caption=self.source_caption,
            other_captions=self.other_captions,
            phrases=tuple(Phrase(p.text, p.start, p.end, p.root, p.origin) for p in self.phrases),
            segments=tuple(Segment(s.label, 1.0, s.segmentation.to_mask()) for s in self.subjects),
            matches=tuple(Match(s.phrase, index, s.score) for index, s in enumerate(self.subjects)),
        )

    def with_caption(self, caption: str) -> Self:
        """Return the record under another caption, with the subjects that it names.

        Raises:
            ValueError: it names none.
        """
        found = find_spans([subject.text for subject in self.subjects], caption)
        phrases: list[PhraseField] = []
        subjects: list[Subject] = []
        for subject, span in zip(self.subjects, found, strict=True):
            if span is None:
                continue
            place = {"text": caption[slice(*span)], "start": span[0], "end": span[1]}
            subjects.append(subject.model_copy(update={**place, "phrase": len(phrases)}))
            phrases.append(self.phrases[subject.phrase].model_copy(update={**place, "origin": span}))
        if not subjects:
            raise ValueError(f"{caption!r} names none of {', '.join(repr(subject.text) for subject in self.subjects)}")
        fields = {"caption": caption, "source_caption": caption, "phrases": phrases, "subjects": subjects}
        return self.model_copy(update=fields)

    def columns(self) -> Row:
        """Return counts, scores and classes of the subjects."""
        scores = [subject.score for subject in self.subjects]
        return {
            "phrases": len(self.phrases),
            "subjects": len(self.subjects),
            "segments_unmatched": self.segments_unmatched,
            "score_mean": round(float(np.mean(scores)), 4),
            "score_min": min(scores),
            "scores": scores,
            "labels": [subject.label for subject in self.subjects],
        }

    def problems(self, pictures: Pictures) -> Iterator[str]:  # noqa: ARG002 - the picture's size is checked for all
        """Yield where phrases do not fit the caption, and subjects neither their phrase nor the picture."""
        for index, phrase in enumerate(self.phrases):
            for problem in span_problems(phrase.text, phrase.start, phrase.end, self.caption):
                yield f"phrases[{index}] {problem}"
        for index, subject in enumerate(self.subjects):
            yield from (f"subjects[{index}] {problem}" for problem in self._subject_problems(subject))

    def _subject_problems(self, subject: Subject) -> Iterator[str]:
        if not 0 <= subject.phrase < len(self.phrases):
            yield f"names phrase {subject.phrase}, but there are {len(self.phrases)}"
        else:
            phrase = self.phrases[subject.phrase]
            if (phrase.text, phrase.start, phrase.end) != (subject.text, subject.start, subject.end):
                yield f"says {subject.text!r}, its phrase says {phrase.text!r}, or their spans differ"
        yield from mask_problems(subject.segmentation, subject.area, self, subject.bbox)


def _subject(example: Example, match: Match, scores: Mapping[str, float]) -> Subject:
    phrase, segment = example.phrases[match.phrase], example.segments[match.segment]
    mask = union([segment.mask, *(example.segments[other].mask for other in match.others)])
    return Subject(
        phrase=match.phrase,
        text=phrase.text,
        start=phrase.start,
        end=phrase.end,
        label=segment.label,
        score=match.score,
        bbox=mask.bbox,
        area=mask.area,
        segmentation=Segmentation.of(mask),
        segments=1 + len(match.others),
        scores=dict(scores),
    )


FORMAT = SampleFormat(
    recipe="fastcomposer",
    record=Record,
    members={"jpg": lambda example: example.image},
    columns=pa.schema(
        [
            ("phrases", pa.int32()),
            ("subjects", pa.int32()),
            ("segments_unmatched", pa.int32()),
            ("score_mean", pa.float64()),  # over the subjects
            ("score_min", pa.float64()),
            ("scores", pa.list_(pa.float64())),  # of each subject
            ("labels", pa.list_(pa.string())),  # class of each subject
            ("annotations_left_out", pa.int32()),  # of the picture's: those that could not be used
        ]
    ),
    index_only={"annotations_left_out": lambda example: example.left_out},
)
