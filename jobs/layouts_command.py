"""The command `subjectloom layouts`. Its imports wait until it runs."""

import json
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from schemas.errors import ConfigError, InputError


def layouts(
    context: typer.Context,
    output: Annotated[Path, typer.Argument(help="A new JSON Lines file, NAME.jsonl.")],
    data: Annotated[str | None, typer.Option(help="Dataset whose phrases and boxes are taken.")] = None,
    relations: Annotated[
        bool, typer.Option("--relations", help="VISOR's prompts of two objects, by its rule: 31,680.")
    ] = False,
    tokenizer: Annotated[
        list[str] | None,
        typer.Option(help="Model, a folder or a name on the hub, for whose text encoder tokens are counted."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N layouts.", min=1)] = None,
) -> None:
    """Write prompts with boxes: of a dataset's pictures, or of relations between two objects."""
    if (data is None) != relations:
        raise ConfigError("of what? Give --data DATASET or --relations")
    if output.suffix != ".jsonl":
        raise ConfigError(f"{output} becomes a JSON Lines file: end its name in .jsonl")
    if output.exists():
        raise InputError(f"{output} exists already: name a new file")
    from jobs.make_layouts import add_tokens, dataset_layouts, load_tokenizers
    from transforms.layouts.relations import relation_layouts

    tokenizers = load_tokenizers(tokenizer or [])
    left_out: list[str] = []
    records = relation_layouts() if data is None else dataset_layouts(data, left_out)
    lines = 0
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", encoding="utf-8") as stream:
        for record in islice(records, limit):
            try:
                known = add_tokens(record, tokenizers)
            except ConfigError as error:  # a long caption
                left_out.append(str(error))
                continue
            stream.write(json.dumps(known.model_dump(mode="json"), ensure_ascii=False) + "\n")
            lines += 1
    console = Console(quiet=context.parent is not None and bool(context.parent.params.get("quiet")))
    console.print(f"layouts  {lines} in {output}", soft_wrap=True, markup=False, highlight=False)
    if left_out:
        console.print(f"left out {len(left_out)}, such as {left_out[0]}", soft_wrap=True, markup=False, highlight=False)
