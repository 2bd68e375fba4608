"""The `subjectloom` command: it reads options and calls the functions of `jobs/`."""

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from typer.core import TyperGroup
from typer.main import get_command

from jobs import option_help
from jobs.arguments import (
    check_recipe,
    check_source,
    expand_arguments,
    move_to_front,
    parse_overrides,
    recipe_names,
    split_arguments,
    workers_of,
)
from jobs.console import err, out, print_books, print_lines
from jobs.dataset_commands import COMMANDS
from jobs.evaluate_command import evaluate
from jobs.examples import add_to_help
from jobs.exports import Option, all_options, export_dataset, formats_help
from jobs.generate_command import generate
from jobs.layouts_command import layouts
from jobs.plan import plan
from jobs.preview_command import preview
from jobs.settings import read_config
from jobs.stop import INTERRUPTED, stoppable
from jobs.view_command import view
from jobs.weights_command import weights
from schemas.errors import ConfigError, InputError, SubjectloomError, choices
from schemas.machine import use_machine

app = typer.Typer(
    help="Training datasets for subject-driven text-to-image generation.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def print_version(requested: bool) -> None:
    """Print the version and exit if `--version` is given."""
    if requested:
        print_lines(f"subjectloom {metadata.version('subjectloom')}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,  # noqa: ARG001
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what the libraries log.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    log_file: Annotated[Path | None, typer.Option(help="File to which the libraries' log is added.")] = None,
    version: Annotated[  # noqa: ARG001 - its callback prints it
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=print_version)
    ] = False,
) -> None:
    """Training datasets for subject-driven text-to-image generation."""
    out.quiet = quiet
    if verbose or log_file:
        logging.disable(logging.NOTSET)
        handlers: list[logging.Handler] = [logging.StreamHandler()] if verbose else []
        try:
            handlers += [logging.FileHandler(log_file, encoding="utf-8")] if log_file else []
        except OSError as error:
            raise InputError(f"the log {log_file} cannot be written: {error.strerror}") from error
        logging.basicConfig(level=logging.INFO, handlers=handlers, format=LOG_FORMAT, force=True)


@app.command()
def scenes(
    output: Annotated[Path, typer.Argument(help="A new folder.")],
    count: Annotated[int, typer.Option(help="Scenes to render.", min=1)] = 64,
    seed: Annotated[int, typer.Option(help="Scene i is a function of (seed, i).", min=0)] = 0,
    size: Annotated[int, typer.Option(help="Side of the pictures, in pixels.", min=64, max=4096)] = 256,
    objects: Annotated[
        str, typer.Option(help="Fewest and most objects, from 1 to 5; with at most three they are larger.")
    ] = "1-5",
    maps: Annotated[bool, typer.Option("--maps", help="Write exact depth and normals beside the pictures.")] = False,
) -> None:
    """Render sample scenes with captions and exact truth."""
    from jobs.scenes import parse_objects, write_scenes

    rendered = write_scenes(output, count, seed, size, parse_objects(objects), maps=maps)
    for _ in track(rendered, "scenes", total=count, console=out, disable=not out.is_terminal, transient=True):
        pass
    out.print(f"{count} scenes in {output}: images/, backgrounds/, truth/", soft_wrap=True)


@app.command()
def build(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help=option_help.RECIPE, autocompletion=recipe_names)],
    source: Annotated[
        str,
        typer.Option(
            "--input", help="Pictures with captions: a folder, tars or Parquet files, as a path, an address or a glob."
        ),
    ],
    output: Annotated[str, typer.Option(help="Folder of the dataset; any filesystem that Beam opens.")],
    kind: Annotated[
        str | None,
        typer.Option(
            "--source",
            help="Kind of the input: folder, webdataset, parquet, arrow, coco-panoptic, coco-instances, open-images or "
            "sa-1b. Detected by default.",
        ),
    ] = None,
    keys: Annotated[
        str, typer.Option(help="Where keys in tars end: first-dot (WebDataset's rule) or last-dot of a name.")
    ] = "first-dot",
    preset: Annotated[
        str | None,
        typer.Option(
            help="Models: sample (small, in the package) or hub (published, downloaded). By default sample, which is "
            "refused for photographs."
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND=PATH_OR_NAME",
            help="Replace a model of the preset; KIND is parser, segmenter, clip, clipseg, captioner, sam, detector, "
            "depth, edges or pose.",
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with the recipe's fields.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help=option_help.SET)] = None,
    limit: Annotated[int | None, typer.Option(help="Read only the first N records.", min=1)] = None,
    threads: Annotated[int | None, typer.Option(help=option_help.THREADS, min=1)] = None,
    device: Annotated[str | None, typer.Option(help=option_help.DEVICE)] = None,
    precision: Annotated[str, typer.Option(help=option_help.PRECISION)] = "auto",
    model_copies: Annotated[int | None, typer.Option(help=option_help.COPIES, min=1)] = None,
    large_model: Annotated[bool, typer.Option("--large-model", help=option_help.LARGE)] = False,
    dataflow_preset: Annotated[str | None, typer.Option(help=option_help.DATAFLOW)] = None,
    accelerator: Annotated[str, typer.Option(help=option_help.ACCELERATOR)] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Build only what is missing or out of date.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the dataset in OUTPUT.")] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="With --resume: remove the samples of what INPUT no longer holds.")
    ] = False,
    mix_versions: Annotated[
        bool, typer.Option("--mix-versions", help="With --resume: keep shards that other versions of libraries made.")
    ] = False,
    twins: Annotated[str, typer.Option(help=option_help.TWINS)] = "reject",
    dry_run: Annotated[bool, typer.Option("--dry-run", help=option_help.DRY_RUN)] = False,
) -> None:
    """Build a dataset. Options after -- go to Beam: -- --runner=DataflowRunner --project=..."""
    from pipelines import BUILDS
    from transforms.models.presets import host, resolve

    use_machine(threads, device, workers_of(context.obj), small_models=preset != "hub")
    check_recipe(recipe, to_build=True)
    if twins not in ("reject", "rename"):
        raise ConfigError(f"there is no --twins {twins!r}: it is reject or rename")
    overrides = parse_overrides(model or [])
    models = host(resolve(preset or "sample", overrides), precision, model_copies, large=large_model)
    fields = read_config(BUILDS[recipe], config, settings or [], {"batch_size": models.batch_size})
    check_source(source)
    with out.status("starting"):  # importing Beam takes seconds
        from jobs.build import Request, describe_stop
        from jobs.build import build as run_build
        from jobs.report.page import write_report

    request = Request(
        recipe, source, output, fields, models, kind, limit, overwrite, resume, tuple(context.obj), keys,
        debug="--debug" in sys.argv, prune=prune, rename=twins == "rename", mix_versions=mix_versions,
        doubts_preset=preset is None, replaced=tuple(overrides),
        dataflow_preset=dataflow_preset, accelerator=accelerator,
    )  # fmt: skip
    if dry_run:
        from jobs.dry_run import dry_run as say_what_it_takes

        for line in say_what_it_takes(request, out):
            print_lines(line)
        return
    with stoppable(lambda: describe_stop(output)):
        info = run_build(request, out)
    report = write_report(output)
    print_books(info.counts.model_dump(), info.seconds)
    out.print(f"dataset  {output}\nreport   {report}", soft_wrap=True)
    if not info.counts.written:
        raise SubjectloomError(
            f"nothing was written: {info.counts.read} of {info.counts.read} records were rejected, see {report}"
        )


@app.command()
def finish(output: Annotated[str, typer.Argument(help="Folder of a dataset whose shards are all made.")]) -> None:
    """Finish a dataset whose build ended before it could: write its index, rejects, dataset.json and report."""
    from jobs.report.page import write_report
    from transforms.finish import finish_noted

    info = finish_noted(output)
    report = write_report(output)
    print_books(info.counts.model_dump(), info.seconds)
    out.print(f"dataset  {output}\nreport   {report}", soft_wrap=True)


@app.command()
def recipes(
    name: Annotated[
        str | None, typer.Argument(help="The recipe whose fields are listed.", autocompletion=recipe_names)
    ] = None,
) -> None:
    """List the recipes, or the fields of one of them."""
    from jobs.recipes import show_fields, show_recipes

    if name is None:
        show_recipes(out)
        return
    check_recipe(name, to_build=True)
    show_fields(name, out)


@app.command()
def inspect(output: Annotated[str, typer.Argument(help="Folder of a dataset.")]) -> None:
    """Verify every sample of a dataset and print its counts."""
    from jobs.inspect import inspect as run_inspect
    from jobs.inspect import show

    inspection = run_inspect(output)
    show(inspection, out)
    if inspection.problems:
        raise typer.Exit(1)


def export(
    source: Annotated[str, typer.Argument(metavar="DIR", help="Folder of a dataset.")],
    destination: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    form: Annotated[str, typer.Option("--format", help=formats_help())],
    **options: Any,  # noqa: ANN401 - of the formats, by their table
) -> None:
    """Write a dataset in a format that other programs load."""
    given = {name: value for name, value in options.items() if value is not None}
    print_lines(*export_dataset(form, source, destination, given))


def with_options(command: Callable[..., None], options: Iterable[Option]) -> Callable[..., None]:
    """Replace the `**options` of a command by options for Typer, which reads them from its signature."""
    fixed = [p for p in signature(command).parameters.values() if p.kind is not Parameter.VAR_KEYWORD]
    added = [
        Parameter(
            option.name,
            Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                option.type | None,
                typer.Option(f"--{option.name.replace('_', '-')}", help=option.help, min=option.minimum),
            ],
        )
        for option in options
    ]
    cast("Any", command).__signature__ = Signature([*fixed, *added])
    return command


OTHERS: dict[str, Callable[..., None]] = {
    "export": with_options(export, all_options()),
    "plan": plan,
    "preview": preview,
    "view": view,
    "generate": generate,
    "evaluate": evaluate,
    "layouts": layouts,
    **COMMANDS,
}
for name, command in OTHERS.items():
    app.command(name)(command)
app.add_typer(weights, name="weights")


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help=option_help.RECIPE, autocompletion=recipe_names)],
    data: Annotated[
        list[str],
        typer.Option(
            metavar="DATA[=WEIGHT]",
            help="Folder of a dataset, or its tars, as a path or address; braces name several: {000000..000009}. Given "
            "several times, the datasets are mixed: by weight if each has one, else as if they were one.",
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder of the run.")],
    preset: Annotated[
        str,
        typer.Option(help="Start from sample (a small model of scenes, for a CPU) or hub (published weights)."),
    ] = "sample",
    model: Annotated[
        str | None,
        typer.Option(help="Start from this folder instead: model/ of a run, or one in the published layout."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with the training's fields.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help=option_help.SET)] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.", min=1)] = None,
    threads: Annotated[int | None, typer.Option(help=option_help.THREADS, min=1)] = None,
    device: Annotated[str | None, typer.Option(help=option_help.DEVICE)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
) -> None:
    """Train on a dataset. Several processes: torchrun --nproc_per_node N -m subjectloom train ..."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    use_machine(threads, device, processes, small_models=preset == "sample" and model is None)
    check_recipe(recipe)
    from training.configs import config_of, owners_of_fields
    from training.names import check_data
    from training.resume import check_run, defaults_of

    kind, presets = config_of(recipe)
    if preset not in presets:
        raise ConfigError(f"there is no preset {preset!r}{choices(preset, presets)}")
    given = [*(settings or []), *([] if steps is None else [f"steps={steps}"])]
    fields = read_config(kind, config, given, presets[preset], owners_of_fields())
    check_data(data)
    if os.environ.get("RANK", "0") == "0":  # other processes may start when this one has written to the folder
        intended = {"recipe": recipe, **fields.model_dump(mode="json")}
        check_run(output, intended, resume, defaults_of(fields))
    with out.status("starting"):  # importing torch and diffusers takes seconds
        from jobs.train import run_training
        from training.loop import this_process

    out.quiet |= not this_process().is_main_process
    running = run_training(recipe, data, output, fields, preset=preset, model=model, resume=resume, report=print_lines)
    with stoppable(lambda: f"--resume goes on from the newest checkpoint in {output / 'checkpoints'}"):
        show_training(running, fields.steps)
    print_lines(f"run      {output}", f"curves   {output / 'curves.svg'}", f"model    {output / 'model'}")


def show_training(running: Iterator[dict[str, float]], steps: int) -> None:
    """Run a training to its end, under a progress bar with the losses; without a terminal, print ten lines."""
    from training.log import NOT_LOSSES

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
        print_lines(f"all {steps} steps are finished already: give more --steps to go on")


@app.command()
def report(output: Annotated[str, typer.Argument(help="Folder of a dataset.")]) -> None:
    """Write report.html of a dataset again."""
    from jobs.report.page import write_report

    out.print(str(write_report(output)), soft_wrap=True)


def main() -> None:
    """Run the command; an error is one line on stderr, its traceback only with --debug."""
    # Libraries warn and log; what the user needs to know is in the errors and the counts.
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    try:
        arguments, beam = split_arguments(sys.argv[1:])
        group = cast("TyperGroup", get_command(app))
        add_to_help(group, arguments)
        group(move_to_front(expand_arguments(arguments, group), group), prog_name="subjectloom", obj=beam)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            err.print("stopped")
        raise
    except Exception as error:  # whatever it is, the user sees a line, not a traceback
        if "--debug" in sys.argv:
            traceback.print_exc()
        if isinstance(error, SubjectloomError):
            line = f"error: {error}"
        elif isinstance(error, OSError) and error.filename:
            line = f"error: {error.filename}: {error.strerror}"
        else:
            line = f"unexpected {type(error).__name__} (`subjectloom --debug ...` shows where): {error}"
        err.print(" ".join(line.split()), style="red", soft_wrap=True, markup=False, highlight=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
