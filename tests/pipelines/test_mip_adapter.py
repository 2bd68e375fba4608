"""The recipe end to end: from SA-1B's masks, from SAM's, from a detector's boxes; the cut, and what a kill leaves."""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from jobs.build import Request, build
from jobs.exports.folder import read_samples
from jobs.inspect import inspect
from jobs.report.page import write_report
from jobs.scenes import scene_of, write_scenes
from pipelines.fastcomposer import FastComposerConfig
from pipelines.mip_adapter import MipAdapterConfig
from schemas.errors import ConfigError
from schemas.masks import Mask, intersection_over_union
from schemas.samples.mip_adapter import Record
from tests.grounding import write_detector
from tests.pictures import Member, tar
from tests.recipes import plan
from transforms.listing import list_source
from transforms.models import detector
from transforms.models.detector import Detections
from transforms.models.places import SAMPLE
from transforms.models.presets import resolve
from transforms.scenes import Scene

MODELS = resolve("sample", {})
QUIET = Console(quiet=True)
COUNT, SEED = 40, 91
WIDE: dict[str, Any] = {"min_area": 0.01, "min_aspect": 0.1, "max_aspect": 10.0, "fill": 0.2}
"""Gates that let the scenes' small and slender objects pass."""

needs_sam = pytest.mark.skipif(not (SAMPLE / "sam").is_dir(), reason="no sample SAM in this checkout")


def members(key: str, scene: Scene) -> list[Member]:
    """A scene as SA-1B stores a picture, with its true masks."""
    stored = io.BytesIO()
    Image.fromarray(scene.image).save(stored, "JPEG", quality=92)
    side = scene.image.shape[0]
    annotations = [
        {
            "id": index,
            "segmentation": Mask.from_array(thing.mask).to_json(),
            "bbox": list(Mask.from_array(thing.mask).bbox),
            "area": int(thing.mask.sum()),
            "predicted_iou": 0.95,
            "stability_score": 0.97,
        }
        for index, thing in enumerate(scene.objects)
    ]
    told = {"image": {"width": side, "height": side, "file_name": f"{key}.jpg"}, "annotations": annotations}
    return [(f"{key}.jpg", stored.getvalue()), (f"{key}.json", json.dumps(told)), (f"{key}.txt", scene.caption)]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [scene_of(SEED, index, 128) for index in range(COUNT)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, scenes: list[Scene]) -> Path:
    """Two tars as SA-1B's; the second ends with every scene of the first ten once more."""
    folder = tmp_path_factory.mktemp("world")
    listed = [(f"sa_{i}", scene) for i, scene in enumerate(scenes)]
    again = [(f"sa_{i + 1000}", scene) for i, scene in enumerate(scenes[:10])]
    for number, some in enumerate((listed[:20], listed[20:] + again)):
        content = tar([member for key, scene in some for member in members(key, scene)])
        (folder / f"sa_{number:06d}.tar").write_bytes(content)
    return folder


def request(source: Path, output: Path, config: dict[str, Any] | None = None, **changes: Any) -> Request:  # noqa: ANN401
    asked = MipAdapterConfig(**{**WIDE, "samples_per_shard": 20, **(config or {})})
    return Request("mip-adapter", str(source), str(output), **{"config": asked, "models": MODELS, **changes})


@pytest.fixture(scope="module")
def dataset(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("built") / "dataset"
    build(request(source, output), QUIET)
    return output


def records_of(output: Path) -> dict[str, Record]:
    return {sample.key: Record.from_sample(sample) for sample in read_samples(str(output), "mip-adapter")}


def rejects_of(output: Path) -> dict[str, str]:
    return {row["key"]: row["reason"] for row in pq.read_table(output / "rejects.parquet").to_pylist()}


def digests(output: Path) -> dict[str, str]:
    files = [*output.glob("*.tar"), output / "index.parquet", output / "rejects.parquet"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}


def test_the_dataset_is_sound_and_its_books_balance(dataset: Path) -> None:
    inspection = inspect(str(dataset))
    assert inspection.problems == ()
    info = inspection.info
    assert info.counts.read == COUNT + 10 == info.counts.written + info.counts.rejected
    assert info.counts.written >= 10
    assert set(info.models) == {"parser", "clip"}  # the masks are the source's own
    assert info.config["grounding"] == "masks"
    stages = ["read", "phrases", "segments", "similarity", "matches", "grounding", "embeddings", "gates"]
    stages += ["quality", "look", "write"]
    assert [stage for stage in info.seconds if stage != "best"] == stages
    assert Path(write_report(str(dataset))).stat().st_size > 10_000


def test_objects_are_the_ones_that_the_scene_s_caption_names(dataset: Path, scenes: list[Scene]) -> None:
    right = total = 0
    for key, record in records_of(dataset).items():
        scene = scenes[int(key.removeprefix("sa_")) % 1000]
        truth = {thing.phrase: Mask.from_array(thing.mask) for thing in scene.objects if thing.phrase}
        for thing in record.objects:
            if (thing.start, thing.end) in truth:
                total += 1
                mask = thing.segmentation.to_mask()
                right += intersection_over_union(mask, truth[thing.start, thing.end]) > 0.9
                assert thing.bbox == mask.bbox
        assert len({thing.name for thing in record.objects}) >= 2
    assert total >= 20
    assert right >= 0.9 * total


def test_of_pictures_that_look_the_same_one_stays(dataset: Path) -> None:
    kept, rejects = set(records_of(dataset)), rejects_of(dataset)
    twins = [(f"sa_{i}", f"sa_{i + 1000}") for i in range(10)]
    passed = [pair for pair in twins if kept & set(pair)]
    assert len(passed) >= 3
    for pair in passed:
        (other,) = set(pair) - kept
        assert rejects[other] == "near-duplicate"


def test_the_best_are_those_of_highest_quality(dataset: Path, source: Path, tmp_path: Path) -> None:
    quality = {key: record.quality.total for key, record in records_of(dataset).items()}
    best = sorted(quality, key=lambda key: (-quality[key], key))[:6]
    info = build(request(source, tmp_path, {"best": 6}), QUIET)
    assert sorted(records_of(tmp_path)) == sorted(best)
    assert info.counts.rejects["best"]["below-cut"] == len(quality) - 6
    assert inspect(str(tmp_path)).problems == ()
    lowest = min(quality[key] for key in best)
    other = tmp_path.with_name("other")
    build(request(source, other, {"min_quality": lowest}), QUIET)
    assert sorted(records_of(other)) == sorted(best)
    assert "low-quality" in rejects_of(other).values()


def test_two_workers_and_a_second_run_write_the_same_bytes(dataset: Path, source: Path, tmp_path: Path) -> None:
    two = ("--direct_num_workers=2", "--direct_running_mode=multi_threading")
    build(request(source, tmp_path, beam_options=two), QUIET)
    assert digests(tmp_path) == digests(dataset)
    build(request(source, tmp_path, resume=True), QUIET)
    assert digests(tmp_path) == digests(dataset)


def true_detections(scenes: list[Scene]) -> Callable[..., list[Detections]]:
    """A detector that finds what it is asked for: the true boxes, half a pixel wider on each side."""

    def scene_like(picture: NDArray[np.uint8]) -> Scene:
        return min(scenes, key=lambda scene: float(np.abs(scene.image.astype(float) - picture).mean()))

    def detect(_: object, pictures: Sequence[NDArray[np.uint8]], texts: Sequence[Sequence[str]]) -> list[Detections]:
        found = []
        for picture, phrases in zip(pictures, texts, strict=True):
            scene = scene_like(picture)
            boxes = [Mask.from_array(thing.mask).bbox for thing in scene.objects]
            corners = [(x - 0.5, y - 0.5, x + w + 0.5, y + h + 0.5) for x, y, w, h in boxes]
            named = [scene.caption[slice(*thing.phrase)] if thing.phrase else "" for thing in scene.objects]
            scores = [[0.9 if name == phrase else 0.0 for name in named] for phrase in phrases]
            found.append(Detections(np.clip(corners, 0, len(picture)).astype(np.float32), np.array(scores, np.float32)))
        return found

    return detect


def test_a_detector_s_boxes_are_filled_from_the_source_s_masks(
    source: Path, scenes: list[Scene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_detector(tmp_path / "detector")
    models = resolve("sample", {"detector": str(tmp_path / "detector")})
    asked = MipAdapterConfig(**{**WIDE, "box_threshold": 0.5})
    settled, kinds = plan("mip-adapter", asked, models, list_source(str(source)))
    assert settled.grounding == "detector"
    assert kinds == {"parser", "clip", "detector"}
    monkeypatch.setattr(detector, "detect_phrases", true_detections(scenes))
    info = build(Request("mip-adapter", str(source), str(tmp_path / "out"), asked, models, limit=8), QUIET)
    assert info.counts.read == 8
    assert info.models["detector"].revision.startswith("sha256:")
    records = records_of(tmp_path / "out")
    assert len(records) >= 3
    for key, record in records.items():
        scene = scenes[int(key.removeprefix("sa_"))]
        truth = {Mask.from_array(thing.mask): thing.phrase for thing in scene.objects}
        assert len(record.objects) >= 2
        for thing in record.objects:
            mask = thing.segmentation.to_mask()
            assert truth.get(mask) is not None  # pixel for pixel one of the source's masks
            x, y, w, h = mask.bbox
            left, top, width, height = thing.bbox  # the detector's box: it reaches past the mask, the picture allowing
            assert (left, top) == (max(x - 1, 0), max(y - 1, 0))
            assert (left + width, top + height) == (min(x + w + 1, 128), min(y + h + 1, 128))
            assert thing.score == 0.9


def test_what_contradicts_itself_is_refused_before_anything_runs(source: Path) -> None:
    listing = list_source(str(source))
    with pytest.raises(ConfigError, match="grounding = detector needs one: choose --preset hub"):
        plan("mip-adapter", MipAdapterConfig(grounding="detector"), MODELS, listing)
    with pytest.raises(ConfigError, match=r"sa-1b have no class names.*choose --similarity clip"):
        plan("mip-adapter", MipAdapterConfig(similarity="label"), MODELS, listing)


@needs_sam
@pytest.mark.slow
def test_pictures_without_masks_have_sam_s_in_both_recipes(tmp_path: Path) -> None:
    for _ in write_scenes(tmp_path / "scenes", 12, SEED, 256):
        pass
    images = tmp_path / "scenes" / "images"
    info = build(request(images, tmp_path / "mip"), QUIET)
    assert set(info.models) == {"parser", "clip", "sam"}
    right = total = 0
    for key, record in records_of(tmp_path / "mip").items():
        scene = scene_of(SEED, int(key), 256)
        truth = {thing.phrase: Mask.from_array(thing.mask) for thing in scene.objects if thing.phrase}
        for thing in record.objects:
            if (thing.start, thing.end) in truth:
                total += 1
                right += intersection_over_union(thing.segmentation.to_mask(), truth[thing.start, thing.end]) > 0.6
    assert total >= 4
    assert right >= 0.7 * total
    fast = FastComposerConfig(segmenter="sam")
    info = build(Request("fastcomposer", str(images), str(tmp_path / "fast"), fast, MODELS, limit=4), QUIET)
    assert set(info.models) == {"parser", "clip", "sam"}
    assert info.counts.written >= 2
    with pytest.raises(ConfigError, match="SAM have no class names"):
        plan("fastcomposer", FastComposerConfig(segmenter="sam", similarity="label"), MODELS, list_source(str(images)))
