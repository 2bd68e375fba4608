"""The commands `subjectloom weights ...`: their options, and what they print. Their imports wait until they run."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.console import print_lines

weights = typer.Typer(help="Models from the checkpoints of a run, and weights of other projects.", no_args_is_help=True)


@weights.command("export")
def export_weights(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a training run, finished or not.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    step: Annotated[int | None, typer.Option(help="Step of the checkpoint; by default the newest one.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="DATA[=WEIGHT]", help="The run's dataset, if it is no longer where the run found it."),
    ] = None,
) -> None:
    """Write the model of a checkpoint, as RUN/model/ holds that of the finished run."""
    from training.names import check_data
    from training.resume import check_export

    check_export(run, output, step)
    check_data(data or [])
    from jobs.weights import export_checkpoint

    print_lines(f"model    {export_checkpoint(run, output, step, data or [])}")


@weights.command("convert")
def convert_weights(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A file or folder of weights.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="A new file or folder.")],
    given: Annotated[
        str,
        typer.Option(
            "--from",
            help="Its format: subjectloom (RUN/model), fastcomposer, ip-adapter, mip-adapter, lavis or diffusers.",
        ),
    ],
    wanted: Annotated[str, typer.Option("--to", help="Another format of the same system.")],
    base: Annotated[
        str | None,
        typer.Option(help="Model for what SOURCE does not hold, as tokenizers; by default the published one."),
    ] = None,
) -> None:
    """Convert weights that other projects released to models of Subjectloom, or back."""
    from jobs.convert import convert

    convert(source, output, given, wanted, base)
    print_lines(f"weights  {output}")
