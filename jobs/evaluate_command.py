"""The command `subjectloom evaluate`: its options, and what it prints. Its imports wait until it runs."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from schemas.errors import ConfigError
from schemas.machine import use_machine


def evaluate(
    context: typer.Context,
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="Folder of a training run.")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Dataset whose samples are drawn; best one not trained on.")
    ] = None,
    subjects: Annotated[
        Path | None, typer.Option(help="In place of --data: a folder with a folder of photographs for each subject.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="With --subjects: DreamBench's prompts_and_classes.txt, or lines with {} for the subject."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="A new folder for a page with the pictures, the figures and the pictures.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="Recipe of the model, where there is no RUN.")] = None,
    model: Annotated[str | None, typer.Option(help="Draw with this folder in place of the run's model/.")] = None,
    preset: Annotated[str | None, typer.Option(help="hub: draw with the published weights, downloaded.")] = None,
    count: Annotated[
        int | None,
        typer.Option(help="Samples that are drawn, the first of the dataset (64), or pictures of each prompt (4)."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noise, together with a sample's key or a number.", min=0)] = 0,
    steps: Annotated[int | None, typer.Option(help="Sampling steps; by default the recipe's.", min=1)] = None,
    guidance: Annotated[float | None, typer.Option(help="Weight of the guidance; by default the recipe's.")] = None,
    batch: Annotated[int, typer.Option(help="Pictures that are drawn at a time.", min=1)] = 8,
    find_with: Annotated[
        str | None,
        typer.Option(help="Models that find subjects and measure: sample or hub; by default what RUN started from."),
    ] = None,
    dino: Annotated[
        str | None,
        typer.Option(help="DINO's checkpoint, a folder or a name on the hub; by default the published with hub."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads; by default the cores.", min=1)] = None,
    device: Annotated[str | None, typer.Option(help="cuda, mps or cpu; by default cuda if there is one.")] = None,
) -> None:
    """Measure how well a model draws the samples of a dataset, or subjects of photographs, between real pictures."""
    from jobs.drawing import DrawRequest, find_model
    from jobs.generate_command import check_folder
    from jobs.settings import read_config
    from training.drawing import Drawing
    from training.names import check_data

    if bool(data) == bool(subjects) or bool(subjects) != bool(prompts):
        raise ConfigError("what is drawn? Give --data DATASET, or --subjects FOLDER with --prompts FILE")
    if data and (count or 2) < 2:
        raise ConfigError("--count 1: intervals need two samples at least")
    options = {"seed": seed, "steps": steps, "guidance": guidance, "batch": batch}
    if subjects:
        options["count"] = 4 if count is None else count
    drawing = read_config(Drawing, None, [], {name: value for name, value in options.items() if value is not None})
    request = DrawRequest((), run=run, recipe=recipe, model=model, preset=preset, drawing=drawing, find_with=find_with)
    find_model(request)
    check_data(data or [])
    if output:
        check_folder(output)
    use_machine(threads, device, 1, small_models=False)
    console = Console(quiet=context.parent is not None and bool(context.parent.params.get("quiet")))
    with console.status("drawing and measuring"):
        from jobs.evaluate import evaluate as evaluate_samples
        from jobs.evaluate import evaluate_subjects

        if subjects and prompts:
            found = evaluate_subjects(request, subjects, prompts, dino, console)
        else:
            found = evaluate_samples(request, data or [], count or 64, dino)
    table = Table("measure", "pictures", "mean", "95 % interval", box=None)
    for score in found.scores:
        table.add_row(score.measure, score.pictures, f"{score.mean:.3f}", f"{score.low:.3f} to {score.high:.3f}")
    console.print(table)
    console.print(f"pictures  {len(found.drawn)}")
    if output:
        from jobs.evaluate_page import write_evaluation

        settings = {
            "recipe": found.recipe, "run": run and str(run), "model": model, "preset": preset,
            "data": data and ", ".join(data), "subjects": subjects and str(subjects),
            "prompts": prompts and str(prompts), "measured by": find_with, **drawing.model_dump(mode="json"),
        }  # fmt: skip
        page = write_evaluation(output, found, settings)
        console.print(f"page      {page}", soft_wrap=True, markup=False, highlight=False)
