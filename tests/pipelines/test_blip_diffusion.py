"""The recipe end to end: from masks, from boxes, from captions alone."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from jobs.build import Request, build
from jobs.exports.folder import read_samples
from jobs.inspect import inspect
from jobs.scenes import scene_of, write_scenes
from pipelines.blip_diffusion import BlipDiffusionConfig
from schemas.dataset import DatasetInfo
from schemas.errors import InputError
from schemas.images import decode_grey, decode_image
from schemas.masks import Mask
from schemas.samples.blip_diffusion import Record
from schemas.shards import Sample
from transforms.matting.closed_form import closed_form_alpha
from transforms.models.places import SAMPLE
from transforms.models.presets import resolve

MODELS = resolve("sample", {})
QUIET = Console(quiet=True)
COUNT, SEED = 24, 77

needs_clipseg = pytest.mark.skipif(not (SAMPLE / "clipseg").is_dir(), reason="no sample CLIPSeg in this checkout")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes with their masks as COCO's instances, and pictures of a person, of a speck and of nothing."""
    folder = tmp_path_factory.mktemp("world")
    scenes = [scene_of(SEED, index, 128) for index in range(COUNT)]
    nouns = sorted({thing.noun for scene in scenes for thing in scene.objects} | {"person"})
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []

    def add(name: str, pixels: np.ndarray, caption: str, things: list[tuple[str, np.ndarray]]) -> None:
        Image.fromarray(pixels).save(folder / f"{name}.jpg", quality=92)
        (folder / f"{name}.txt").write_text(caption)
        images.append({"id": len(images), "file_name": f"{name}.jpg", "width": 128, "height": 128})
        for noun, mask in things:
            common = {"image_id": len(images) - 1, "category_id": nouns.index(noun), "iscrowd": 0}
            annotations.append(common | {"id": len(annotations), "segmentation": Mask.from_array(mask).to_json()})

    for index, scene in enumerate(scenes):
        add(f"{index:06d}", scene.image, scene.caption, [(thing.noun, thing.mask) for thing in scene.objects])
    grey, middle, speck = np.full((128, 128, 3), 90, np.uint8), np.zeros((128, 128), bool), np.zeros((128, 128), bool)
    middle[30:90, 40:80], speck[60:64, 60:64] = True, True
    add("person", grey, "a man", [("person", middle)])
    add("speck", grey, "a ball", [("ball", speck)])
    add("nothing", grey, "a ball", [])
    categories = [{"id": i, "name": noun} for i, noun in enumerate(nouns)]
    contents = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances_scenes.json").write_text(json.dumps(contents))
    return folder


def request(source: Path, output: Path, **changes: Any) -> Request:  # noqa: ANN401
    config = BlipDiffusionConfig(samples_per_shard=9, scale=(0.7, 1.2), move=True, flip=0.5)
    return Request("blip-diffusion", str(source), str(output), **{"config": config, "models": MODELS, **changes})


@pytest.fixture(scope="module")
def dataset(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("built") / "dataset"
    build(request(source, output), QUIET)
    return output


def digests(output: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(output.glob("*.tar"))}


def samples_of(output: Path) -> list[tuple[Record, Sample]]:
    return [(Record.from_sample(sample), sample) for sample in read_samples(str(output), "blip-diffusion")]


def test_the_dataset_is_sound_and_its_books_balance(dataset: Path) -> None:
    inspection = inspect(str(dataset))
    assert inspection.problems == ()
    counts = inspection.info.counts
    assert counts.read == COUNT + 3 == counts.written + counts.rejected
    assert counts.shards == 3
    assert counts.written >= 5
    assert inspection.info.models == {}  # masks and captions are the source's own
    assert list(inspection.info.seconds) == ["read", "size", "subject", "trimap", "matte", "composite", "write"]


def test_the_index_holds_what_made_each_annotated_subject_salient(dataset: Path) -> None:
    rows = pq.read_table(dataset / "index.parquet").to_pylist()
    assert rows
    for row in rows:
        assert 0.03 <= row["area"] <= 0.7
        assert 0.5 <= row["centrality"] <= 1
        assert 0.9 < row["wholeness"] <= 1
        assert 0 <= row["border"] <= 0.05


def test_each_filter_has_its_reason_and_count(dataset: Path) -> None:
    rejects = {row["key"]: row["reason"] for row in pq.read_table(dataset / "rejects.parquet").to_pylist()}
    assert rejects["person"] == "person-subject"
    assert rejects["speck"] == "small-subject"
    assert rejects["nothing"] == "no-subject"
    assert "many-subjects" in rejects.values()
    counted = json.loads((dataset / "dataset.json").read_text())["counts"]["rejects"]
    assert {reason: n for stage in counted.values() for reason, n in stage.items()} == Counter(rejects.values())


def test_the_matte_is_that_of_the_largest_object(dataset: Path) -> None:
    errors = []
    for record, sample in samples_of(dataset):
        scene = scene_of(SEED, int(record.key), 128)
        largest = max(scene.objects, key=lambda thing: int(thing.mask.sum()))
        assert record.subject == largest.noun
        alpha = decode_grey(sample.members["alpha.png"]).astype(int)
        errors.append(np.abs(alpha - largest.alpha).mean() / 255)
    assert np.mean(errors) <= 0.01
    assert np.max(errors) <= 0.03


def test_the_input_shows_the_subject_where_the_record_says(dataset: Path) -> None:
    found = samples_of(dataset)
    assert len(found) >= 4
    for record, sample in found:
        target, shown = (decode_image(sample.members[f"{name}.jpg"]).astype(int) for name in ("target", "input"))
        assert shown.shape == target.shape
        x, y, w, h = record.bbox
        placement = record.placement
        alpha = decode_grey(sample.members["alpha.png"])
        inside = np.argwhere(alpha == 255)
        row, column = inside[np.abs(inside - inside.mean(0)).sum(1).argmin()]
        dx, dy = column + 0.5 - (x + w / 2), row + 0.5 - (y + h / 2)
        middle = 128 - (x + w / 2) if placement.flip else x + w / 2
        moved_x = middle + (-dx if placement.flip else dx) * placement.scale + placement.shift[0]
        moved_y = y + h / 2 + dy * placement.scale + placement.shift[1]
        there = shown[round(moved_y - 1.5) : round(moved_y + 1.5), round(moved_x - 1.5) : round(moved_x + 1.5)]
        here = target[row - 1 : row + 2, column - 1 : column + 2]
        assert np.abs(there.mean((0, 1)) - here.mean((0, 1))).max() < 60


@pytest.mark.slow
def test_two_workers_write_the_same_bytes_as_one(source: Path, dataset: Path, tmp_path: Path) -> None:
    options = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")
    build(request(source, tmp_path / "two", beam_options=options), QUIET)
    assert digests(tmp_path / "two") == digests(dataset)
    for name in ("index.parquet", "rejects.parquet"):
        assert pq.read_table(tmp_path / "two" / name) == pq.read_table(dataset / name)


def test_a_resumed_build_writes_missing_shards_only(source: Path, dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "again"
    build(request(source, output), QUIET)
    assert digests(output) == digests(dataset)
    shard = output / "blip-diffusion-000001.tar"
    before = {path.name: path.stat().st_mtime_ns for path in output.glob("*.tar")}
    shard.unlink()
    (output / ".subjectloom" / "part-000001.parquet").unlink()
    build(request(source, output, resume=True), QUIET)
    assert digests(output) == digests(dataset)
    after = {path.name: path.stat().st_mtime_ns for path in output.glob("*.tar")}
    assert {name for name in before if before[name] != after[name]} == {shard.name}


def test_backgrounds_come_from_the_folder_and_a_new_one_makes_shards_out_of_date(source: Path, tmp_path: Path) -> None:
    backgrounds = tmp_path / "backgrounds"
    backgrounds.mkdir()
    for shade in (30, 200):
        Image.new("RGB", (50, 40), (shade, shade, shade)).save(backgrounds / f"{shade}.png")
    config = BlipDiffusionConfig(samples_per_shard=100, backgrounds=str(backgrounds))
    build(request(source, tmp_path / "out", config=config, limit=14), QUIET)
    found = samples_of(tmp_path / "out")
    assert {record.background for record, _ in found} == {"30.png", "200.png"}
    for record, sample in found:
        shown, alpha = decode_image(sample.members["input.jpg"]), decode_grey(sample.members["alpha.png"])
        assert abs(int(np.median(shown[alpha == 0])) - int(record.background.removesuffix(".png"))) <= 2
        subject = decode_image(sample.members["target.jpg"])[alpha == 255].astype(int)
        assert np.abs(shown[alpha == 255] - subject).mean() < 6
    before = digests(tmp_path / "out")
    Image.new("RGB", (50, 40), (120, 120, 120)).save(backgrounds / "new.png")
    build(request(source, tmp_path / "out", config=config, limit=14, resume=True), QUIET)
    assert digests(tmp_path / "out") != before
    with pytest.raises(InputError, match="there is no such file or folder"):
        build(request(source, tmp_path / "no", config=BlipDiffusionConfig(backgrounds=str(tmp_path / "x"))), QUIET)


def test_one_poisoned_picture_is_one_reject(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solve: Callable[..., Any] = closed_form_alpha
    calls = []

    def poisoned(image: np.ndarray, trimap: np.ndarray) -> Any:  # noqa: ANN401
        calls.append(trimap)
        if len({trimap.tobytes() for trimap in calls}) == 3:
            raise RuntimeError("this picture breaks the solver")
        return solve(image, trimap)

    config = BlipDiffusionConfig(samples_per_shard=100, rival=1)
    whole = build(request(source, tmp_path / "whole", config=config, limit=8), QUIET).counts
    monkeypatch.setattr("transforms.matting.cutout.closed_form_alpha", poisoned)
    counts = build(request(source, tmp_path / "out", config=config, limit=8), QUIET).counts
    assert counts.read == whole.read
    assert counts.written < whole.written
    assert counts.read == counts.written + counts.rejected


def test_configs_that_contradict_themselves_are_refused() -> None:
    for wrong, message in (
        ({"scale": (1.2, 0.8)}, "write two positive numbers, the smaller one first"),
        ({"min_area": 0.5, "max_area": 0.4}, "min_area 0.5 must be below max_area 0.4"),
        ({"lower": 0.9, "upper": 0.2}, "lower 0.9 must be below upper 0.2"),
    ):
        with pytest.raises(ValueError, match=message):
            BlipDiffusionConfig(**wrong)


@pytest.fixture(scope="module")
def from_captions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DatasetInfo]:
    folder = tmp_path_factory.mktemp("captions")
    list(write_scenes(folder / "scenes", COUNT, SEED))
    return folder / "out", build(request(folder / "scenes" / "images", folder / "out"), QUIET)


@needs_clipseg
def test_captions_alone_give_mattes_of_what_they_name(from_captions: tuple[Path, DatasetInfo]) -> None:
    output, info = from_captions
    assert set(info.models) == {"parser", "clipseg"}
    assert inspect(str(output)).problems == ()
    errors = []
    for record, sample in samples_of(output):
        scene = scene_of(SEED, int(record.key))
        assert record.phrase in scene.caption
        named = [thing for thing in scene.objects if thing.phrase and _words(scene.caption, thing) == record.phrase]
        assert named
        truth = np.max([thing.alpha for thing in named], axis=0).astype(int)
        errors.append(np.abs(decode_grey(sample.members["alpha.png"]) - truth).mean() / 255)
    assert len(errors) >= 4
    assert np.median(errors) <= 0.02


def _words(caption: str, thing: Any) -> str:  # noqa: ANN401
    return caption[thing.phrase[0] : thing.phrase[1]]


@needs_clipseg
def test_open_images_boxes_bound_their_subject(tmp_path: Path) -> None:
    scenes = {f"{index:04x}": scene_of(SEED, index) for index in range(10)}
    rows, names = [], sorted({thing.noun for scene in scenes.values() for thing in scene.objects})
    for name, scene in scenes.items():
        Image.fromarray(scene.image).save(tmp_path / f"{name}.jpg", quality=92)
        (tmp_path / f"{name}.txt").write_text(scene.caption)
        for thing in scene.objects:
            y, x = np.nonzero(thing.mask)
            edges = (x.min() / 256, (x.max() + 1) / 256, y.min() / 256, (y.max() + 1) / 256)
            rows.append(f"{name},x,/m/{names.index(thing.noun)},1," + ",".join(map(str, edges)) + ",0,0,0,0,0")
    head = (
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
    )
    (tmp_path / "train-annotations-bbox.csv").write_text("\n".join([head, *rows]) + "\n")
    classes = "".join(f"/m/{i},{noun.capitalize()}\n" for i, noun in enumerate(names))
    (tmp_path / "class-descriptions-boxable.csv").write_text(classes)
    info = build(request(tmp_path, tmp_path / "out", kind="open-images"), QUIET)
    assert set(info.models) == {"clipseg"}
    assert info.counts.read == 10 == info.counts.written + info.counts.rejected
    found = samples_of(tmp_path / "out")
    assert found
    for record, sample in found:
        scene = scenes[record.key]
        largest = max(scene.objects, key=lambda thing: np.ptp(np.nonzero(thing.mask), axis=1).prod())
        assert (record.subject, record.origin) == (largest.noun, "annotation")
        y, x = np.nonzero(largest.mask)
        outside = decode_grey(sample.members["alpha.png"]).copy()
        outside[max(0, y.min() - 4) : y.max() + 5, max(0, x.min() - 4) : x.max() + 5] = 0
        assert not outside.any()
