"""Samples of any recipe: packed, indexed and verified by a format alone."""

import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest

from schemas.dataset import Row
from schemas.example import Example, Source
from schemas.images import encode_grey, encode_jpeg
from schemas.masks import Mask
from schemas.samples.base import (
    Pictures,
    SampleFormat,
    SampleRecord,
    Segmentation,
    mask_problems,
    span_problems,
)
from schemas.shards import Sample

PIXELS = np.full((4, 6, 3), 90, np.uint8)
EXAMPLE = Example("k", encode_jpeg(PIXELS), 6, 4, "a dog", Source("there", "CC0"), "a dog")


class Record(SampleRecord):
    words: int

    @classmethod
    def from_example(cls, example: Example) -> "Record":
        return cls(**cls.common_fields(example), words=len(example.caption.split()))

    def columns(self) -> Row:
        return {"words": self.words}

    def problems(self, pictures: Pictures) -> Iterator[str]:
        if pictures["edges.png"].max() > 1:
            yield "the edges are too bright"


FORMAT = SampleFormat(
    recipe="edges",
    record=Record,
    members={"jpg": lambda example: example.image, "edges.png": lambda _: encode_grey(np.ones((4, 6), np.uint8))},
    columns=pa.schema([("words", pa.int32()), ("hash", pa.uint64())]),
    index_only={"hash": lambda _: 9},
)


def changed(sample: Sample, **members: bytes) -> Sample:
    return Sample(sample.key, {**sample.members, **members})


def test_a_sample_has_the_members_and_a_row_the_columns_of_its_format() -> None:
    sample, row = FORMAT.pack(EXAMPLE)
    assert sample.key == "k"
    assert set(sample.members) == FORMAT.member_names == {"jpg", "edges.png", "json"}
    assert sample.members["jpg"] == EXAMPLE.image
    common = {"key": "k", "caption": "a dog", "width": 6, "height": 4, "source": "there", "license": "CC0"}
    assert row == {**common, "words": 2, "hash": 9, "phash": 0, "axes": []}
    assert FORMAT.pack(EXAMPLE)[0] == sample
    assert FORMAT.pack(EXAMPLE)[1] == row
    assert {"shard", "offset", "size", "crc32", *row} == set(FORMAT.index_columns.names)
    assert FORMAT.problems_of(sample, row) == []


def test_json_lists_inherited_fields_first_and_those_declared_again_in_their_place() -> None:
    class Moved(Record):
        words: int
        key: str

    assert list(_json(Record.from_example(EXAMPLE))) == ["key", "caption", "width", "height", "source", "words"]
    assert list(_json(Moved.from_example(EXAMPLE))) == ["caption", "width", "height", "source", "words", "key"]


def _json(record: SampleRecord) -> dict[str, object]:
    fields: dict[str, object] = json.loads(record.to_json())
    return fields


@pytest.mark.parametrize(
    ("members", "row", "problem"),
    [
        ({"jpg": b"none"}, {}, "k.jpg cannot be decoded: not a picture of a known format"),
        ({"jpg": encode_jpeg(np.zeros((4, 5, 3), np.uint8))}, {}, "k.jpg is 5 x 4 pixels, its JSON says 6 x 4"),
        ({"edges.png": encode_grey(np.ones((3, 6), np.uint8))}, {}, "k.edges.png is 6 x 3 pixels, its JSON says 6 x 4"),
        ({"edges.png": encode_grey(np.full((4, 6), 2, np.uint8))}, {}, "the edges are too bright"),
        ({"json": b"{}"}, {}, "k.json is not a edges record: key: Field required"),
        ({"json": b"["}, {}, "k.json is not a edges record: Invalid JSON"),
        ({}, {"words": 3}, "the index says words 3, the record 2"),
        ({}, {"license": ""}, "the index says license '', the record 'CC0'"),
        ({}, {"hash": 1}, None),
    ],
)
def test_what_does_not_fit_is_a_problem(members: dict[str, bytes], row: Row, problem: str | None) -> None:
    sample, good = FORMAT.pack(EXAMPLE)
    problems = FORMAT.problems_of(changed(sample, **members), {**good, **row})
    assert len(problems) == (problem is not None)
    assert problem is None or problems[0].startswith(problem)


def test_spans_and_masks_are_held_against_caption_and_picture() -> None:
    record = Record.from_example(EXAMPLE)
    assert not list(span_problems("dog", 2, 5, record.caption))
    assert list(span_problems("cat", 2, 5, record.caption)) == ["is 'cat', but its span holds 'dog'"]
    pixels = np.zeros((4, 6), bool)
    pixels[1:3, 2:5] = True
    right = Segmentation.of(Mask.from_array(pixels))
    assert not list(mask_problems(right, 6, record, (2, 1, 3, 2)))
    assert list(mask_problems(right, 5, record)) == ["has area 5, its mask 6 pixels"]
    assert list(mask_problems(right, 6, record, (2, 1, 3, 3))) == ["has bbox [2, 1, 3, 3], its mask [2, 1, 3, 2]"]
    turned = Segmentation.of(Mask.from_array(pixels.T))
    assert list(mask_problems(turned, 6, record)) == ["has a mask of 4 x 6 pixels, the picture has 6 x 4"]
    broken = Segmentation(size=(4, 6), counts="0")
    assert len(list(mask_problems(broken, 6, record))) <= 2
