"""The recipe end to end, with the models of the sample preset."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from benchmarks.accuracy import link_scores, read_truths
from jobs.build import Request, build
from jobs.exports.folder import read_samples
from jobs.inspect import inspect
from jobs.scenes import write_scenes
from pipelines.fastcomposer import FastComposerConfig
from schemas.errors import ConfigError, InputError, ModelError
from schemas.example import Segment
from schemas.masks import Mask
from tests.pictures import Member, tar
from transforms.models.presets import resolve

SAMPLE = resolve("sample", {})
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "scenes"
    list(write_scenes(folder, count=32, seed=77))
    return folder


@pytest.fixture(scope="module")
def dataset(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("built") / "dataset"
    build(request(scenes, output), QUIET)
    return output


def request(scenes: Path, output: Path, **changes: object) -> Request:
    config = FastComposerConfig(samples_per_shard=12)
    options: Any = {"config": config, "models": SAMPLE, **changes}
    return Request("fastcomposer", str(scenes / "images"), str(output), **options)


def digests(output: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(output.glob("*.tar"))}


def test_phrases_are_linked_to_the_objects_they_name(scenes: Path, dataset: Path) -> None:
    scores = link_scores(dataset, read_truths(scenes))
    assert scores["precision"] >= 0.85
    assert scores["recall"] >= 0.75


def test_masks_without_names_are_linked_by_their_pixels(scenes: Path, tmp_path: Path) -> None:
    """The same scenes as SA-1B's tars, with the true masks and no segmenter."""
    listed: list[Member] = []
    for key, truth in read_truths(scenes).items():
        size = truth["objects"][0]["segmentation"]["size"]
        annotations = [{"segmentation": thing["segmentation"], "predicted_iou": 0.9} for thing in truth["objects"]]
        annotation = {"image": {"height": size[0], "width": size[1]}, "annotations": annotations}
        listed.append((f"./{key}.jpg", (scenes / "images" / f"{key}.jpg").read_bytes()))
        listed += [(f"./{key}.json", json.dumps(annotation)), (f"./{key}.txt", truth["caption"])]
    (tmp_path / "sa_000000.tar").write_bytes(tar(listed))
    info = build(Request("fastcomposer", str(tmp_path), str(tmp_path / "out"), FastComposerConfig(), SAMPLE), QUIET)
    assert set(info.models) == {"parser", "clip"}
    assert inspect(str(tmp_path / "out")).problems == ()
    scores = link_scores(tmp_path / "out", read_truths(scenes))
    assert scores["precision"] >= 0.95
    assert scores["recall"] >= 0.85


def test_the_dataset_is_sound_and_its_books_balance(dataset: Path) -> None:
    inspection = inspect(str(dataset))
    assert inspection.problems == ()
    counts = inspection.info.counts
    assert counts.read == 32 == counts.written + counts.rejected
    assert counts.shards == 3
    assert set(inspection.info.models) == {"parser", "segmenter", "clip"}
    assert all(model.revision.startswith("sha256:") for model in inspection.info.models.values())
    assert list(inspection.info.seconds) == ["read", "phrases", "segments", "similarity", "matches", "write"]


def test_the_sources_own_jpegs_are_kept(scenes: Path, dataset: Path) -> None:
    index = pq.read_table(dataset / "index.parquet").to_pylist()
    assert len(index) >= 5
    for row in index[:5]:
        tar = (dataset / row["shard"]).read_bytes()[row["offset"] : row["offset"] + row["size"]]
        assert (scenes / "images" / f"{row['key']}.jpg").read_bytes() in tar


@pytest.mark.slow
def test_two_workers_write_the_same_bytes_as_one(scenes: Path, dataset: Path, tmp_path: Path) -> None:
    options = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")
    build(request(scenes, tmp_path / "two", beam_options=options), QUIET)
    assert digests(tmp_path / "two") == digests(dataset)
    for name in ("index.parquet", "rejects.parquet"):
        assert pq.read_table(tmp_path / "two" / name) == pq.read_table(dataset / name)


@pytest.mark.slow
def test_a_killed_job_goes_on_to_the_same_bytes(scenes: Path, dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "killed"
    config = tmp_path / "config.yaml"
    config.write_text("samples_per_shard: 12\n")
    command = [
        sys.executable,
        "-c",
        "import jobs.build; jobs.build.SHARDS_PER_ROUND = 1; from jobs.main import main; main()",
    ]
    arguments = [
        "build",
        "fastcomposer",
        "--input",
        str(scenes / "images"),
        "--output",
        str(output),
        "--config",
        str(config),
    ]
    first_part = output / ".subjectloom" / "part-000000.parquet"
    with subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL, start_new_session=True) as job:
        while job.poll() is None and not first_part.exists():
            time.sleep(0.02)
        os.killpg(job.pid, signal.SIGKILL)
    assert not (output / "dataset.json").exists()
    with pytest.raises(InputError, match="holds an interrupted run with 1 finished shards: --resume goes on with it"):
        build(request(scenes, output), QUIET)
    before = first_part.stat().st_mtime_ns
    info = build(request(scenes, output, resume=True), QUIET)
    assert info.counts.read == 32
    assert digests(output) == digests(dataset)
    assert first_part.stat().st_mtime_ns == before  # a finished shard is not built again


def test_one_poisoned_picture_among_sixty_four_is_one_reject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(64):
        shade = 13 if i == 37 else 100
        Image.new("RGB", (64, 64), (shade, shade, shade)).save(pictures / f"{i:02d}.png")
        (pictures / f"{i:02d}.txt").write_text("a red ball")

    ball = Segment("ball", 0.9, Mask.from_array(np.eye(64, dtype=bool)))

    def poisoned(_: object, images: list[np.ndarray]) -> list[tuple[Segment, ...]]:
        if any(image[0, 0, 0] < 50 for image in images):
            raise RuntimeError("this picture breaks the model")
        return [(ball,) for _ in images]

    monkeypatch.setattr("transforms.models.segmenter.segment_images", poisoned)
    info = build(
        Request("fastcomposer", str(pictures), str(tmp_path / "out"), FastComposerConfig(similarity="label"), SAMPLE),
        QUIET,
    )
    assert (info.counts.read, info.counts.written, info.counts.rejected) == (64, 63, 1)
    (row,) = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert (row["key"], row["stage"], row["reason"]) == ("37", "segments", "step-failed")
    assert row["detail"] == "RuntimeError: this picture breaks the model"


def test_pictures_without_a_match_are_counted(scenes: Path, tmp_path: Path) -> None:
    config = FastComposerConfig(threshold=1.0)
    info = build(request(scenes, tmp_path / "none", config=config, limit=3), QUIET)
    assert (info.counts.read, info.counts.written) == (3, 0)
    assert info.counts.rejects == {"matches": {"no-match": 3}}


def test_a_missing_checkpoint_is_a_plain_message(scenes: Path, tmp_path: Path) -> None:
    models = resolve("sample", {"segmenter": str(tmp_path / "nowhere")})
    with pytest.raises(ModelError, match=r"^no segmenter .*nowhere: looked for .* is downloaded$"):
        build(request(scenes, tmp_path / "out", models=models, limit=1), QUIET)


def test_a_mistyped_beam_option_is_refused(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Beam has no option --direct_num_wrokers=2"):
        build(request(scenes, tmp_path / "out", beam_options=("--direct_num_wrokers=2",)), QUIET)


def test_the_source_caption_is_kept_beside_the_expanded_one(tmp_path: Path, scenes: Path) -> None:
    truths = read_truths(scenes)
    key = next(key for key, truth in truths.items() if " two " in f" {truth['caption'].lower()}")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for suffix in (".jpg", ".txt"):
        (pictures / f"{key}{suffix}").write_bytes((scenes / "images" / f"{key}{suffix}").read_bytes())
    build(Request("fastcomposer", str(pictures), str(tmp_path / "out"), FastComposerConfig(), SAMPLE), QUIET)
    (row,) = pq.read_table(tmp_path / "out" / "index.parquet").to_pylist()
    tar = (tmp_path / "out" / row["shard"]).read_bytes()
    record = json.loads(tar[tar.index(b'{"') : tar.rindex(b"}") + 1])
    assert record["source_caption"] == truths[key]["caption"]
    assert record["caption"] != record["source_caption"]
    spans = [record["caption"][phrase["start"] : phrase["end"]] for phrase in record["phrases"]]
    assert len(spans) >= 2
    assert spans == [phrase["text"] for phrase in record["phrases"]]


@pytest.mark.parametrize(
    ("plurals", "things"),
    [
        ("union", {"A group of people": 3, "a dog": 1}),
        ("one", {"A group of people": 1, "a dog": 1}),
        ("leave-out", {"a dog": 1}),
    ],
)
def test_a_phrase_for_several_things_names_them_all(tmp_path: Path, plurals: Any, things: dict[str, int]) -> None:  # noqa: ANN401
    Image.new("RGB", (64, 48), (90, 120, 90)).save(tmp_path / "a.jpg")
    corners = [(4, 4), (20, 4), (36, 4), (50, 30)]
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1 + (i == 3), "iscrowd": 0, "bbox": [x, y, 10, 12], "area": 120,
         "segmentation": [[x, y, x + 10, y, x + 10, y + 12, x, y + 12]]}
        for i, (x, y) in enumerate(corners)
    ]  # fmt: skip
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}],
        "annotations": annotations,
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    (tmp_path / "a.txt").write_text("A group of people with a dog")
    config = FastComposerConfig(similarity="label", plurals=plurals)
    build(Request("fastcomposer", str(tmp_path), str(tmp_path / "out"), config, SAMPLE), QUIET)
    assert inspect(str(tmp_path / "out")).problems == ()
    (sample,) = read_samples(str(tmp_path / "out"), "fastcomposer")
    record = json.loads(sample.members["json"])
    assert {subject["text"]: subject["segments"] for subject in record["subjects"]} == things
    assert [subject["area"] for subject in record["subjects"]] == [120 * count for count in things.values()]
    assert record["segments_unmatched"] == 4 - sum(things.values())
