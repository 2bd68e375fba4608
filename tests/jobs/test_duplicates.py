"""Near duplicates in every recipe: the largest stays, of equals the first."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from jobs.build import Request, build
from jobs.inspect import inspect
from jobs.settings import read_config
from pipelines import RECIPES
from pipelines.recipe import BuildConfig
from schemas.dataset import DatasetInfo
from schemas.errors import ConfigError
from transforms.models.presets import resolve
from transforms.selection.cut import Cut
from transforms.selection.phash import exact_hash_of


def picture(seed: int, size: int) -> bytes:
    rng = np.random.default_rng(seed)
    grid = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    stream = io.BytesIO()
    grid.resize((size, size), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=95)
    return stream.getvalue()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture, a copy of its file, a larger version of it, and another picture."""
    folder = tmp_path_factory.mktemp("duplicates")
    for name, content in {
        "a": picture(1, 96), "b-copy": picture(1, 96), "c-large": picture(1, 128), "d": picture(2, 96)
    }.items():  # fmt: skip
        (folder / f"{name}.jpg").write_bytes(content)
        (folder / f"{name}.txt").write_text(f"picture {name}")
    return folder


def run(source: Path, output: Path, *settings: str) -> tuple[DatasetInfo, list[str], dict[str, str]]:
    config = read_config(BuildConfig, None, ["samples_per_shard=2", *settings])
    info = build(Request("captioned", str(source), str(output), config, resolve("sample", {})), Console(quiet=True))
    rejects = pq.read_table(output / "rejects.parquet").to_pylist()
    assert all(reject["reason"] == "near-duplicate" for reject in rejects)
    assert inspect(str(output)).problems == ()
    keys = pq.read_table(output / "index.parquet")["key"].to_pylist()
    return info, keys, {reject["key"]: reject["detail"] for reject in rejects}


def test_of_near_duplicates_the_largest_picture_stays(source: Path, tmp_path: Path) -> None:
    info, keys, rejects = run(source, tmp_path / "out", "duplicates=3")
    assert keys == ["c-large", "d"]
    assert rejects.keys() == {"a", "b-copy"}
    assert rejects["a"] == "it looks like c-large, which is better"
    assert info.counts.rejects == {"best": {"near-duplicate": 2}}


def test_exact_leaves_out_the_same_bytes_only(source: Path, tmp_path: Path) -> None:
    _, keys, rejects = run(source, tmp_path / "out", "duplicates=exact")
    assert keys == ["a", "c-large", "d"]
    assert rejects == {"b-copy": "it looks like a, which is better"}
    assert exact_hash_of(b"a") != exact_hash_of(b"b")


def test_without_it_all_stay_and_are_not_hashed(source: Path, tmp_path: Path) -> None:
    _, keys, rejects = run(source, tmp_path / "out")
    assert (len(keys), rejects) == (4, {})
    assert pq.read_table(tmp_path / "out" / "index.parquet")["phash"].to_pylist() == [0] * 4


@pytest.mark.parametrize("recipe", ["fastcomposer", "blip-diffusion", "captioned"])
def test_every_recipe_cuts_by_pixels_if_it_is_asked_to(recipe: str) -> None:
    described = RECIPES[recipe]
    assert described.cut(described.config()) is None
    assert described.cut(described.config(duplicates=5)) == Cut(None, 5, "pixels")
    assert described.cut(described.config(duplicates="exact")) == Cut(None, 0, "pixels")


def test_mip_adapter_cuts_by_quality_as_before() -> None:
    described = RECIPES["mip-adapter"]
    assert described.cut(described.config()) == Cut(100_000, 3)
    assert described.cut(described.config(duplicates="exact")) == Cut(100_000, 0)


def test_all_captions_of_a_picture_and_duplicates_contradict(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="captions = 'all' makes several samples of one picture"):
        run(source, tmp_path / "out", "captions=all", "duplicates=3")
