"""The command `subjectloom evaluate`: its options, and what it prints. Its imports wait until it runs."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from schemas.machine import use_machine


def evaluate(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a training run.")],
    data: Annotated[list[str], typer.Option(help="Dataset whose samples are drawn; best one not trained on.")],
    output: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
    model: Annotated[str | None, typer.Option(help="Draw with this folder in place of the run's model/.")] = None,
    count: Annotated[int, typer.Option(help="Samples that are drawn, the first of the dataset.", min=2)] = 64,
    seed: Annotated[int, typer.Option(help="Of the noise, together with a sample's key.", min=0)] = 0,
    steps: Annotated[int | None, typer.Option(help="Sampling steps; by default the recipe's.", min=1)] = None,
    guidance: Annotated[float | None, typer.Option(help="Weight of the guidance; by default the recipe's.")] = None,
    batch: Annotated[int, typer.Option(help="Pictures that are drawn at a time.", min=1)] = 8,
    find_with: Annotated[
        str | None,
        typer.Option(help="Models that measure: sample or hub; by default what RUN started from."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads; by default the cores.", min=1)] = None,
    device: Annotated[str | None, typer.Option(help="cuda, mps or cpu; by default cuda if there is one.")] = None,
) -> None:
    """Measure how well a run's model draws the samples of a dataset, between two ends of real pictures."""
    from jobs.drawing import DrawRequest, find_model
    from jobs.settings import read_config
    from training.drawing import Drawing
    from training.names import check_data

    options = {"seed": seed, "steps": steps, "guidance": guidance, "batch": batch}
    drawing = read_config(Drawing, None, [], {name: value for name, value in options.items() if value is not None})
    request = DrawRequest((), run=run, model=model, drawing=drawing, find_with=find_with)
    find_model(request)
    check_data(data)
    use_machine(threads, device, 1, small_models=False)
    console = Console(quiet=context.parent is not None and bool(context.parent.params.get("quiet")))
    with console.status("drawing and measuring"):
        from jobs.evaluate import evaluate as run_evaluate

        found = run_evaluate(request, data, count)
    table = Table("measure", "pictures", "mean", "95 % interval", box=None)
    for score in found.scores:
        table.add_row(score.measure, score.pictures, f"{score.mean:.3f}", f"{score.low:.3f} to {score.high:.3f}")
    console.print(table)
    console.print(f"samples  {found.samples}")
    if output is not None:
        figures = {"run": str(run), "data": data, "samples": found.samples, "scores": [asdict(s) for s in found.scores]}
        output.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
        console.print(f"figures  {output}", soft_wrap=True, markup=False, highlight=False)
