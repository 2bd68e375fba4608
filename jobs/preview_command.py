"""The command `subjectloom preview`: its options, and what it prints. Its imports wait until it runs."""

from pathlib import Path
from typing import Annotated

import typer

from jobs import option_help
from jobs.arguments import check_recipe, parse_overrides, recipe_names
from jobs.console import out, print_lines
from jobs.settings import read_config
from jobs.stop import stoppable
from schemas.errors import InputError
from schemas.machine import use_machine


def preview(
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="A picture.")],
    caption: Annotated[str, typer.Argument(metavar="CAPTION", help="Its caption, in quotes.")],
    recipe: Annotated[str, typer.Option(help=option_help.RECIPE, autocompletion=recipe_names)],
    output: Annotated[Path, typer.Option(help="HTML file for the page; it is replaced.")] = Path("preview.html"),
    preset: Annotated[str | None, typer.Option(help="Models: sample or hub; by default sample, for scenes.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(metavar="KIND=PATH_OR_NAME", help="Replace a model of the preset.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with the recipe's fields.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help=option_help.SET)] = None,
    threads: Annotated[int | None, typer.Option(help=option_help.THREADS, min=1)] = None,
    device: Annotated[str | None, typer.Option(help=option_help.DEVICE)] = None,
) -> None:
    """Put one picture through a recipe and show on a page what each step did: phrases, masks, scores, links."""
    from pipelines import RECIPES
    from transforms.models.presets import resolve

    check_recipe(recipe)
    if not picture.is_file():
        raise InputError(f"{picture}: there is no such file")
    if not output.parent.is_dir():
        raise InputError(f"{output} cannot be written: there is no folder {output.parent}")
    use_machine(threads, device, 1, small_models=preset != "hub")
    models = resolve(preset or "sample", parse_overrides(model or []))
    fields = read_config(RECIPES[recipe].config, config, settings or [])
    with out.status("starting"):  # importing torch and Beam takes seconds
        from jobs.preview import preview as run_preview

    with stoppable(lambda: "nothing was written"), out.status(f"running {recipe}"):
        page = run_preview(recipe, picture, caption, fields, models, out, doubts_preset=preset is None)
        output.write_text(page, encoding="utf-8")
    print_lines(f"preview  {output}")
