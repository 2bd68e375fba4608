"""`subjectloom build --dry-run`: what a build would read, download and take, without writing the dataset."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from jobs.build import SHARDS_PER_ROUND, Request, for_engine, settle
from jobs.describe import checkpoints_of
from jobs.engines import beam_options, local_workers
from jobs.plan import in_words, measure, plan_for
from schemas.errors import ConfigError, InputError, ModelError
from transforms.listing import Listing
from transforms.models.places import located
from transforms.models.presets import hub_file, is_here, name_of
from transforms.sources.files import walk_files

if TYPE_CHECKING:
    from huggingface_hub import HfApi

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
"""Endings of weights, the preferred one first: of a model in several formats, one is downloaded."""


def dry_run(request: Request, console: Console, api: "HfApi | None" = None) -> Iterator[str]:
    """Yield lines for the terminal: the source, its records, shards and bytes, the models, and the time by a probe.

    The probe builds the first pictures into a temporary folder, if all models are on this machine. `api` is the hub
    that is asked for sizes; None: the real one.

    Raises:
        SubjectloomError: the build could not begin; as `jobs.build.build` says it.
    """
    if request.resume:
        raise ConfigError("--dry-run says what a whole build takes: leave out --resume")
    options = beam_options(request.beam_options, request.dataflow_preset)
    request = for_engine(request, options)
    listing, config, _, steps = settle(request, console)
    checkpoints = checkpoints_of(steps)
    yield f"source   {request.source}: {listing.kind}"
    if request.limit is None:
        size = sum(file.size for file in walk_files(request.source, follow_links=config.follow_links))
        yield f"bytes    {in_bytes(size)} in the source's files"
    yield f"records  {'not known before they are read' if listing.expected is None else f'{listing.expected:,}'}"
    yield f"shards   {len(listing.chunks):,}, in {request.output}"
    yield from (f"model    {kind}: {line}" for kind, line in describe_models(checkpoints, api).items())
    if missing := [kind for kind, checkpoint in checkpoints.items() if not is_here(checkpoint)]:
        yield f"time     not measured: {', '.join(missing)} must be downloaded first"
        return
    yield from probe(request, listing, console, local_workers(options))


def probe(request: Request, listing: Listing, console: Console, workers: int) -> Iterator[str]:
    """Yield lines on the time, the samples and the bytes that follow from a build of a few pictures."""
    try:
        with console.status("building some pictures"):
            measured = measure(request)
    except InputError as error:
        yield f"time     not measured: {error}"
        return
    pictures = listing.expected or 0
    planned = plan_for(measured, pictures, -(-pictures // max(1, len(listing.chunks))) or 1, SHARDS_PER_ROUND)
    rate = f"{measured.picture:.3f} s each after {measured.start:.1f} s"
    yield f"probe    {measured.pictures} pictures: {rate}, {measured.written:.0%} written"
    if not pictures:
        yield f"time     {rate}; {in_bytes(measured.bytes)} of shards for each picture"
        return
    yield f"time     {in_words(planned.seconds)} on one process of this machine" + (
        f", and not less than {in_words(planned.seconds / workers)} on {workers}" if workers > 1 else ""
    )
    yield f"writes   about {planned.samples:,} samples, {in_bytes(planned.bytes)}"


def describe_models(checkpoints: Mapping[str, str], api: "HfApi | None" = None) -> dict[str, str]:
    """Say of each checkpoint, by kind, what it is, whether it is on this machine, and else how much is downloaded."""
    return {kind: f"{name_of(checkpoint)}, {_place(kind, checkpoint, api)}" for kind, checkpoint in checkpoints.items()}


def _place(kind: str, checkpoint: str, api: "HfApi | None") -> str:
    if is_here(checkpoint):
        size = _size(Path(located(checkpoint)))
        return f"on this machine ({in_bytes(size)})" if size else "on this machine"
    if kind == "parser" and "/" not in checkpoint:
        return f"to be installed: python -m spacy download {checkpoint}"
    try:
        return f"to be downloaded: {in_bytes(download_size(checkpoint, api))}"
    except ModelError as error:
        return f"to be downloaded: {error}"


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.is_file() else 0


def download_size(checkpoint: str, api: "HfApi | None" = None) -> int:
    """Return the bytes that loading a checkpoint of the hub downloads: weights in one format, and small files.

    Raises:
        ModelError: the hub cannot be reached, or does not have it.
    """
    from huggingface_hub import HfApi  # noqa: PLC0415 - it takes a second
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # noqa: PLC0415

    name, file = hub_file(checkpoint)
    repository, _, revision = name.partition("@")
    try:
        found = (api or HfApi()).model_info(repository, revision=revision or None, files_metadata=True)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError("the hub does not say how much") from error
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in found.siblings or ()}
    return sum(sizes[name] for name in loaded_files(list(sizes), file))


def loaded_files(names: Sequence[str], file: str) -> list[str]:
    """Return which files of a repository are loaded, given a small file that every such model has, or its only file."""
    if file.endswith(WEIGHTS):
        return [name for name in names if name == file]
    prefix = "open_clip" if file.startswith("open_clip") else ""
    top = [name for name in names if "/" not in name and name.startswith(prefix)]
    small = [name for name in names if "/" not in name and name.endswith((".json", ".txt", ".model"))]
    if not prefix:
        top = [name for name in top if not name.startswith("open_clip")]
    weights = next((group for end in WEIGHTS if (group := [name for name in top if name.endswith(end)])), [])
    return [*weights, *small]


def in_bytes(size: float) -> str:
    """Return a number of bytes in the unit that suits it."""
    for unit, length in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= length:
            return f"{size / length:,.1f} {unit}"
    return f"{size:.0f} bytes"
