"""Build a dataset: list its shards, run the recipe over those that are not done, close the books.

The local runner passes everything through memory and finishes a pipeline only as a whole. So on a laptop the
shards are made in rounds, a pipeline each: a job that is killed loses at most one round, and memory holds no
more than that. Other runners get one pipeline.
"""

import argparse
import logging
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pipelines import RECIPES
from pipelines.build import BuildDataset
from pipelines.recipe import BuildConfig
from schemas.dataset import DatasetInfo, Job, ModelName, shard_fingerprint
from schemas.errors import ConfigError, SubjectloomError
from schemas.samples.base import SampleFormat
from transforms.dataset import finish_dataset, finished_shards, leaving_nothing, prepare_output
from transforms.listing import list_source
from transforms.models.presets import Models, name_of, revision_of
from transforms.selection.cut import ChooseSamples, Cut, CutShards, choice_digest, cut_fingerprints, is_chosen
from transforms.sources.records import Chunk
from transforms.step import Step

SHARDS_PER_ROUND = 4
"""Shards in a round, per local worker. Each round loads the models again, which takes seconds; four thousand JPEGs take
some hundred megabytes."""


@dataclass(frozen=True)
class Request:
    """Arguments of one `subjectloom build`."""

    recipe: str
    source: str
    output: str
    config: BuildConfig
    models: Models
    kind: str | None = None
    limit: int | None = None
    overwrite: bool = False
    resume: bool = False
    beam_options: tuple[str, ...] = ()
    keys: str = "first-dot"


def build(request: Request, console: Console) -> DatasetInfo:
    """Build the dataset and return the contents of `dataset.json`.

    Raises:
        SubjectloomError: the source, the output, an option or a checkpoint cannot be used, or the books do not
            balance.
    """
    recipe, models = RECIPES[request.recipe], request.models
    options = beam_options(request.beam_options)
    if not is_local(options):
        logging.disable(logging.NOTSET)  # a remote runner reports how the job goes through the log
    listing = list_source(
        request.source,
        request.kind,
        samples_per_shard=request.config.samples_per_shard,
        batch_size=request.config.batch_size,
        limit=request.limit,
        keys=request.keys,
    )
    chunks = listing.chunks
    if request.config.captions == "all":
        # How many samples the captions of a picture make is known only when they are read.
        chunks = tuple(replace(chunk, expected=None) for chunk in chunks)
    config = recipe.settle(request.config, models, listing)
    steps, cut = recipe.steps(config, models, listing), recipe.cut(config)
    job = describe_job(request.recipe, config, steps)
    stamps = "".join(step.stamp() for step in steps)
    fingerprints = {chunk.shard: shard_fingerprint(chunk.fingerprint + stamps, job) for chunk in chunks}
    final = cut_fingerprints(fingerprints, cut) if cut else fingerprints
    needs_captions = not recipe.writes_captions or models.captioner is None
    prepare_output(request.output, job, overwrite=request.overwrite, resume=request.resume)
    with leaving_nothing(request.output):
        done = shards_done(request.output, fingerprints, final, cut)
        missing = [chunk for chunk in chunks if chunk.shard not in done]
        if len(missing) < len(chunks):
            console.print(f"{len(chunks) - len(missing)} of {len(chunks)} shards are done already", style="dim")
        with progress_bar(console, missing) as progress:
            for group in rounds(missing, options):
                wanted = {chunk.shard: fingerprints[chunk.shard] for chunk in group}
                transform = BuildDataset(
                    recipe.format, config, steps, group, request.output, wanted, needs_captions, progress
                )
                run(transform, options)
        if cut:
            with console.status(f"keeping the best {cut.best:,}"):
                cut_dataset(request.output, recipe.format, fingerprints, cut, options)
    return finish_dataset(request.output, job, final, recipe.format)


def shards_done(output: str, fingerprints: Mapping[int, str], final: Mapping[int, str], cut: Cut | None) -> set[int]:
    """Return the shards that need not be built from the source: those that are done, and candidates not cut yet.

    `final` holds their fingerprints when they are done. If the choice is missing, the candidates of shards that were
    cut are missing too: these are built again.
    """
    written = finished_shards(output).items()
    waiting, finished = written & fingerprints.items(), written & final.items()
    if cut is not None and len(finished) < len(final) and not is_chosen(output, choice_digest(fingerprints, cut)):
        finished = set()
    return {shard for shard, _ in waiting | finished}


def cut_dataset(
    output: str, sample_format: SampleFormat, fingerprints: Mapping[int, str], cut: Cut, options: PipelineOptions
) -> None:
    """Choose among all candidates, unless that is done already, and cut the shards that are not cut yet.

    One pipeline cuts them all, on any runner: only numbers pass through it, and a shard is done when it is written.
    """
    left = dict(cut_fingerprints(fingerprints, cut).items() - finished_shards(output).items())
    if not left:
        return
    if not is_chosen(output, choice_digest(fingerprints, cut)):
        run(ChooseSamples(output, fingerprints, cut), options)
    run(CutShards(output, sample_format, left), options)


def describe_job(recipe: str, config: BuildConfig, steps: Sequence[Step]) -> Job:
    """Describe recipe, config, models and seed: the head of `dataset.json`."""
    checkpoints = {kind: checkpoint for step in steps for kind, checkpoint in step.checkpoints().items()}
    return Job(
        recipe=recipe,
        config=config.model_dump(mode="json"),
        models={kind: ModelName(name=name_of(path), revision=revision_of(path)) for kind, path in checkpoints.items()},
        seed=config.seed,
    )


def beam_options(arguments: Sequence[str]) -> PipelineOptions:
    """Read the arguments after `--`; if they name no runner, choose the local one explicitly.

    Beam's own default tries another engine first, a program that it downloads.

    Raises:
        ConfigError: Beam has no such option; Beam itself would ignore it.
    """
    if unknown := unknown_options(arguments):
        raise ConfigError(
            f"Beam has no option {' '.join(unknown)}: what follows -- is for Beam, as in -- --runner=NAME"
        )
    options = PipelineOptions([*arguments])
    standard = options.view_as(StandardOptions)
    if standard.runner in (None, "DirectRunner"):
        standard.runner = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
    return options


def unknown_options(arguments: Sequence[str]) -> list[str]:
    """Return the arguments that no options of Beam's take; asking all of them costs a tenth of importing Beam."""
    if not arguments:
        return []
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
    for group in PipelineOptions.__subclasses__():
        group._add_argparse_args(parser)
    return parser.parse_known_args(arguments)[1]


def is_local(options: PipelineOptions) -> bool:
    """Whether the pipeline runs on this machine, in Beam's own runner."""
    return str(options.view_as(StandardOptions).runner).endswith("FnApiRunner")


def rounds(chunks: Sequence[Chunk], options: PipelineOptions) -> Iterator[Sequence[Chunk]]:
    """Split the shards into the rounds of a local job; any other runner takes all of them at once."""
    if not is_local(options):
        yield chunks
        return
    size = SHARDS_PER_ROUND * max(1, options.view_as(DirectOptions).direct_num_workers)
    for start in range(0, len(chunks), size):
        yield chunks[start : start + size]


def run(transform: beam.PTransform, options: PipelineOptions) -> None:
    """Run one pipeline to its end."""
    try:
        with beam.Pipeline(options=options) as pipeline:
            _ = pipeline | transform
    except Exception as error:
        cause = _own_cause(error)
        if cause is None:
            raise
        raise cause from error


def _own_cause(error: BaseException | None) -> SubjectloomError | None:
    """Return our own error among the causes of what Beam raised, without Beam's note on where it was raised."""
    while error is not None:
        if isinstance(error, SubjectloomError):
            return type(error)(str(error).partition(" [while running")[0])
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def progress_bar(console: Console, chunks: Sequence[Chunk]) -> Iterator[str]:
    """Show the number of finished records while the block runs; yield the local file that workers append to."""
    expected = [chunk.expected for chunk in chunks]
    total = None if None in expected else sum(n for n in expected if n is not None)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar,
    ):
        path = Path(folder) / "progress"
        path.touch()
        task = bar.add_task("pictures", total=total, rate="")
        finished = threading.Event()
        watcher = threading.Thread(target=_watch, args=(path, bar, task, finished), daemon=True)
        watcher.start()
        try:
            yield str(path)
        finally:
            finished.set()
            watcher.join()


def _watch(path: Path, bar: Progress, task: TaskID, finished: threading.Event) -> None:
    started = time.monotonic()
    last = False
    while not last:
        last = finished.wait(0.2)
        count = path.stat().st_size
        bar.update(task, completed=count, rate=f"{count / (time.monotonic() - started):.1f}/s")
