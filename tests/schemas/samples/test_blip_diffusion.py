import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from schemas.example import Example, Placement, Salience, Subject
from schemas.images import decode_grey, encode_grey
from schemas.samples.blip_diffusion import FORMAT, Record, bbox_of
from schemas.shards import Sample
from tests.training.pairs import pair


def matted() -> Example:
    """A pair of 60 x 40 pixels: alpha 1 in a box of 10 x 20, one half in the column right of it."""
    alpha, trimap = np.zeros((40, 60), np.uint8), np.zeros((40, 60), np.uint8)
    alpha[4:24, 6:16] = trimap[4:24, 6:16] = 255
    alpha[4:24, 16], trimap[4:24, 16] = 128, 128
    example = pair("dog-1", placement=Placement("sky.jpg", 1.25, (3, -2), flip=True))
    return replace(
        example,
        alpha=encode_grey(alpha),
        trimap=encode_grey(trimap),
        subject=Subject("ball", "a red ball"),
        caption_origin="blip2",
    )


def row_of(example: Example) -> dict[str, Any]:
    told = {"caption": example.caption, "width": 60, "height": 40, "source": example.source.uri, "license": ""}
    return told | FORMAT.pack(example)[1]


def test_the_json_is_the_one_that_the_contract_lays_down() -> None:
    assert json.loads(FORMAT.pack(matted())[0].members["json"]) == {
        "key": "dog-1",
        "caption": "a red ball on grass",
        "caption_origin": "blip2",
        "subject": "ball",
        "phrase": "a red ball",
        "origin": "caption",
        "width": 60,
        "height": 40,
        "bbox": [6, 4, 11, 20],
        "foreground_fraction": round((200 + 20 * 128 / 255) / 2400, 4),
        "unknown_fraction": round(20 / 2400, 4),
        "background": "sky.jpg",
        "placement": {"scale": 1.25, "shift": [3, -2], "flip": True},
        "source": {"uri": "dog-1.jpg", "license": ""},
    }


def test_the_members_are_the_five_and_an_annotated_subject_has_no_phrase() -> None:
    sample = FORMAT.pack(pair("k"))[0]
    assert set(sample.members) == FORMAT.member_names == {"target.jpg", "input.jpg", "alpha.png", "trimap.png", "json"}
    assert (Record.from_sample(sample).origin, Record.from_sample(sample).phrase) == ("annotation", "")


def test_the_index_holds_the_salience_of_an_annotated_subject() -> None:
    parts = ("area", "centrality", "wholeness", "border")
    assert [FORMAT.pack(matted())[1][part] for part in parts] == [None] * 4
    example = pair("k")
    assert example.subject is not None
    salient = replace(example, subject=replace(example.subject, salience=Salience(0.123456, 0.5, 1.0, 0.0)))
    assert [FORMAT.pack(salient)[1][part] for part in parts] == [0.1235, 0.5, 1.0, 0.0]
    assert FORMAT.pack(salient)[0] == FORMAT.pack(example)[0]


def test_a_sound_sample_has_no_problems() -> None:
    assert FORMAT.problems_of(FORMAT.pack(matted())[0], row_of(matted())) == []


def test_no_alpha_of_a_half_is_an_empty_box() -> None:
    assert bbox_of(np.full((4, 5), 127, np.uint8)) == (0, 0, 0, 0)
    assert bbox_of(np.full((4, 5), 128, np.uint8)) == (0, 0, 5, 4)


def broken(name: str, content: bytes) -> Sample:
    sample = FORMAT.pack(matted())[0]
    return Sample(sample.key, {**sample.members, name: content})


def test_everything_wrong_with_a_sample_is_said() -> None:
    row = row_of(matted())
    alpha = decode_grey(matted().alpha)
    moved, strange = np.roll(alpha, 2, axis=1), np.where(alpha == 128, 100, alpha).astype(np.uint8)
    record = json.loads(FORMAT.pack(matted())[0].members["json"])
    cases = {
        "cannot be decoded": broken("target.jpg", b"no picture"),
        "is 60 x 39 pixels, its JSON says 60 x 40": broken("trimap.png", encode_grey(alpha[:39])),
        "alpha differs from the trimap where the trimap is known": broken("alpha.png", encode_grey(moved)),
        "the trimap holds 100": broken("trimap.png", encode_grey(strange)),
        "the JSON says bbox [0, 4, 11, 20], alpha [6, 4, 11, 20]": broken(
            "json", json.dumps(record | {"bbox": [0, 4, 11, 20]}).encode()
        ),
        "the JSON says foreground_fraction 0.5": broken(
            "json", json.dumps(record | {"foreground_fraction": 0.5}).encode()
        ),
        "is not a blip-diffusion record: subject": broken(
            "json", json.dumps({k: v for k, v in record.items() if k != "subject"}).encode()
        ),
    }
    for message, sample in cases.items():
        assert any(message in problem for problem in FORMAT.problems_of(sample, row)), message
    wrong_row = row | {"background": "sea.jpg"}
    (problem,) = FORMAT.problems_of(FORMAT.pack(matted())[0], wrong_row)
    assert problem == "the index says background 'sea.jpg', the record 'sky.jpg'"


@pytest.mark.parametrize("bad", [b"", b"\x89PNG\r\n", encode_grey(np.zeros((2, 2), np.uint8))[:30]])
def test_a_broken_png_is_a_problem_not_a_crash(bad: bytes) -> None:
    assert any(
        "alpha.png cannot be decoded" in p for p in FORMAT.problems_of(broken("alpha.png", bad), row_of(matted()))
    )
