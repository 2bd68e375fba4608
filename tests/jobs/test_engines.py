"""Beam's engines: options, what they need, and that each writes the same bytes."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions, WorkerOptions
from rich.console import Console
from typer.main import get_group

import jobs.engines
from jobs.build import Request, build
from jobs.dataflow.main import command_line
from jobs.engines import PRESETS, beam_options, check_paths
from jobs.main import app
from jobs.run import LOCAL_RUNNER
from pipelines import RECIPES
from schemas.errors import ConfigError, InputError, ModelError
from tests.datasets import jpeg
from transforms.files import join
from transforms.models.presets import resolve
from transforms.remote import filesystems
from transforms.worker import Needs, check_worker

ROOT = Path(__file__).parents[2]
DATAFLOW = ROOT / "jobs" / "dataflow"
QUIET = Console(quiet=True)


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        (folder / f"{i}.jpg").write_bytes(jpeg(48, 32, i))
        (folder / f"{i}.txt").write_text(f"a picture of number {i}")
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tar"))}


def run_build(source: Path | str, output: Path, *options: str) -> dict[str, str]:
    config = RECIPES["captioned"].config(samples_per_shard=5)
    build(Request("captioned", str(source), str(output), config, resolve("sample", {}), beam_options=options), QUIET)
    return digests(output)


@contextmanager
def worker_pool() -> Iterator[int]:
    """Start Beam's worker pool, whose main module is not ours, in another folder; yield its port."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    pool = subprocess.Popen(
        [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", "--service_port", str(port)],
        env={**os.environ, "PATH": binaries, "PYTHONPATH": str(ROOT)},
        cwd="/",
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("localhost", port)) == 0:
                    break
            time.sleep(0.1)
        yield port
    finally:
        pool.terminate()
        pool.wait()


@pytest.mark.slow
def test_threads_and_external_workers_write_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = pictures(tmp_path / "pictures", 12)
    expected = run_build(source, tmp_path / "local")
    assert len(expected) == 3
    threads = ("--direct_num_workers=2", "--direct_running_mode=multi_threading")
    assert run_build(source, tmp_path / "threads", *threads) == expected
    with worker_pool() as port:
        external = ("--environment_type=EXTERNAL", f"--environment_config=localhost:{port}")
        portable = ("--runner=PortableRunner", "--job_endpoint=embed", *external)
        monkeypatch.chdir(tmp_path)  # workers start elsewhere
        assert run_build("pictures", Path("portable"), *portable) == expected


def test_runners_have_the_names_that_users_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.engines, "is_installed", lambda _: True)
    monkeypatch.setattr(jobs.engines, "unknown_options", lambda _: [])
    for given, runner in (
        ((), LOCAL_RUNNER),
        (("--runner=DirectRunner",), LOCAL_RUNNER),
        (("--runner=DaskRunner",), "apache_beam.runners.dask.dask_runner.DaskRunner"),
        (("--runner=FlinkRunner",), "FlinkRunner"),
    ):
        assert beam_options(given).view_as(StandardOptions).runner == runner


@pytest.mark.parametrize(("runner", "extra"), [("DataflowRunner", "gcp"), ("DaskRunner", "dask")])
def test_a_runner_that_is_not_installed_says_what_to_install(
    runner: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.engines, "is_installed", lambda _: False)
    with pytest.raises(ConfigError, match=rf"^{runner} needs .* pip install 'subjectloom\[{extra}\]'$"):
        beam_options([f"--runner={runner}"])


def test_machines_of_dataflow_are_a_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.engines, "is_installed", lambda _: True)
    options = beam_options(["--runner=DataflowRunner", "--disk_size_gb=300"], "l4").view_as(WorkerOptions)
    assert options.machine_type == "g2-standard-8"
    assert options.disk_size_gb == 300
    with pytest.raises(ConfigError, match=r"^--dataflow-preset l4 is for -- --runner=DataflowRunner, this is Direct"):
        beam_options([], "l4")
    with pytest.raises(ConfigError, match=r"^there is no Dataflow preset 'l5': choose from l4, t4"):
        beam_options([], "l5")
    with pytest.raises(ConfigError, match=r"^--template_location: .* `make dataflow-template` makes a flex template"):
        beam_options(["--runner=DataflowRunner", "--template_location=gs://bucket/template"])
    assert [name for name in PRESETS if jobs.engines.has_gpu(name)] == ["l4", "t4"]


def test_dataflow_takes_addresses_only() -> None:
    options = PipelineOptions(["--runner=DataflowRunner"])
    check_paths(options, {"--input": "gs://bucket/in", "--output": "gs://bucket/out"})
    with pytest.raises(ConfigError, match=r"^--output demo/out: Dataflow's workers do not see the files here"):
        check_paths(options, {"--input": "gs://bucket/in", "--output": "demo/out"})
    check_paths(PipelineOptions(["--runner=FlinkRunner"]), {"--input": "/shared/in"})


@pytest.mark.parametrize(
    ("address", "requirement"),
    [("gs://b/x", "subjectloom[gcp]"), ("s3://b/x", "subjectloom[aws]"), ("hdfs://b/x", "apache-beam[hadoop]")],
)
def test_an_address_says_what_to_install(address: str, requirement: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transforms.remote.is_installed", lambda _: False)
    with pytest.raises(InputError, match=rf"^{address}: .* pip install '{re.escape(requirement)}'$"):
        filesystems(address)


def test_a_worker_that_cannot_work_says_so_at_once(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(InputError, match=rf"^the worker \S+ does not see {output}: give an address"):
        check_worker(Needs(str(output)))
    state = output / ".subjectloom"
    state.mkdir(parents=True)
    (state / "job.json").write_text("{}")
    check_worker(Needs(str(output), (str(tmp_path), "owner/name")))
    assert [path.name for path in state.iterdir()] == ["job.json"]
    missing = join(str(tmp_path), "model")
    with pytest.raises(ModelError, match=rf"^the worker \S+ has no {missing}: put it into its image"):
        check_worker(Needs(str(output), (missing,)))


def test_an_output_that_a_worker_cannot_write_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".subjectloom").mkdir()
    (tmp_path / ".subjectloom" / "job.json").write_text("{}")

    def fail(path: str, _: bytes) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("transforms.worker.replace_file", fail)
    with pytest.raises(InputError, match=rf"^the worker \S+ cannot write to {tmp_path}: .*Permission denied"):
        check_worker(Needs(str(tmp_path)))


def test_a_template_splits_its_arguments_into_ours_and_beams() -> None:
    arguments = [
        "--recipe=mip-adapter", "--input=gs://b/in", "--output=gs://b/out", "--preset=hub", "--resume=true",
        "--overwrite=false", "--limit=", "--min_area=0.1", "--set=seed=3;captions=longest", "--dataflow-preset=l4",
        "--runner=DataflowRunner", "--experiments=use_runner_v2", "--dataflow_service_options=a:b;c",
    ]  # fmt: skip
    assert command_line(arguments) == [
        "build", "mip-adapter", "--input=gs://b/in", "--output=gs://b/out", "--preset=hub", "--resume",
        "--set=min_area=0.1", "--set=seed=3", "--set=captions=longest", "--dataflow-preset=l4", "--",
        "--runner=DataflowRunner", "--experiments=use_runner_v2", "--dataflow_service_options=a:b;c",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"^there is no recipe 'mip': choose from"):
        command_line(["--recipe=mip"])


def test_the_templates_parameters_are_options_of_the_build() -> None:
    metadata = json.loads((DATAFLOW / "metadata.json").read_text(encoding="utf-8"))
    options = {option.removeprefix("--") for p in get_group(app).commands["build"].params for option in p.opts}
    names = {parameter["name"] for parameter in metadata["parameters"]}
    assert names <= options
    assert {"recipe", "input", "output"} == {p["name"] for p in metadata["parameters"] if not p.get("isOptional")}


def test_the_image_is_made_of_files_and_versions_that_exist() -> None:
    lines = (DATAFLOW / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [name for line in lines if re.match(r"COPY (?!--)", line) for name in line.split()[1:-1]]
    assert [name for name in copied if not (ROOT / name).exists()] == []
    packages = {p.parent.name for p in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert packages <= {*copied}
    assert [line for line in lines if line.startswith("FROM") and (":latest" in line or ":" not in line)] == []
    arguments = dict(line.removeprefix("ARG ").split("=", 1) for line in lines if line.startswith("ARG"))
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"apache-beam=={arguments['BEAM']}" in pins
    assert f"python{sys.version_info.major}.{sys.version_info.minor}_sdk" in "\n".join(lines)
