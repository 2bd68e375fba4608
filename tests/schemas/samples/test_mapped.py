"""Samples of the recipes with condition maps: what is written, and what `inspect` finds wrong."""

import json
from dataclasses import replace

import numpy as np
import pytest

from schemas.errors import RecordError
from schemas.maps import encode_png, make_map
from schemas.rejects import Reason
from schemas.samples import FORMATS
from schemas.samples.composer import decode_embedding, encode_embedding
from schemas.shards import Sample
from tests.mapped import mapped, person

CONTROLNET, COMPOSER = FORMATS["controlnet"], FORMATS["composer"]


def with_members(sample: Sample, **members: bytes) -> Sample:
    return Sample(sample.key, {**sample.members, **{name.replace("_", "."): value for name, value in members.items()}})


def test_a_sample_has_a_png_for_each_map_and_says_how_it_was_made() -> None:
    sample, row = CONTROLNET.pack(mapped())
    assert set(sample.members) == {"jpg", "json", "canny.png", "depth.png", "pose.png", "segmentation.png"}
    record = json.loads(sample.members["json"])
    assert list(record["maps"]) == ["canny", "depth", "pose", "segmentation"]
    assert record["maps"]["canny"]["range"] == [0, 65535]
    assert record["maps"]["canny"]["operator"] == "opencv Canny"
    assert record["maps"]["depth"]["operator"] == "source"
    assert [len(p["keypoints"]) for p in record["people"]] == [17]
    assert [(s["id"], s["label"], s["bbox"], s["area"]) for s in record["segments"]] == [
        (1, "dog", [4, 6, 20, 16], 320),
        (2, "cat", [30, 10, 20, 20], 400),
    ]
    assert row["maps"] == ["canny", "depth", "pose", "segmentation"]
    assert (row["people"], row["segments"], row["flat"]) == (1, 2, [])
    assert CONTROLNET.problems_of(sample, row) == []


def test_what_no_map_needs_is_not_in_the_json() -> None:
    sample, row = CONTROLNET.pack(mapped(maps=("canny",)))
    assert not {"people", "segments"} & json.loads(sample.members["json"]).keys()
    assert CONTROLNET.problems_of(sample, row) == []


def test_a_composer_sample_has_palette_and_embedding() -> None:
    sample, row = COMPOSER.pack(mapped(maps=("sketch",)))
    assert set(sample.members) == {"jpg", "json", "sketch.png", "embedding.npy"}
    record = json.loads(sample.members["json"])
    assert len(record["palette"]) == 180
    assert record["embedding_size"] == 8
    assert np.linalg.norm(decode_embedding(sample.members["embedding.npy"])) == pytest.approx(1)
    assert COMPOSER.problems_of(sample, row) == []
    short = with_members(sample, embedding_npy=encode_embedding(np.ones(7, np.float32)))
    assert "shape (7,), its JSON says 8" in COMPOSER.problems_of(short, row)[0]
    for broken in (b"", b"no", encode_embedding(np.full(8, np.nan, np.float32))):
        assert "embedding.npy" in COMPOSER.problems_of(with_members(sample, embedding_npy=broken), row)[0]


def test_maps_of_one_value_are_named_and_a_sample_of_nothing_else_is_refused() -> None:
    made = mapped(maps=("canny", "depth"))
    flat = make_map("canny", np.zeros((48, 64), np.uint16), "opencv Canny", "1", {})
    _, row = CONTROLNET.pack(replace(made, maps={**made.maps, "canny": flat}))
    assert row["flat"] == ["canny"]
    with pytest.raises(RecordError, match=r"\(canny\) are equal") as caught:
        CONTROLNET.pack(replace(made, maps={"canny": flat}))
    assert caught.value.reason is Reason.FLAT_MAP


def test_another_picture_s_map_is_noticed() -> None:
    sample, row = CONTROLNET.pack(mapped("a"))
    other, _ = CONTROLNET.pack(replace(mapped("b"), people=(person(0.9),)))
    size = encode_png(np.zeros((48, 65), np.uint16))
    cases = {
        "canny_png": (encode_png(np.full((48, 64), 9, np.uint16)), "is it another picture's?"),
        "depth_png": (size, "65 x 48 pixels"),
        "pose_png": (encode_png(np.full((48, 64, 3), 3, np.uint8)), "does not show its people"),
        "segmentation_png": (encode_png(np.full((48, 64), 7, np.uint8)), "the number 7"),
    }
    for name, (content, message) in cases.items():
        problems = CONTROLNET.problems_of(with_members(sample, **{name: content}), row)
        assert any(message in problem for problem in problems), (name, problems)
    broken = with_members(sample, canny_png=b"\x89PNG")
    assert "canny.png cannot be decoded" in CONTROLNET.problems_of(broken, row)[0]
    wrong = with_members(sample, canny_png=other.members["pose.png"])
    assert "3 channels of 8 bits" in CONTROLNET.problems_of(wrong, row)[0]


def test_missing_and_superfluous_maps_are_noticed() -> None:
    sample, row = CONTROLNET.pack(mapped())
    lacking = Sample(sample.key, {name: v for name, v in sample.members.items() if name != "depth.png"})
    assert "has members" in CONTROLNET.problems_of(lacking, row)[0]
    assert "has members" in CONTROLNET.problems_of(with_members(sample, lines_png=b""), row)[0]
    assert "has members json" in CONTROLNET.problems_of(Sample("k", {"json": b"{}"}), row)[0]
    record = json.loads(sample.members["json"])
    for change, message in (
        ({"people": None}, "pose map or what it shows"),
        ({"maps": {**record["maps"], "canny": {**record["maps"]["canny"], "range": [0, 1]}}}, "canny has the range"),
        ({"segments": record["segments"][:1]}, "the number 2"),
    ):
        changed = with_members(sample, json=json.dumps({**record, **change}).encode())
        assert any(message in problem for problem in CONTROLNET.problems_of(changed, row)), message
