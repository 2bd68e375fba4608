"""The engines that Beam runs a build on: options, what has to be installed, and which paths their workers see.

This module imports no runner: a wrong option is answered at once.
"""

import argparse
from collections.abc import Mapping, Sequence

from apache_beam.options.pipeline_options import DirectOptions, GoogleCloudOptions, PipelineOptions, StandardOptions

from jobs.run import LOCAL_RUNNER
from schemas.errors import ConfigError, choices
from transforms.files import is_remote
from transforms.models.settings import Precision
from transforms.remote import is_installed

RUNNERS = {
    "DirectRunner": LOCAL_RUNNER,
    # Beam's table of short names does not have it.
    "DaskRunner": "apache_beam.runners.dask.dask_runner.DaskRunner",
}
"""Runners by the name that users give, where Beam needs another one."""

EXTRAS = {
    "DataflowRunner": ("gcp", ("apitools", "google.cloud.storage")),
    "DaskRunner": ("dask", ("dask", "distributed")),
}
"""Extra of this package, and the modules it brings, that a runner needs."""

GPU_SERVICE = "--dataflow_service_options=worker_accelerator=type:{};count:1;install-nvidia-driver"
PRESETS = {
    "l4": (
        "--machine_type=g2-standard-8",
        GPU_SERVICE.format("nvidia-l4"),
        "--disk_size_gb=100",
        "--number_of_worker_harness_threads=4",
        "--experiments=no_use_multiple_sdk_containers",
    ),
    "t4": (
        "--machine_type=n1-standard-8",
        GPU_SERVICE.format("nvidia-tesla-t4"),
        "--disk_size_gb=100",
        "--number_of_worker_harness_threads=4",
        "--experiments=no_use_multiple_sdk_containers",
    ),
    "cpu": ("--machine_type=n2-standard-8", "--disk_size_gb=50", "--number_of_worker_harness_threads=1"),
}
"""Machines of Dataflow. On those with a GPU, one process runs several threads, which share one copy of each model."""

PRECISIONS: dict[str, Precision] = {"l4": "bf16", "t4": "fp32", "cpu": "fp32"}
"""Precision of these machines' models: a T4 has no bf16."""


def beam_options(arguments: Sequence[str], dataflow_preset: str | None = None) -> PipelineOptions:
    """Read the arguments after `--`; if they name no runner, choose the local one explicitly.

    Beam's own default tries another engine first, a program that it downloads.

    Args:
        arguments: the arguments; they take precedence over those of the preset.
        dataflow_preset: one of `PRESETS`.

    Raises:
        ConfigError: Beam has no such option, which Beam itself would ignore; there is no such preset; a classic
            template is asked for; or what the runner needs is not installed.
    """
    unknown = unknown_options(arguments)
    if unknown and not unknown[0].startswith("-"):
        raise ConfigError(f"after --, options of Beam are expected, as --runner=NAME: {unknown[0]!r} is none")
    if unknown:
        raise ConfigError(
            f"Beam has no option {' '.join(unknown)}: what follows -- is for Beam, as in -- --runner=NAME"
        )
    if dataflow_preset is not None and dataflow_preset not in PRESETS:
        raise ConfigError(f"there is no Dataflow preset {dataflow_preset!r}{choices(dataflow_preset, PRESETS)}")
    options = PipelineOptions([*PRESETS.get(dataflow_preset or "", ()), *arguments])
    standard = options.view_as(StandardOptions)
    name = standard.runner or "DirectRunner"
    if options.view_as(GoogleCloudOptions).template_location:
        raise ConfigError(
            "--template_location: a classic template holds the list of shards of the day it was made; "
            "`make dataflow-template` makes a flex template, which lists them at each start"
        )
    if dataflow_preset is not None and name != "DataflowRunner":
        raise ConfigError(f"--dataflow-preset {dataflow_preset} is for -- --runner=DataflowRunner, this is {name}")
    extra, modules = EXTRAS.get(name, ("", ()))
    if missing := [module for module in modules if not is_installed(module)]:
        raise ConfigError(f"{name} needs {missing[0]}, which is not installed: pip install 'subjectloom[{extra}]'")
    standard.runner = RUNNERS.get(name, name)
    return options


def unknown_options(arguments: Sequence[str]) -> list[str]:
    """Return the arguments that no options of Beam's take; asking all of them costs a tenth of importing Beam."""
    if not arguments:
        return []
    if any(argument.startswith("--dask") or "Dask" in argument for argument in arguments) and is_installed("dask"):
        import apache_beam.runners.dask.dask_runner  # noqa: F401, PLC0415 - its options are known then
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
    for group in PipelineOptions.__subclasses__():
        group._add_argparse_args(parser)
    return parser.parse_known_args(arguments)[1]


def check_paths(options: PipelineOptions, paths: Mapping[str, str]) -> None:
    """Refuse local paths on Dataflow, whose workers see none of this machine's files.

    Of other engines nobody can tell from here: a cluster may share a file system.

    Args:
        options: Beam's.
        paths: path or address, or "" for none, by what it is for, as "--input".

    Raises:
        ConfigError: one of them is a local path.
    """
    if options.view_as(StandardOptions).runner != "DataflowRunner":
        return
    for name, path in paths.items():
        if path and not is_remote(path):
            raise ConfigError(f"{name} {path}: Dataflow's workers do not see the files here: give a gs:// address")


def precision_on(dataflow_preset: str | None, precision: Precision) -> Precision:
    """What "auto" means on the machines of a Dataflow preset; this machine's device does not count there."""
    return PRECISIONS[dataflow_preset] if dataflow_preset and precision == "auto" else precision


def has_gpu(dataflow_preset: str | None) -> bool:
    """Whether the machines of a Dataflow preset have a GPU."""
    return any("worker_accelerator" in argument for argument in PRESETS.get(dataflow_preset or "", ()))


def local_workers(options: PipelineOptions) -> int:
    """The number of workers of the local runner."""
    return max(1, options.view_as(DirectOptions).direct_num_workers)
