import dataclasses
import hashlib
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import RecordError
from schemas.rejects import Reason
from schemas.samples.fastcomposer import FORMAT, Record
from schemas.shards import Sample
from tests.datasets import example, jpeg
from tests.strategies import captions

PAIR = [("a red dog", (4, 6, 20, 16)), ("two cats", (30, 0, 34, 48))]


def sample_and_row(**changes: object) -> tuple[Sample, dict[str, Any]]:
    """A right sample with its row of the index, `changes` applied to its JSON."""
    made = example("dog-1", PAIR, extra_segments=1)
    row = {
        "caption": made.caption,
        "width": 64,
        "height": 48,
        "source": made.source.uri,
        "license": "CC0",
        **FORMAT.pack(made)[1],
    }
    sample = FORMAT.pack(made)[0]
    return Sample(
        sample.key, {**sample.members, "json": json.dumps(json.loads(sample.members["json"]) | changes).encode()}
    ), row


def test_the_json_is_the_one_that_the_contract_lays_down() -> None:
    record = json.loads(FORMAT.pack(example("dog-1", PAIR, extra_segments=3))[0].members["json"])
    mask = record["subjects"][1].pop("segmentation")
    record["subjects"][0].pop("segmentation")
    assert mask["size"] == [48, 64]
    assert record == {
        "key": "dog-1",
        "caption": "a red dog and two cats",
        "source_caption": "a red dog and two cats",
        "width": 64,
        "height": 48,
        "source": {"uri": "pictures/dog-1.jpg", "license": "CC0"},
        "phrases": [
            {"text": "a red dog", "start": 0, "end": 9, "root": "dog", "origin": [0, 9]},
            {"text": "two cats", "start": 14, "end": 22, "root": "cats", "origin": [14, 22]},
        ],
        "subjects": [
            {"phrase": 0, "text": "a red dog", "start": 0, "end": 9, "label": "dog", "score": 0.5,
             "bbox": [4, 6, 20, 16], "area": 320, "segments": 1},
            {"phrase": 1, "text": "two cats", "start": 14, "end": 22, "label": "cats", "score": 0.6,
             "bbox": [30, 0, 34, 48], "area": 1632, "segments": 1},
        ],
        "segments_unmatched": 3,
    }  # fmt: skip


def test_a_sample_is_pinned_byte_for_byte() -> None:
    made = dataclasses.replace(example("ü", PAIR), image=b"jpeg", caption="ein Hünd 🐕")
    sample = FORMAT.pack(made)[0]
    assert sample.members["jpg"] == b"jpeg"
    assert "ein Hünd 🐕".encode() in sample.members["json"]
    assert (
        hashlib.sha256(sample.members["json"]).hexdigest()
        == "e406554018c0dbc6cbea95a719f66a8cd61c652b80788399e0b92a02e4466c73"
    )


def test_subjects_stand_in_the_order_of_their_phrases_and_scores_have_four_decimals() -> None:
    made = example("a", PAIR)
    backwards = tuple(dataclasses.replace(m, score=1 / 3) for m in reversed(made.matches))
    record = Record.from_example(dataclasses.replace(made, matches=backwards))
    assert [(s.text, s.score) for s in record.subjects] == [("a red dog", 0.3333), ("two cats", 0.3333)]


def test_the_mask_of_several_segments_is_their_union() -> None:
    made = example("a", PAIR)
    (first, second), (left, right) = made.segments, made.matches
    both = dataclasses.replace(made, matches=(dataclasses.replace(left, others=(right.segment,)),))
    record = Record.from_example(both)
    (subject,) = record.subjects
    assert (subject.segments, record.segments_unmatched, subject.label) == (2, 0, "dog")
    assert (subject.area, subject.bbox) == (first.area + second.area, (4, 0, 60, 48))
    mask = subject.segmentation.to_mask().to_array()
    assert (mask == (first.mask.to_array() | second.mask.to_array())).all()
    assert FORMAT.problems_of(*FORMAT.pack(both)) == []


def test_a_record_of_an_earlier_version_has_one_segment_per_subject() -> None:
    sample = FORMAT.pack(example("a", PAIR))[0]
    earlier = sample.members["json"].replace(b',"segments":1', b"")
    assert earlier != sample.members["json"]
    assert Record.model_validate_json(earlier) == Record.from_sample(sample)


def test_other_captions_are_in_the_record_only_where_there_are_some() -> None:
    made = example("a", PAIR)
    alone = FORMAT.pack(made)[0].members["json"]
    sample, row = FORMAT.pack(dataclasses.replace(made, other_captions=("ein Hünd", "a pet")))
    added = ',"other_captions":["ein Hünd","a pet"]'.encode()
    assert sample.members["json"].replace(added, b"", 1) == alone != sample.members["json"]
    assert Record.from_sample(sample).to_example(made.image).other_captions == ("ein Hünd", "a pet")
    assert FORMAT.problems_of(sample, row) == []


def test_a_whole_number_as_score_stays_a_float() -> None:
    made = example("a")
    sample = FORMAT.pack(dataclasses.replace(made, matches=(dataclasses.replace(made.matches[0], score=1),)))[0]
    assert b'"score":1.0,' in sample.members["json"]


@given(captions, st.floats(0, 1))
def test_a_record_comes_back_as_the_example_it_was_made_from(text: str, score: float) -> None:
    made = example("a", [(text.replace(" and ", "+") + "x", (1, 2, 3, 4))])
    made = dataclasses.replace(
        made,
        segments=(dataclasses.replace(made.segments[0], score=1.0),),
        matches=(dataclasses.replace(made.matches[0], score=round(score, 4)),),
    )
    sample = FORMAT.pack(made)[0]
    assert Record.from_sample(sample).to_example(sample.members["jpg"]) == made


def test_an_example_without_a_match_is_refused() -> None:
    with pytest.raises(RecordError) as caught:
        FORMAT.pack(dataclasses.replace(example("a"), matches=()))[0]
    assert caught.value.reason == Reason.NO_MATCH


def test_nothing_is_wrong_with_a_right_sample() -> None:
    assert FORMAT.problems_of(*sample_and_row()) == []


subjects = json.loads(sample_and_row()[0].members["json"])["subjects"]
phrases = json.loads(sample_and_row()[0].members["json"])["phrases"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"width": "wide"}, "dog-1.json is not a fastcomposer record: width: Input should be a valid integer"),
        ({"subjects": []}, "subjects: List should have at least 1 item"),
        ({"colour": 1}, "colour: Extra inputs are not permitted"),
        ({"width": 65}, "dog-1.jpg is 64 x 48 pixels, its JSON says 65 x 48"),
        ({"caption": "A red dog and two cats"}, r"phrases\[0\] is 'a red dog', but its span holds 'A red dog'"),
        ({"segments_unmatched": 4}, "the index says segments_unmatched 1, the record 4"),
        ({"subjects": [subjects[0] | {"phrase": 5}, subjects[1]]}, r"subjects\[0\] names phrase 5, but there are 2"),
        ({"subjects": [subjects[0] | {"text": "a dog"}, subjects[1]]}, "says 'a dog', its phrase says 'a red dog'"),
        ({"subjects": [subjects[0] | {"area": 7}, subjects[1]]}, r"subjects\[0\] has area 7, its mask 320 pixels"),
        (
            {"subjects": [subjects[0], subjects[1] | {"bbox": [30, 0, 64, 48]}]},
            r"subjects\[1\] has bbox \[30, 0, 64, 48\], its mask \[30, 0, 34, 48\]",
        ),
        (
            {"subjects": [subjects[0] | {"segmentation": {"size": [64, 48], "counts": "P3"}}, subjects[1]]},
            r"subjects\[0\] has a mask of 48 x 64 pixels, the picture has 64 x 48",
        ),
        (
            {"subjects": [subjects[0] | {"score": 0.1}, subjects[1]]},
            r"the index says scores \[0.5, 0.6\], the record \[0.1, 0.6\]",
        ),
    ],
)
def test_what_is_wrong_with_a_sample_is_said(changes: dict[str, Any], problem: str) -> None:
    found = FORMAT.problems_of(*sample_and_row(**changes))
    assert any(re.search(problem, line) for line in found), found


def test_a_mask_that_cannot_be_decoded_is_said() -> None:
    broken = subjects[0] | {"segmentation": {"size": [48, 64], "counts": "????"}}
    found = FORMAT.problems_of(*sample_and_row(subjects=[broken, subjects[1]]))
    assert any(line.startswith("subjects[0] has") for line in found), found


def test_a_picture_that_cannot_be_decoded_is_said() -> None:
    sample, row = sample_and_row()
    cut = Sample(sample.key, {**sample.members, "jpg": jpeg(64, 48)[:200]})
    assert FORMAT.problems_of(cut, row)[0].startswith("dog-1.jpg cannot be decoded: ")


def test_the_index_has_the_columns_that_a_row_fills() -> None:
    assert set(FORMAT.pack(example("a"))[1]) == set(FORMAT.index_columns.names) - {"shard", "offset", "size", "crc32"}
    row = FORMAT.pack(dataclasses.replace(example("a", PAIR, extra_segments=2), left_out=3))[1]
    assert {name: row[name] for name in FORMAT.columns.names} == {
        "phrases": 2,
        "subjects": 2,
        "segments_unmatched": 2,
        "score_mean": 0.55,
        "score_min": 0.5,
        "scores": [0.5, 0.6],
        "labels": ["dog", "cats"],
        "annotations_left_out": 3,
    }
