"""The `subjectloom` command: a thin rim around the functions of `jobs/`."""

import logging
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import yaml
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from rich.table import Table

from schemas.errors import ConfigError, SubjectloomError, choices

app = typer.Typer(
    help="Training datasets for subject-driven text-to-image generation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
out = Console()
err = Console(stderr=True)

Config = TypeVar("Config", bound=BaseModel)

RECIPES = ("fastcomposer", "blip-diffusion", "mip-adapter")
FORMATS = ("fastcomposer", "coco", "mip-adapter")


def print_version(asked: bool) -> None:
    """Print the version and end, where it is asked for."""
    if asked:
        print_lines(f"subjectloom {metadata.version('subjectloom')}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=print_version)
    ] = False,
) -> None:
    """Training datasets for subject-driven text-to-image generation."""


@app.command()
def scenes(
    output: Annotated[Path, typer.Argument(help="A new folder.")],
    count: Annotated[int, typer.Option(help="Scenes to render.", min=1)] = 64,
    seed: Annotated[int, typer.Option(help="Scene i is a function of (seed, i).", min=0)] = 0,
    size: Annotated[int, typer.Option(help="Side of the pictures, in pixels.", min=64, max=4096)] = 256,
) -> None:
    """Render sample scenes with captions and exact truth."""
    from jobs.scenes import write_scenes

    rendered = write_scenes(output, count, seed, size)
    for _ in track(rendered, "scenes", total=count, console=out, disable=not out.is_terminal, transient=True):
        pass
    out.print(f"{count} scenes in {output}: images/, backgrounds/, truth/", soft_wrap=True)


@app.command(context_settings={"allow_extra_args": True})
def build(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="The recipe: fastcomposer, blip-diffusion or mip-adapter.")],
    source: Annotated[
        str,
        typer.Option("--input", help="Folder (COCO's annotations beside), tars or Parquet: path, address, glob."),
    ],
    output: Annotated[str, typer.Option(help="Folder of the dataset; any filesystem that Beam opens.")],
    kind: Annotated[
        str | None,
        typer.Option(
            "--source", help="folder, webdataset, parquet, coco-panoptic, coco-instances, open-images, sa-1b; detected."
        ),
    ] = None,
    preset: Annotated[
        str, typer.Option(help="Models: sample (in the package) or hub (published, downloaded).")
    ] = "sample",
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="One model alone: segmenter=PATH_OR_NAME; parser, clip, clipseg, captioner, sam, detector likewise."
        ),
    ] = None,
    similarity: Annotated[
        str | None, typer.Option(help="Of phrase and segment: clip, clip-label (fastcomposer), label.")
    ] = None,
    segmenter: Annotated[
        str | None, typer.Option(help="fastcomposer: what finds segments: panoptic, or sam (everything, unnamed).")
    ] = None,
    expand_plurals: Annotated[
        bool | None,
        typer.Option("--expand-plurals/--keep-plurals", help='fastcomposer: "two women" as "a woman and a woman".'),
    ] = None,
    backgrounds: Annotated[
        str | None, typer.Option(help="blip-diffusion: folder, glob or tars of background pictures; painted if none.")
    ] = None,
    best: Annotated[int | None, typer.Option(help="mip-adapter: keep the N samples of highest quality.", min=1)] = None,
    min_quality: Annotated[float | None, typer.Option(help="mip-adapter: lowest quality of a sample.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with the recipe's fields.")] = None,
    limit: Annotated[int | None, typer.Option(help="Read only the first N records.", min=1)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Make only what is missing or out of date.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the dataset in OUTPUT.")] = False,
) -> None:
    """Build a dataset. What follows -- goes to Beam: -- --runner=DataflowRunner --project=..."""
    check_recipe(recipe)
    from jobs.build import Request
    from jobs.build import build as run_build
    from jobs.plans import CONFIGS
    from jobs.report.page import write_report
    from transforms.models.presets import resolve

    given = {
        "similarity": similarity,
        "segmenter": segmenter,
        "expand_plurals": expand_plurals,
        "backgrounds": backgrounds,
        "best": best,
        "min_quality": min_quality,
    }
    request = Request(
        source,
        output,
        read_config(CONFIGS[recipe], config, {name: value for name, value in given.items() if value is not None}),
        resolve(preset, parse_overrides(model or [])),
        kind,
        limit,
        overwrite,
        resume,
        tuple(context.args),
    )
    info = run_build(request, out)
    report = write_report(output)
    print_books(info.counts.model_dump(), info.seconds)
    out.print(f"dataset  {output}\nreport   {report}", soft_wrap=True)
    small = [use for use, one in info.models.items() if one.name.startswith("sample/") and use != "parser"]
    if small:
        print_lines(f"models   {', '.join(small)}: small ones, for sample scenes alone; --preset hub reads photographs")
    if not info.counts.written:
        raise SubjectloomError(f"nothing was written: all {info.counts.read} records were rejected, see {report}")


@app.command()
def inspect(output: Annotated[str, typer.Argument(help="Folder of a dataset.")]) -> None:
    """Verify every shard against the schema and print the numbers."""
    from jobs.inspect import inspect as run_inspect
    from jobs.inspect import show

    inspection = run_inspect(output)
    show(inspection, out)
    if inspection.problems:
        raise typer.Exit(1)


@app.command()
def export(
    source: Annotated[str, typer.Argument(metavar="DIR", help="Folder of a dataset.")],
    destination: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="fastcomposer, mip-adapter (what their trainers load) or coco (of fastcomposer).",
        ),
    ],
    square: Annotated[
        bool, typer.Option("--square", help="fastcomposer: cut to squares in which the subjects survive its loader.")
    ] = False,
    held_out: Annotated[
        int | None, typer.Option(help="fastcomposer: pictures held out for testing (1,000, at most a tenth).", min=0)
    ] = None,
    seed: Annotated[int, typer.Option(help="fastcomposer: chooses which are held out.", min=0)] = 0,
) -> None:
    """Write the folder layout that other programs load."""
    from jobs.exports.coco import export_coco
    from jobs.exports.fastcomposer import export_fastcomposer
    from jobs.exports.mip_adapter import export_mip_adapter

    if form == "fastcomposer":
        exported = export_fastcomposer(source, destination, square=square, held_out=held_out, seed=seed)
        dropped = counted(exported.dropped, "subjects") or "no subject left out"
        print_lines(
            f"{exported.written} pictures, {exported.held_out} of them held out for testing, in {destination}",
            f"{exported.without_subject} pictures left without a subject; {dropped}",
        )
    elif form == "coco":
        coco = export_coco(source, destination)
        print_lines(
            f"{coco.images} pictures, {coco.annotations} annotations of {coco.categories} classes in {destination}"
        )
    elif form == "mip-adapter":
        mip = export_mip_adapter(source, destination)
        refused = [counted(mip.refused_objects, "objects"), counted(mip.refused, "pictures")]
        print_lines(
            f"{mip.written} pictures in {destination}, {mip.selected} of them in selected_indexes.pkl",
            f"{mip.without_object} pictures left without an object; "
            + (counted(mip.dropped, "objects") or "no object left out"),
            "its loader's gates: " + ("; ".join(filter(None, refused)) or "all pass"),
        )
    else:
        raise ConfigError(f"there is no format {form!r}{choices(form, FORMATS)}")


def counted(reasons: Mapping[str, int], things: str) -> str:
    """Return "3 THINGS REASON, 2 THINGS ..."; nothing where there are no reasons."""
    return ", ".join(f"{count} {things} {why}" for why, count in reasons.items())


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="The recipe: fastcomposer, blip-diffusion or mip-adapter.")],
    data: Annotated[str, typer.Option(help="Folder of a dataset, or its tars by path or address, braces for many.")],
    output: Annotated[Path, typer.Option(help="Folder of the run.")],
    preset: Annotated[
        str, typer.Option(help="sample (small, from nothing, on a CPU) or hub (the published weights, downloaded).")
    ] = "sample",
    model: Annotated[
        str | None, typer.Option(help="Start from this folder, a run's model or the published layout, instead.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with the training's fields.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.", min=1)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
) -> None:
    """Train on a dataset. Several processes: torchrun --nproc_per_node N -m jobs.main train ..."""
    check_recipe(recipe)
    from jobs.train import run_training
    from training.loop import this_process
    from training.recipes import training_of

    training = training_of(recipe)
    if preset not in training.presets:
        raise ConfigError(f"there is no preset {preset!r}{choices(preset, training.presets)}")
    given = {} if steps is None else {"steps": steps}
    settings = read_config(training.config, config, given, training.presets[preset])
    out.quiet = not this_process().is_main_process
    running = run_training(recipe, data, output, settings, preset=preset, model=model, resume=resume)
    show_training(running, settings.steps)
    print_lines(f"run      {output}", f"curves   {output / 'curves.svg'}", f"model    {output / 'model'}")


def show_training(running: Iterator[dict[str, float]], steps: int) -> None:
    """Run a training to its end, under a progress bar with the losses; without a terminal, print ten lines."""
    from training.loop import NOT_LOSSES

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, disable=not out.is_terminal, transient=True) as bar:
        task = bar.add_task("training", total=steps)
        done = 0
        for metrics in running:
            done = int(metrics["step"]) + 1
            losses = "  ".join(f"{name} {metrics[name]:.4f}" for name in metrics if name not in ("loss", *NOT_LOSSES))
            bar.update(task, completed=done, description=losses)
            if not out.is_terminal and (done % max(1, steps // 10) == 0 or done == steps):
                print_lines(f"step {done}  {losses}  {metrics['samples_per_second']:.1f} samples/s")
    if not done:
        print_lines(f"all {steps} steps were made before: more --steps go on")


@app.command()
def report(output: Annotated[str, typer.Argument(help="Folder of a dataset.")]) -> None:
    """Write report.html again."""
    from jobs.report.page import write_report

    out.print(str(write_report(output)), soft_wrap=True)


def check_recipe(recipe: str) -> None:
    """Refuse a recipe that does not exist."""
    if recipe not in RECIPES:
        raise ConfigError(f"there is no recipe {recipe!r}{choices(recipe, RECIPES)}")


def read_config(
    kind: type[Config], path: Path | None, given: Mapping[str, Any], preset: Mapping[str, Any] | None = None
) -> Config:
    """Read a config of class `kind` from YAML; `given` on the command line goes before it, a preset's fields behind.

    Raises:
        ConfigError: the file cannot be read, or a field is unknown or out of range.
    """
    fields: dict[str, Any] = {}
    if path is not None:
        try:
            fields = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"the config {path} cannot be read: {' '.join(str(error).split())}") from error
        if not isinstance(fields, dict):
            raise ConfigError(f"the config {path} must hold one `field: value` on each line")
    try:
        return kind(**{**(preset or {}), **fields, **given})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(step) for step in first["loc"])
        option = f"--{name.replace('_', '-')}" if name in given else ""
        if first["type"] != "extra_forbidden":
            problem = f"{option or name} = {first['input']!r}: {first['msg']}"
        elif option:
            raise ConfigError(f"{option} is another recipe's: this one has {', '.join(kind.model_fields)}") from error
        else:
            problem = f"{name!r} is no field of the config{choices(name, kind.model_fields)}"
        raise ConfigError(f"{'the command line' if option or path is None else path}: {problem}") from error


def parse_overrides(pairs: list[str]) -> dict[str, str]:
    """Read `--model KIND=PATH_OR_NAME` options.

    Raises:
        ConfigError: one has no `=`.
    """
    overrides = {}
    for pair in pairs:
        kind, equals, name = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"--model {pair}: write KIND=PATH_OR_NAME, as --model segmenter=my/checkpoint")
        overrides[kind] = name
    return overrides


def print_lines(*lines: str) -> None:
    """Print plain lines, unwrapped."""
    for line in lines:
        out.print(line, soft_wrap=True, markup=False, highlight=False)


def print_books(counts: dict[str, Any], seconds: dict[str, float]) -> None:
    """Print what was read, written and rejected, and where the time went."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name in ("read", "written", "rejected", "shards"):
        table.add_row(name, f"{counts[name]:,}")
    for stage, reasons in counts["rejects"].items():
        for reason, number in reasons.items():
            table.add_row(f"  {stage}: {reason}", f"{number:,}", style="dim")
    out.print(table)
    told = ", ".join(f"{stage} {spent:.1f}" for stage, spent in seconds.items())
    out.print(f"seconds  {told}", style="dim", soft_wrap=True)


def main() -> None:
    """Run the command; an error is one line on stderr, its traceback only with --debug."""
    # Libraries narrate on the way; what a person needs to know is in the errors and the books.
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    try:
        app()
    except Exception as error:  # the last resort of a command: a person sees a line, not a traceback
        if "--debug" in sys.argv:
            traceback.print_exc()
        known = isinstance(error, SubjectloomError)
        kind = "error" if known else f"unexpected {type(error).__name__} (`subjectloom --debug ...` shows where)"
        err.print(f"{kind}: {' '.join(str(error).split())}", style="red", soft_wrap=True, markup=False, highlight=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
