"""Engines and addresses that need extras: `make test-engines` runs this file in an environment that has them."""

import json
from pathlib import Path

import apache_beam as beam
import pytest
from rich.console import Console

from jobs.build import Request, build
from jobs.engines import beam_options
from pipelines import RECIPES
from pipelines.build import BuildDataset
from tests.jobs.test_engines import digests, pictures, run_build
from tests.training.servers import S3, serving
from transforms.listing import list_source
from transforms.models.presets import resolve
from transforms.worker import Needs

QUIET = Console(quiet=True)
GPU = "type:nvidia-l4;count:1;install-nvidia-driver"


def test_dask_writes_the_same_bytes_and_loses_nothing(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    from jobs.scenes import write_scenes  # noqa: PLC0415

    source = tmp_path / "scenes"
    for _ in write_scenes(source, 8, seed=3, size=96):
        pass
    config = RECIPES["fastcomposer"].config(samples_per_shard=4, batch_size=2)
    built = {}
    for name, options in (("local", ()), ("dask", ("--runner=DaskRunner", "--dask_npartitions=2"))):
        output = tmp_path / name
        models = resolve("sample", {})
        build(Request("fastcomposer", f"{source}/images", str(output), config, models, beam_options=options), QUIET)
        built[name] = digests(output)
    assert len(built["local"]) == 2
    assert built["dask"] == built["local"]


def test_s3_is_read_as_a_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("boto3")
    expected = run_build(pictures(tmp_path / "pictures", 6), tmp_path / "local")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with serving(S3, tmp_path) as server:
        options = (f"--s3_endpoint_url={server.url}", "--s3_disable_ssl", "--s3_region_name=us-east-1")
        built = run_build("s3://pictures", tmp_path / "remote", *options)
    assert list(built) == list(expected)


def test_a_build_is_translated_for_dataflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("apitools")
    user = {"type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "t"}
    (tmp_path / "user.json").write_text(json.dumps(user))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "user.json"))
    recipe, models = RECIPES["fastcomposer"], resolve("hub", {})
    listing = list_source(str(pictures(tmp_path / "pictures", 4)))
    config = recipe.settle(recipe.config(), models, listing)
    steps = recipe.steps(config, models, listing)
    output = "gs://bucket/out"
    whole = BuildDataset(
        recipe.format, config, steps, listing.chunks, output, {0: "fingerprint"},
        needs=Needs(output), accelerator=GPU,
    )  # fmt: skip
    options = beam_options([
        "--runner=DataflowRunner", "--project=my-project", "--region=us-central1", "--dry_run=True",
        "--temp_location=gs://my-bucket/temp", "--staging_location=gs://my-bucket/staging",
        "--sdk_container_image=image:1",
    ], "l4")  # fmt: skip
    pipeline = beam.Pipeline(options=options)
    _ = pipeline | "build" >> whole
    pipeline.run()
    proto = pipeline.runner.proto_pipeline.components
    hinted = {
        name for name, environment in proto.environments.items()
        if environment.resource_hints.get("beam:resources:accelerator:v1") == GPU.encode()
    }  # fmt: skip
    assert {environment.urn for environment in proto.environments.values()} == {"beam:env:docker:v1"}
    assert all(b"image:1" in environment.payload for environment in proto.environments.values())
    names = {t.unique_name: t.environment_id in hinted for t in proto.transforms.values() if not t.subtransforms}
    assert {name.split("/")[1] for name in names if name.startswith("build/")} == {
        "ReadBatches", "check worker", "ExtractPhrases", "SegmentPictures", "ScoreSimilarity", "DropSmallSegments",
        "MatchPhrases", "CountRecords", "WriteDataset",
    }  # fmt: skip
    on_gpu = {name.split("/")[1] for name, is_hinted in names.items() if is_hinted}
    assert on_gpu == {"SegmentPictures", "ScoreSimilarity"}
