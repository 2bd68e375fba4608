"""GLIGEN's recipe: boxes of scenes against the truth, classes without captions, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from jobs.build import Request, build
from jobs.exports.folder import read_samples
from jobs.scenes import write_scenes
from pipelines.gligen import SAMPLE_NORM, GligenConfig
from schemas.boxes import iou
from schemas.errors import ConfigError
from schemas.samples.gligen import Record, read_array
from tests.recipes import plan
from tests.transforms.sources.test_open_images import row, write
from transforms.listing import Listing
from transforms.models.clip import load_clip
from transforms.models.clip_features import embed_phrases
from transforms.models.presets import resolve

SAMPLE = resolve("sample", {})
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gligen") / "scenes"
    list(write_scenes(folder, count=16, seed=78, size=128, objects=(1, 3)))
    return folder


@pytest.fixture(scope="module")
def records(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    output = tmp_path_factory.mktemp("built") / "dataset"
    info = build(Request("gligen", str(world / "images"), str(output), GligenConfig(), SAMPLE), QUIET)
    assert info.config["norm"] == SAMPLE_NORM
    samples = list(read_samples(str(output), "gligen"))
    for sample in samples:
        rows = read_array(sample.members["image_reprojected.npy"], len(Record.from_sample(sample).boxes))
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), SAMPLE_NORM, rtol=1e-4)
    return {sample.key: Record.from_sample(sample) for sample in samples}


def test_boxes_are_those_of_the_things_that_phrases_name(world: Path, records: dict[str, Record]) -> None:
    overlaps = []
    for key, record in records.items():
        truth = json.loads((world / "truth" / f"{key}.json").read_text())["objects"]
        for box in record.boxes:
            ((start, end),) = box.spans
            assert record.caption[start:end] == box.text
            own = [iou(box.bbox, tuple(t["bbox"])) for t in truth if t["phrase"] and t["start"] == start]
            overlaps.append(max(own, default=0.0))
    assert len(overlaps) > 16
    assert np.mean(np.array(overlaps) > 0.5) > 0.8


def test_the_sample_norm_is_the_measured_mean(records: dict[str, Record]) -> None:
    texts = [box.text for record in records.values() for box in record.boxes]
    lengths = np.linalg.norm(embed_phrases(load_clip(SAMPLE.clip), texts)[0], axis=1)
    assert lengths.mean() == pytest.approx(SAMPLE_NORM, abs=0.03)


def test_annotated_boxes_become_rows_of_classes_without_captions(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    boxes = row("aa01", "/m/01", 0, 0.5, 0, 0.5) + row("aa01", "/m/02", 0.25, 0.75, 0.5, 1)
    folder = write(tmp_path / "in", boxes + row("aa01", "/m/02", 0, 1, 0, 1, group=1))
    output = tmp_path / "out"
    build(Request("gligen", str(folder), str(output), GligenConfig(), SAMPLE), QUIET)
    (record,) = (Record.from_sample(sample) for sample in read_samples(str(output), "gligen"))
    assert record.is_detection
    assert record.caption == ""
    assert [(box.text, box.spans, box.bbox) for box in record.boxes] == [
        ("teddy bear", (), (0, 0, 16, 12)),
        ("human face", (), (8, 12, 16, 12)),
    ]


def test_sources_decide_what_names_boxes_and_where_they_are_from() -> None:
    hub = resolve("hub", {})

    def settled(kind: str, models: object = SAMPLE, **fields: object) -> tuple[GligenConfig, set[str]]:
        config = GligenConfig(**fields)  # type: ignore[arg-type]
        return plan("gligen", config, models, Listing(kind, ()))  # type: ignore[arg-type]

    config, kinds = settled("folder")
    assert (config.rows, config.grounding, kinds) == ("phrases", "segments", {"parser", "segmenter", "clip"})
    config, kinds = settled("folder", hub)
    assert (config.grounding, config.norm, kinds) == ("detector", 28.7, {"parser", "detector", "sam", "clip"})
    config, kinds = settled("coco-instances")
    assert (config.grounding, kinds) == ("segments", {"parser", "clip"})
    config, kinds = settled("open-images")
    assert (config.rows, kinds) == ("classes", {"clip"})
    with pytest.raises(ConfigError, match="no annotated classes"):
        settled("folder", rows="classes")
    with pytest.raises(ConfigError, match="needs one"):
        settled("folder", grounding="detector")
    with pytest.raises(ConfigError, match="have no caption"):
        settled("open-images", captions="all")
