"""Build a dataset: list its shards, run the recipe over those that are not done, close the books.

The local runner passes everything through memory and finishes a pipeline only as a whole. So on a laptop the
shards are made in rounds, a pipeline each: a job that is killed loses at most one round, and memory holds no
more than that. A round that kills a process is made again by `jobs.rescue`. Other runners get one pipeline.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from rich.console import Console

from jobs.describe import (
    checkpoints_of,
    describe_job,
    kept_candidates,
    settle_precision,
    with_earlier_versions,
    with_fingerprints,
)
from jobs.engines import beam_options, check_paths, has_gpu, local_workers, precision_on
from jobs.likeness import check_likeness
from jobs.names import check_names, check_names_afterwards
from jobs.progress import progress_bar
from jobs.rescue import forget_round, noted_shards, noting_round, rescue
from jobs.run import WorkerDiedError, explaining, has_processes, is_local, quiet_stderr, run
from pipelines import RECIPES
from pipelines.build import BuildDataset
from pipelines.recipe import BuildConfig, Recipe
from schemas.dataset import DatasetInfo, Job
from schemas.errors import ConfigError, InputError, SubjectloomError
from schemas.samples.base import SampleFormat
from transforms.candidates import stored_candidates
from transforms.dataset import (
    MEMBERS,
    STATE,
    finished_shards,
    leave_nothing,
    leaving_nothing,
    prepare_output,
    refuse_derived,
)
from transforms.files import is_remote, join
from transforms.finish import finish_noted, note_expected
from transforms.listing import Listing, list_source
from transforms.models.presets import Models
from transforms.pieces import remove_all_pieces
from transforms.read import publish
from transforms.remote import use_options
from transforms.selection.cut import ChooseSamples, Cut, CutShards, choice_digest, cut_fingerprints, is_chosen
from transforms.sources.records import Chunk
from transforms.step import Step
from transforms.unread import refuse_unread
from transforms.verify import intact_shards
from transforms.worker import Needs

SHARDS_PER_ROUND = 4
"""Shards in a round, per local worker. Each round loads the models again, which takes seconds; four thousand JPEGs take
some hundred megabytes."""

SMALL = "small, trained on sample scenes only; use --preset hub for photographs"
AGAIN = "each of them is made again in a process of its own"


@dataclass(frozen=True)
class Request:
    """Arguments of one `subjectloom build`.

    `debug` shows what Beam prints when a worker dies; with `doubts_preset`, small models are refused for photographs;
    `replaced` are the kinds of models that are not the preset's own; `dataflow_preset` is one of
    `jobs.engines.PRESETS`, `accelerator` the hint of `BuildDataset`.
    """

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
    debug: bool = False
    prune: bool = False
    rename: bool = False
    mix_versions: bool = False
    doubts_preset: bool = False
    replaced: tuple[str, ...] = ()
    dataflow_preset: str | None = None
    accelerator: str = ""


@explaining()
def build(request: Request, console: Console) -> DatasetInfo:
    """Build the dataset and return the contents of `dataset.json`.

    Raises:
        SubjectloomError: the source, the output, an option or a checkpoint cannot be used, or the books do not
            balance.
    """
    if request.recipe == "pairs":
        from jobs.pairs import build_pairs  # noqa: PLC0415 - it imports this module

        return build_pairs(request, console)
    return build_recipe(RECIPES[request.recipe], request, console)


def build_recipe(recipe: Recipe[Any], request: Request, console: Console, needs_captions: bool = True) -> DatasetInfo:
    """Build a dataset with `recipe`, as `build` does; without `needs_captions`, its steps caption what has none."""
    options = beam_options(request.beam_options, request.dataflow_preset)
    request = for_engine(request, options)
    if request.resume:
        refuse_derived(request.output)
    listing, config, models, steps = settle(request, console, recipe)
    cut = recipe.cut(config)
    job = describe_job(request.recipe, config, steps, models.hosting.precision)
    if request.resume:
        job = with_earlier_versions(request.output, job, mix=request.mix_versions)
    if unused := [kind for kind in request.replaced if kind not in job.models]:
        used = ", ".join(job.models) or "none"
        raise ConfigError(f"--model {unused[0]}=...: no step of this build runs such a model; it runs {used}")
    print_lines(console, check_names(job, str(models.segmenter)))
    stamps = "".join(step.stamp() for step in steps)
    found, stamp = kept_candidates(config, steps, job)
    chunks = with_fingerprints(listing.chunks, stamps, job, counts=config.captions != "all", candidates=stamp)
    fingerprints = {chunk.shard: chunk.fingerprint for chunk in chunks}
    final = cut_fingerprints(fingerprints, cut) if cut else fingerprints
    needs_captions = (
        needs_captions and recipe.needs_captions(config) and not (recipe.writes_captions and models.captioner)
    )
    if request.resume and not request.prune:
        refuse_shorter(request, listing)
    prepare_output(request.output, job, overwrite=request.overwrite, resume=request.resume, members=listing.members)
    with leaving_nothing(request.output):
        note_expected(request.output, final, listing.gaps)
        done = shards_done(request.output, fingerprints, final, cut, console)
        missing = [chunk for chunk in chunks if chunk.shard not in done]
        if len(missing) < len(chunks):
            console.print(f"{len(chunks) - len(missing)} of {len(chunks)} shards are done already", style="dim")
        ready, rest = by_candidates(request.output, missing)
        announce(request, job, ready, rest, console)
        compile_code(steps if missing and is_local(options) else (), console)
        with progress_bar(console, missing, list(job.models)) if is_local(options) else nullcontext("") as progress:
            whole = BuildDataset(
                recipe.format, config, steps, chunks, request.output, needs_captions, progress,
                accelerator=request.accelerator, candidates=found,
            )  # fmt: skip
            if not is_local(options):
                whole = replace(whole, needs=needs_of(request, steps), finishes=cut is None)
                print_lines(console, [f"{len(missing)} shards: the runner's own log and pages show how it goes"])
            for part in (replace(whole, from_candidates=True).of(ready), whole.of(rest)):
                if part.chunks:
                    make_shards(part, options, console, debug=request.debug)
        refuse_unread(request.output, [chunk.shard for chunk in missing])
        if cut:
            shown = nullcontext() if request.debug or not is_local(options) else quiet_stderr()
            with console.status(cut.what), shown:
                cut_dataset(request.output, recipe.format, fingerprints, cut, options)
    info = finish_noted(request.output)
    print_lines(console, check_names_afterwards(job, request.output))
    return info


def by_candidates(output: str, chunks: Sequence[Chunk]) -> tuple[list[Chunk], list[Chunk]]:
    """Return the chunks whose candidates are kept in `output`, so that their shards need no model, and the others."""
    stored = stored_candidates(output, (chunk.shard for chunk in chunks if chunk.candidates))
    ready = {chunk.shard for chunk in chunks if chunk.candidates and stored.get(chunk.shard) == chunk.candidates}
    return [c for c in chunks if c.shard in ready], [c for c in chunks if c.shard not in ready]


def announce(request: Request, job: Job, ready: Sequence[Chunk], rest: Sequence[Chunk], console: Console) -> None:
    """Say which shards need no model, and that small models run for the rest, which must not be of photographs."""
    if ready:
        print_lines(console, [f"{len(ready)} shards are made of what the models found before"])
    small = job.small_models()
    if small and (rest or not ready):
        print_lines(console, [f"models   {', '.join(small)}: {SMALL}"])
    if small and rest and request.doubts_preset:
        check_likeness(rest[0])


def settle(
    request: Request, console: Console, recipe: Recipe[Any] | None = None
) -> tuple[Listing, BuildConfig, Models, Sequence[Step]]:
    """List the source, and settle what a request leaves open: the config, the precision of the models, the steps.

    `recipe` is by default the one that the request names.

    Raises:
        SubjectloomError: the source or an option cannot be used.
    """
    recipe, models = recipe or RECIPES[request.recipe], request.models
    with console.status(f"reading {request.source}"):
        listing = list_source(
            request.source,
            request.kind,
            samples_per_shard=request.config.samples_per_shard,
            shard_bytes=request.config.shard_bytes,
            batch_size=request.config.batch_size,
            limit=request.limit,
            keys=request.keys,
            rename=request.rename,
            earlier=join(request.output, STATE, MEMBERS) if request.resume else "",
            follow_links=request.config.follow_links,
        )
    config = recipe.settle(request.config, models, listing)
    wanted = precision_on(request.dataflow_preset, models.hosting.precision)
    precision = settle_precision(wanted, recipe.all_steps(config, models, listing))
    models = replace(models, hosting=replace(models.hosting, precision=precision))
    return listing, config, models, recipe.all_steps(config, models, listing)


def needs_of(request: Request, steps: Sequence[Step]) -> Needs:
    """What workers elsewhere are checked for."""
    return Needs(request.output, [*checkpoints_of(steps).values()], cuda=has_gpu(request.dataflow_preset))


def compile_code(steps: Sequence[Step], console: Console) -> None:
    """Compile what the steps run that is compiled; the result stays on this machine's disk, where workers find it."""
    for step in steps:
        if compiler := step.compiler():
            message = f"compiling the {compiler.name} (a minute the first time on a machine, then a second)"
            if not console.is_terminal:
                print_lines(console, [message])
            with console.status(message):
                compiler.run()


def print_lines(console: Console, lines: Iterable[str]) -> None:
    """Print plain lines, unwrapped."""
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def for_engine(request: Request, options: PipelineOptions) -> Request:
    """Prepare files and log for an engine; return the request with absolute paths for workers that start elsewhere.

    Raises:
        ConfigError: the engine's workers do not see one of the paths.
    """
    use_options(options)
    backgrounds = getattr(request.config, "backgrounds", "")
    check_paths(options, {"--input": request.source, "--output": request.output, "--backgrounds": backgrounds})
    if is_local(options):
        return request
    logging.disable(logging.NOTSET)  # a remote runner reports how the job goes through the log

    def absolute(path: str) -> str:
        return path if is_remote(path) or not path else os.path.abspath(path)  # noqa: PTH100 - it may be a glob

    config = request.config.model_copy(update={"backgrounds": absolute(backgrounds)} if backgrounds else {})
    return replace(request, source=absolute(request.source), output=absolute(request.output), config=config)


def refuse_shorter(request: Request, listing: Listing) -> None:
    """Refuse to go on with a source that lacks what finished shards were made from.

    Raises:
        InputError: it does.
    """
    finished = finished_shards(request.output).keys()
    gone = sum(count for shard, count in listing.lost.items() if shard in finished)
    shards = finished & listing.lost.keys() | finished - {chunk.shard for chunk in listing.chunks}
    if shards:
        what = f"{gone:,} inputs" if gone else "inputs"
        raise InputError(
            f"{request.source} lacks {what} that {len(shards)} finished shards of {request.output} were made from: is "
            "it mounted, is --limit too low? --prune removes their samples"
        )


def describe_stop(output: str) -> str:
    """Say what is done of a build that is being stopped, after removing what a resumed one has no use for."""
    if leave_nothing(output):
        return "no shard is done yet"
    forget_round(output)
    return f"{len(finished_shards(output))} shards are done, --resume goes on with the others"


def make_shards(missing: BuildDataset, options: PipelineOptions, console: Console, *, debug: bool = False) -> None:
    """Make shards; on the local runner, those that kill a process are made without the records that do (`rescue`).

    Args:
        missing: the build of these shards.
        options: Beam's.
        console: where is said what happens.
        debug: show what Beam and its workers print when one of them dies.

    Raises:
        SubjectloomError: a shard could not be made.
    """
    noted = noted_shards(missing.output) if is_local(options) else set()
    interrupted = [chunk for chunk in missing.chunks if chunk.shard in noted]
    if interrupted:
        console.print(f"the last run died while it made {_in_words(interrupted)}: {AGAIN}", soft_wrap=True)
        with nullcontext() if debug else quiet_stderr():
            rescue(missing.of(interrupted), local_workers(options), console)
    forget_round(missing.output)
    for group in rounds([chunk for chunk in missing.chunks if chunk.shard not in noted], options):
        part = missing.of(group)
        if not is_local(options):
            run_remotely(part, options)
        elif has_processes(options):
            with nullcontext() if debug else quiet_stderr():
                run_in_processes(part, options, console)
        else:
            with (
                noting_round(missing.output, [chunk.shard for chunk in group]),
                nullcontext() if debug else quiet_stderr(),
            ):
                run(part, options)


def run_in_processes(part: BuildDataset, options: PipelineOptions, console: Console) -> None:
    """Make shards in several processes; if one of these dies, make each shard in a child process."""
    count = Path(part.progress).stat().st_size
    try:
        run(part, options)
    except WorkerDiedError:
        console.print(f"a process died while it made {_in_words(part.chunks)}: {AGAIN}", soft_wrap=True)
        os.truncate(part.progress, count)  # all records of these shards are counted again
        rescue(part, local_workers(options), console)


def run_remotely(part: BuildDataset, options: PipelineOptions) -> None:
    """Make shards on a runner that is not here.

    Raises:
        SubjectloomError: that failed; the message names the shards that are not done.
    """
    remove_all_pieces(part.output)  # a bundle that is tried elsewhere may have left some
    try:
        run(replace(part, groups=publish(part.chunks, part.output), progress=""), options)
    except SubjectloomError:
        raise
    except Exception as error:
        done = finished_shards(part.output)
        left = [chunk for chunk in part.chunks if done.get(chunk.shard) != chunk.fingerprint]
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise SubjectloomError(
            f"{options.view_as(StandardOptions).runner} failed ({shorten(lines[-1] if lines else repr(error), 200)}), "
            f"{_in_words(left)} not done: run again with --resume. If it is a record that kills its worker, a build "
            "on this machine finds and rejects it: -- --direct_num_workers=2 --direct_running_mode=multi_processing"
        ) from error


def shards_done(
    output: str, fingerprints: Mapping[int, str], final: Mapping[int, str], cut: Cut | None, console: Console
) -> set[int]:
    """Return the shards that need not be built from the source: those that are done, and candidates not cut yet.

    `final` holds their fingerprints when they are done. If the choice is missing, the candidates of shards that were
    cut are missing too: these are built again.
    """
    written = intact_shards(output, finished_shards(output), console).items()
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


def rounds(chunks: Sequence[Chunk], options: PipelineOptions) -> Iterator[Sequence[Chunk]]:
    """Split the shards into the rounds of a local job; any other runner takes all of them at once."""
    if not is_local(options):
        yield chunks
        return
    size = SHARDS_PER_ROUND * local_workers(options)
    for start in range(0, len(chunks), size):
        yield chunks[start : start + size]


def _in_words(chunks: Sequence[Chunk]) -> str:
    numbers = ", ".join(str(chunk.shard) for chunk in chunks[:8])
    return f"{len(chunks)} shards ({numbers}{', ...' if len(chunks) > 8 else ''})"
