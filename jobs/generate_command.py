"""The command `subjectloom generate`: its options, and what it prints. Its imports wait until it runs."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jobs.stop import stoppable
from schemas.errors import InputError
from schemas.machine import use_machine


def generate(
    context: typer.Context,
    output: Annotated[Path, typer.Option(help="A new folder for the pictures.")],
    prompt: Annotated[list[str] | None, typer.Option(help="What to draw; may be given several times.")] = None,
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="Folder of a training run.")] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PHRASE=PHOTO[:MASK][,...]",
            help="A subject: the words for it in the prompt, and a photograph of it; several are averaged. A mask is "
            "white where the subject is; without one, it is found as in a build. Several subjects: several times.",
        ),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PHRASE=L,T,R,B",
            help="captioned, gligen: draw words of the prompt in a box: left,top,right,bottom as shares of its sides.",
        ),
    ] = None,
    layouts: Annotated[
        Path | None, typer.Option(help="YAML or JSON Lines file of prompts and boxes, in place of --prompt and --box.")
    ] = None,
    placing: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=VALUE", help="captioned: how boxes are obeyed, as way=forward (docs/layouts.md)."),
    ] = None,
    show_boxes: Annotated[bool, typer.Option("--show-boxes", help="Draw the boxes into the pictures.")] = False,
    map_: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="NAME=FILE[:WEIGHT]", help="A condition map, as canny=edges.png; several times."),
    ] = None,
    map_from: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PHOTO[:WEIGHT]", help="A condition map that is taken from a photograph."),
    ] = None,
    count: Annotated[int, typer.Option(help="Pictures of each prompt.", min=1)] = 4,
    seed: Annotated[int, typer.Option(help="Picture N is a function of model, settings, seed and N.", min=0)] = 0,
    steps: Annotated[int | None, typer.Option(help="Sampling steps; by default the recipe's.", min=1)] = None,
    guidance: Annotated[float | None, typer.Option(help="Weight of the guidance; by default the recipe's.")] = None,
    negative: Annotated[str | None, typer.Option(help="Text that guidance leads away from.")] = None,
    scheduler: Annotated[str, typer.Option(help="How noise becomes a picture: ddim, euler or dpm++.")] = "ddim",
    size: Annotated[int | None, typer.Option(help="Side of the pictures, in pixels; by default the run's.")] = None,
    batch: Annotated[int, typer.Option(help="Pictures that are drawn at a time.", min=1)] = 4,
    precision: Annotated[str, typer.Option(help="Mixed precision: no, bf16 or, on a GPU, fp16.")] = "no",
    subject_share: Annotated[
        float | None,
        typer.Option(help="fastcomposer: share of the steps, the last ones, that use the subjects; by default 0.7."),
    ] = None,
    grounded_share: Annotated[
        float | None,
        typer.Option(help="gligen: share of the steps, the first ones, that use the boxes; by default 0.3."),
    ] = None,
    scale: Annotated[float | None, typer.Option(help="mip-adapter: weight of the references; by default 0.75.")] = None,
    merge: Annotated[
        str | None, typer.Option(help="mip-adapter: how references are merged: code, paper or uniform.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="Recipe of the model, where there is no RUN.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Draw with this folder: a run's model/, or one in the published layout.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="hub: draw with the published weights, downloaded.")] = None,
    find_with: Annotated[
        str | None,
        typer.Option(help="Models that find subjects in photographs: sample or hub; by default what RUN started from."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads; by default the cores.", min=1)] = None,
    device: Annotated[str | None, typer.Option(help="cuda, mps or cpu; by default cuda if there is one.")] = None,
) -> None:
    """Draw a prompt with the subjects of your photographs, by the model of a training run."""
    from jobs.drawing import DrawRequest, Reference, check_files, check_references, find_model
    from jobs.layouts import layouts_of
    from jobs.map_files import MapFile, check_maps
    from jobs.settings import read_config
    from training.drawing import Drawing, Placing

    check_folder(output)
    prompts, placed = layouts_of(prompt or [], box or [], layouts)
    options = {
        "count": count, "seed": seed, "batch": batch, "size": size, "steps": steps, "guidance": guidance,
        "negative_prompt": negative, "scheduler": scheduler, "precision": precision,
    }  # fmt: skip
    own = {"subject_share": subject_share, "grounded_share": grounded_share, "scale": scale, "merge": merge}
    request = DrawRequest(
        prompts=prompts,
        references=[Reference.parse(text) for text in reference or []],
        run=run,
        recipe=recipe,
        model=model,
        preset=preset,
        drawing=read_config(Drawing, None, [], {name: value for name, value in options.items() if value is not None}),
        fields={name: value for name, value in own.items() if value is not None},
        find_with=find_with,
        layouts=placed,
        placing=read_config(Placing, None, placing or []),
        maps=[
            *(MapFile.parse(text, taken=False) for text in map_ or []),
            *(MapFile.parse(text, taken=True) for text in map_from or []),
        ],
    )
    start = find_model(request)
    check_references(start.recipe, request)
    check_maps(start.recipe, start.config, request.maps)
    check_files(request.references)
    use_machine(threads, device, 1, small_models=False)
    console = Console(quiet=context.parent is not None and bool(context.parent.params.get("quiet")))
    with console.status("starting"):  # importing torch and Beam takes seconds
        from jobs.generate import generate as run_generate
        from jobs.pictures import write_pictures

    with stoppable(lambda: f"the pictures drawn so far are in {output}"):
        for path in write_pictures(output, run_generate(request, console), len(prompts), show_boxes=show_boxes):
            console.print(f"picture  {path}", soft_wrap=True, markup=False, highlight=False)
    console.print(f"sheet    {output / 'sheet.png'}", soft_wrap=True, markup=False, highlight=False)


def check_folder(output: Path) -> None:
    """Refuse a folder that holds files.

    Raises:
        InputError: it does.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} exists already: name a new or an empty folder")
