"""The loaders of other projects read the shards as they are."""

import gc
import io
import json
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from pycocotools import mask as coco

from schemas.example import Example
from schemas.samples import FORMATS
from tests.datasets import box_mask, example, write_dataset
from tests.mapped import mapped
from transforms.maps.estimate import depth_map

OTHERS = ("two pets", "a dog that looks at a cat")
LONG = "a-picture-whose-key-does-not-fit-into-the-hundred-characters-of-a-ustar-header_" + "0123456789" * 12
SHARDS: list[list[Example]] = [
    [
        example("plain", license=""),
        replace(
            example("two", [("a dog", (4, 6, 20, 16)), ("a cat", (30, 0, 34, 48))], extra_segments=1),
            other_captions=OTHERS,
        ),
        example(LONG),
        *(example(f"k{i}") for i in range(6)),
    ],
    [example("ünï".encode().hex(), [("ein Hünd 🐕", (1, 1, 5, 5))], size=(48, 64))],
]
KEYS = [*sorted(picture.key for picture in SHARDS[0]), SHARDS[1][0].key]
IMAGES = {picture.key: picture.image for picture in [*SHARDS[0], *SHARDS[1]]}
CAPTIONS = {picture.key: picture.caption for picture in [*SHARDS[0], *SHARDS[1]]}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loaders")
    write_dataset(folder, SHARDS)
    return folder


def run(*command: str) -> str:
    """Run a program in a process of its own, offline: some loaders start threads that never end."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves the closing of its files to Python
def test_plain_webdataset_gives_every_sample_with_its_picture_and_its_masks(output: Path) -> None:
    urls = sorted(str(path) for path in output.glob("*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode("rgb8"))
    gc.collect()
    assert [sample["__key__"] for sample in samples] == KEYS
    two = next(sample for sample in samples if sample["__key__"] == "two")
    assert two["jpg"].shape == (48, 64, 3)
    assert [subject["label"] for subject in two["json"]["subjects"]] == ["dog", "cat"]
    assert two["json"]["other_captions"] == [*OTHERS]
    np.testing.assert_array_equal(
        coco.decode(two["json"]["subjects"][1]["segmentation"]), box_mask(64, 48, (30, 0, 34, 48))
    )


@pytest.mark.slow
def test_hugging_face_datasets_infers_one_schema_for_all(output: Path, tmp_path: Path) -> None:
    program = """
import json, sys
from datasets import load_dataset
data = load_dataset("webdataset", data_files=sys.argv[1] + "/*.tar", split="train", cache_dir=sys.argv[2])
print(json.dumps([[r["__key__"], r["jpg"].size, r["json"]] for r in data]))
"""
    rows = json.loads(run(sys.executable, "-c", program, str(output), str(tmp_path)).splitlines()[-1])
    assert [row[0] for row in rows] == KEYS
    assert rows[-1][1] == [48, 64]
    for key, _, record in rows:
        assert record["caption"] == CAPTIONS[key]
        assert isinstance(record["subjects"][0]["score"], float)
    two = next(record for key, _, record in rows if key == "two")
    assert [subject["bbox"] for subject in two["subjects"]] == [[4, 6, 20, 16], [30, 0, 34, 48]]


@pytest.mark.slow
def test_hugging_face_datasets_reads_maps_of_any_bits_whoever_made_them(tmp_path: Path) -> None:
    kinds = ("canny", "depth", "pose", "segmentation")
    estimated = depth_map(np.mgrid[0:48, 0:64][1].astype(np.float32), "small")
    pictures = [mapped("a", kinds), replace(mapped("b", kinds), people=()), mapped("c", kinds)]
    pictures[2] = replace(pictures[2], maps={**pictures[2].maps, "depth": estimated})
    write_dataset(tmp_path / "data", [pictures], sample_format=FORMATS["composer"])
    program = """
import json, sys
import numpy as np
from datasets import load_dataset
data = load_dataset("webdataset", data_files=sys.argv[1] + "/*.tar", split="train", cache_dir=sys.argv[2])
def shown(picture):
    pixels = np.asarray(picture)
    return [str(pixels.dtype), list(pixels.shape), int(pixels.max())]
maps = lambda row: {name: shown(value) for name, value in row.items() if name.endswith("png")}
print(json.dumps([[row["__key__"], maps(row), row["json"]] for row in data]))
"""
    rows = json.loads(
        run(sys.executable, "-c", program, str(tmp_path / "data"), str(tmp_path / "cache")).splitlines()[-1]
    )
    assert [row[0] for row in rows] == ["a", "b", "c"]
    assert all(shown["depth.png"] == ["uint16", [48, 64], 65535] for _, shown, _ in rows[2:])
    assert rows[0][1]["pose.png"][:2] == ["uint8", [48, 64, 3]]
    assert [record["maps"]["depth"]["operator"] for _, _, record in rows] == ["source", "source", "depth model"]
    assert [len(record["palette"]) for _, _, record in rows] == [180] * 3


@pytest.mark.slow
def test_megatron_energon_prepares_lints_and_loads_the_shards(tmp_path: Path) -> None:
    write_dataset(tmp_path, SHARDS)
    energon = str(Path(sys.executable).with_name("energon"))
    fields = '{"image": "jpg", "caption": "json[caption]"}'
    options = ["--non-interactive", "--split-ratio", "1,0,0", "--sample-type", "CaptioningSample"]
    run(energon, "prepare", str(tmp_path), "--no-progress", "--num-workers", "1", *options, "--field-map", fields)
    run(energon, "lint", str(tmp_path))
    program = """
import json, sys
from megatron.energon import WorkerConfig, get_train_dataset, get_loader
alone = WorkerConfig(rank=0, world_size=1, num_workers=0)
options = {"shuffle_buffer_size": None, "max_samples_per_sequence": None, "repeat": False}
data = get_train_dataset(sys.argv[1], worker_config=alone, batch_size=None, **options)
print(json.dumps(sorted([s.__key__, list(s.image.shape), s.caption] for s in get_loader(data))))
"""
    rows = json.loads(run(sys.executable, "-c", program, str(tmp_path)).splitlines()[-1])
    found = {key.rpartition("/")[2]: (shape, caption) for key, shape, caption in rows}
    assert {key: caption for key, (_, caption) in found.items()} == CAPTIONS
    assert found[KEYS[-1]][0] == [3, 64, 48]


def test_the_index_gives_any_sample_without_reading_the_rest(output: Path) -> None:
    (row,) = pq.read_table(output / "index.parquet", filters=[("key", "=", LONG)]).to_pylist()
    with (output / row["shard"]).open("rb") as shard:
        shard.seek(row["offset"])
        fragment = io.BytesIO(shard.read(row["size"]))
    with tarfile.open(fileobj=fragment) as tar:
        members = {info.name.removeprefix(LONG): tar.extractfile(info) for info in tar}
    assert list(members) == [".jpg", ".json"]
    picture = members[".jpg"]
    assert picture is not None
    assert picture.read() == IMAGES[LONG]
