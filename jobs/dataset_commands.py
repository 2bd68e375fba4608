"""The commands on finished datasets: their options, and what they print. Their imports wait until they run."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.console import out, print_lines
from schemas.errors import SubjectloomError

if TYPE_CHECKING:
    from jobs.datasets.choices import Choice

Data = Annotated[str, typer.Argument(metavar="OUT", help="Folder of a finished dataset; it is not changed.")]
New = Annotated[str, typer.Argument(metavar="DEST", help="Folder of the new dataset.")]
Seed = Annotated[int, typer.Option(help="Another seed chooses others.", min=0)]


def filter_dataset(
    data: Data,
    destination: New,
    where: Annotated[
        str | None,
        typer.Option(help="Keep samples for which this is true: an expression over the columns of index.parquet."),
    ] = None,
    exclude: Annotated[
        Path | None, typer.Option(help="Leave out the samples whose keys are in this file, one a line.")
    ] = None,
) -> None:
    """Keep samples by their scores, classes, licences, or without a list of keys."""
    from jobs.datasets.choices import filter_by, read_keys, unknown_keys

    choice = filter_by(data, where, exclude)
    if exclude is not None and (unknown := unknown_keys(data, read_keys(exclude))):
        print_lines(f"{unknown} keys of {exclude} are not in {data}")
    make([data], destination, choice)


def merge(
    data: Annotated[list[str], typer.Argument(metavar="OUT OUT...", help="Folders of datasets of one recipe.")],
    destination: Annotated[str, typer.Option("--output", help="Folder of the new dataset.")],
) -> None:
    """Join datasets of a recipe. Of several samples with one key, that of the first dataset stays.

    Example:
    subjectloom merge photos-2025 photos-2026 --output photos
    """
    from jobs.datasets.choices import merge_of

    make(data, destination, merge_of(data))


def split(
    data: Data,
    destination: Annotated[str, typer.Argument(metavar="DEST", help="Folder for the parts, a dataset each.")],
    part: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SHARE", help="By default train=0.9, validation=0.05 and test=0.05."),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Split a dataset into DEST/train, DEST/validation and DEST/test, by a hash of each picture's address.

    Samples of one picture are in one part, and a picture is in the same part of every dataset that has it.

    Example:
    subjectloom split OUT DEST --part train=0.8 --part test=0.2
    """
    from jobs.datasets.choices import parse_shares, split_of
    from transforms.files import join, list_files

    shares = parse_shares(part or ["train=0.9", "validation=0.05", "test=0.05"])
    if list_files(destination):
        raise SubjectloomError(f"{destination} holds files already: name a new or an empty folder")
    for name in shares:
        make([data], join(destination, name), split_of(shares, name, seed))


def sample(
    data: Data,
    destination: New,
    count: Annotated[int, typer.Option(help="Samples to keep.", min=1)],
    seed: Seed = 0,
) -> None:
    """Keep some samples at random; with one seed, a larger sample contains a smaller one.

    Example:
    subjectloom sample OUT DEST --count 1000
    """
    from jobs.datasets.choices import sample_of

    make([data], destination, sample_of(data, count, seed))


def stats(
    data: Annotated[str, typer.Argument(metavar="OUT", help="Folder of a finished dataset.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Print the counts of a dataset, its licences, and what the columns of its index hold."""
    from jobs.datasets import stats as numbers

    found = numbers.stats(data)
    if as_json:
        print_lines(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print_lines(*numbers.lines(found))


def push(
    data: Annotated[str, typer.Argument(metavar="OUT", help="Folder of a finished dataset on this machine.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the Hugging Face hub.")],
    private: Annotated[bool, typer.Option("--private", help="Create it as a private one.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the card and the files, and send nothing.")] = False,
) -> None:
    """Publish a dataset on the Hugging Face hub, with a card: recipe, models, licences, rejects, report.

    Log in once with `hf auth login`, or set HF_TOKEN. Captions, pictures and their addresses are published as they are.

    Example:
    subjectloom push OUT me/dogs --private
    """
    from jobs.datasets import hub

    names = hub.files_of(data)
    if dry_run:
        from transforms.dataset import read_info

        print_lines(hub.dataset_card(read_info(data), repository), *(f"file     {name}" for name in names))
        return
    with out.status(f"sending {len(names)} files"):
        address = hub.push(data, repository, private=private)
    print_lines(f"dataset  {address}")


def make(origins: list[str], destination: str, choice: "Choice") -> None:
    """Make a dataset and its report, and print how many samples it has."""
    from jobs.datasets.derive import derive
    from jobs.report.page import write_report

    with out.status(f"writing {destination}"):
        counts = derive(origins, destination, choice).counts
        write_report(destination)
    print_lines(f"dataset  {destination}: {counts.written:,} samples in {counts.shards:,} shards")


COMMANDS: Mapping[str, Callable[..., None]] = {
    "filter": filter_dataset, "merge": merge, "split": split, "sample": sample, "stats": stats, "push": push,
}  # fmt: skip
"""The commands by name."""
