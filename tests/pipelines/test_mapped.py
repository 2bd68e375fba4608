"""The recipes with condition maps end to end, in the sample preset."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from jobs.build import Request, build
from jobs.exports.folder import read_samples
from jobs.inspect import inspect
from jobs.scenes import scene_of, write_scenes
from pipelines import RECIPES
from pipelines.mapped import MapsConfig
from schemas.errors import ConfigError
from schemas.images import encode_jpeg
from schemas.maps import decode_map, encode_png, min_max, to_values
from tests.coco import instances, write
from tests.recipes import plan
from transforms.listing import list_source
from transforms.models.presets import resolve
from transforms.scenes.relief import true_relief

SAMPLE, HUB = resolve("sample", {}), resolve("hub", {})
QUIET = Console(quiet=True)
SEED = 77


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "scenes"
    list(write_scenes(folder, count=4, seed=SEED, size=128, maps=True))
    return folder


def run(recipe: str, source: Path, output: Path, **fields: Any) -> Path:  # noqa: ANN401
    config = RECIPES[recipe].config(**{"batch_size": 4, **fields})
    build(Request(recipe, str(source), str(output), config, SAMPLE), QUIET)
    return output


def test_controlnet_stores_every_map_that_needs_no_weights(scenes: Path, tmp_path: Path) -> None:
    kinds = ("canny", "sketch", "scribble", "lines", "depth", "normal", "segmentation")
    output = run("controlnet", scenes / "images", tmp_path / "out", maps=kinds)
    assert inspect(str(output)).problems == ()
    samples = list(read_samples(str(output), "controlnet"))
    assert len(samples) == 4
    for index, sample in enumerate(samples):
        assert set(sample.members) == {"jpg", "json", *(f"{kind}.png" for kind in kinds)}
        height, normals = true_relief(scene_of(SEED, index, 128))
        depth = decode_map("depth", sample.members["depth.png"])
        assert depth / 65535 * 128 == pytest.approx(height, abs=0.01)
        stored = to_values("normal", decode_map("normal", sample.members["normal.png"]), (-1.0, 1.0))
        assert stored == pytest.approx(normals, abs=0.005)
    info = json.loads((output / "dataset.json").read_text())
    assert list(info["models"]) == ["segmenter"]


def test_t2i_adapter_and_composer_have_their_own_defaults(scenes: Path, tmp_path: Path) -> None:
    t2i = run("t2i-adapter", scenes / "images", tmp_path / "t2i")
    composer = run("composer", scenes / "images", tmp_path / "composer")
    assert inspect(str(t2i)).problems == inspect(str(composer)).problems == ()
    assert set(next(read_samples(str(t2i), "t2i-adapter")).members) == {"jpg", "json", "canny.png", "sketch.png"}
    sample = next(read_samples(str(composer), "composer"))
    assert set(sample.members) == {"jpg", "json", "sketch.png", "segmentation.png", "embedding.npy"}
    record = json.loads(sample.members["json"])
    assert sum(record["palette"]) == pytest.approx(1, abs=1e-4)
    assert record["embedding_size"] >= 64


def test_bad_pictures_and_maps_cost_themselves_alone(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    good = encode_png(rng.integers(0, 65536, (40, 60)).astype(np.uint16))
    pictures = {
        "good": (noise, good),
        "missing": (noise, None),
        "broken": (noise, b"\x89PNG\r\n\x1a\n"),
        "small": (noise, encode_png(np.zeros((39, 60), np.uint16))),
        "plain": (np.full((40, 60, 3), 200, np.uint8), encode_png(np.full((40, 60), 7, np.uint16))),
        "tiny": (noise[:1, :1], encode_png(np.full((1, 1), 9, np.uint16))),
    }
    for name, (pixels, depth) in pictures.items():
        (source / f"{name}.jpg").write_bytes(encode_jpeg(pixels))
        (source / f"{name}.txt").write_text("noise")
        if depth is not None:
            (source / f"{name}.depth.png").write_bytes(depth)
    output = run("controlnet", source, tmp_path / "out", maps=("depth", "canny"))
    assert inspect(str(output)).problems == ()
    rejects = pq.read_table(output / "rejects.parquet").to_pylist()
    assert {row["key"]: (row["stage"], row["reason"]) for row in rejects} == {
        "missing": ("maps", "missing-map"),
        "broken": ("maps", "invalid-map"),
        "small": ("maps", "invalid-map"),
        "plain": ("write", "flat-map"),
        "tiny": ("write", "flat-map"),
    }


def test_annotated_sources_run_no_model(tmp_path: Path) -> None:
    content = instances()
    for annotation in content["annotations"]:
        annotation["keypoints"] = [value for i in range(17) for value in (2 * i % 30, i, 2)]
    source = tmp_path / "source"
    source.mkdir()
    write(source, content, "person_keypoints_x.json")
    output = run("controlnet", source, tmp_path / "out", maps=("pose", "segmentation"))
    assert inspect(str(output)).problems == ()
    assert json.loads((output / "dataset.json").read_text())["models"] == {}
    (sample,) = read_samples(str(output), "controlnet")
    record = json.loads(sample.members["json"])
    assert len(record["people"]) == 2
    assert [segment["label"] for segment in record["segments"]] == ["dog", "person"]
    assert decode_map("pose", sample.members["pose.png"]).max() > 0


@pytest.mark.parametrize(
    ("maps", "loads"),
    [
        (("canny", "sketch", "lines"), {"captioner"}),
        (("scribble",), {"captioner", "edges"}),
        (("normal",), {"captioner", "depth"}),
        (("pose",), {"captioner", "segmenter", "pose"}),
        (("segmentation", "depth"), {"captioner", "segmenter", "depth"}),
    ],
)
def test_the_hub_preset_loads_what_the_maps_need_and_no_more(
    scenes: Path, maps: tuple[str, ...], loads: set[str]
) -> None:
    listing = list_source(str(scenes / "images"))
    _, kinds = plan("controlnet", RECIPES["controlnet"].config(maps=maps), HUB, listing)
    assert kinds == loads
    assert plan("composer", RECIPES["composer"].config(maps=("canny",)), SAMPLE, listing)[1] == {"clip"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"maps": ("pose",)}, "the preset has no pose model, and the source no key points"),
        ({"focal": 500.0}, "add --depth-files distance"),
        ({"captions": "most-linked"}, "needs phrases that are linked to segments"),
    ],
)
def test_what_cannot_be_built_is_refused_before_it_starts(scenes: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan("controlnet", MapsConfig(**fields), SAMPLE, list_source(str(scenes / "images")))


def test_a_source_that_brings_no_maps_needs_a_depth_model(tmp_path: Path) -> None:
    listing = list_source(str(write(tmp_path, instances(), "instances_x.json")))
    with pytest.raises(ConfigError, match="coco-instances brings no maps: --preset hub, or --model depth="):
        plan("controlnet", MapsConfig(maps=("depth",)), SAMPLE, listing)
    assert plan("controlnet", MapsConfig(maps=("depth",)), HUB, listing)[1] == {"captioner", "depth"}


def test_maps_are_named_once_and_there_is_one_at_least() -> None:
    several: tuple[Any, ...] = ((), ("canny", "canny"), ("cany",))
    for maps in several:
        with pytest.raises(ValueError, match="maps"):
            MapsConfig(maps=maps)
    assert min_max(np.zeros((2, 2), np.uint16)).max() == 0
