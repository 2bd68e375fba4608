"""What the export formats have in common: reading a dataset, writing a folder, lines for the terminal."""

import json
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import InputError
from schemas.keys import KEY_PATTERN
from schemas.shards import Sample, read_tar
from transforms.dataset import read_info, read_table
from transforms.files import join, open_file


def recipe_of(output: str, recipes: Collection[str], what: str) -> str:
    """Return the recipe of a finished dataset, one of `recipes`: those whose samples have `what`.

    Raises:
        InputError: There is no finished dataset in `output`, or it is of another recipe.
    """
    recipe = read_info(output).recipe
    if recipe not in recipes:
        raise InputError(
            f"{output} holds a {recipe} dataset, whose samples have no {what}: this format takes "
            f"{', '.join(sorted(recipes))} datasets"
        )
    return recipe


def read_samples(output: str, *recipes: str) -> Iterator[Sample]:
    """Yield every sample of a dataset of one of `recipes`, in the order of shards and keys.

    Raises:
        InputError: There is no finished dataset in `output`, it is of another recipe, or a sample has no fit key.
    """
    info = read_info(output)
    if info.recipe not in recipes:
        raise InputError(f"{output} holds a {info.recipe} dataset: this format takes {' or '.join(recipes)} datasets")
    for shard in sorted(set(read_table(output, "index.parquet")["shard"].to_pylist())):
        with open_file(join(output, shard)) as stream:
            for _, sample in read_tar(stream):
                check_key(sample, join(output, shard))
                yield sample


def check_key(sample: Sample, path: str) -> None:
    """Check that a sample has one key, and that this is fit for a file name: a dataset may come from elsewhere.

    Raises:
        InputError: it is not; the message names the shard, `path`.
    """
    try:
        key = json.loads(sample.members["json"])["key"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: the sample {sample.key!r} has no JSON with a key") from error
    if key != sample.key or not KEY_PATTERN.fullmatch(key):
        raise InputError(f"{path}: the sample {sample.key!r} has the key {key!r} in its JSON, which no build writes")


@contextmanager
def new_folder(destination: Path) -> Iterator[Path]:
    """Yield a temporary folder to write into; it is renamed to `destination`, or removed if the block raises.

    Raises:
        InputError: `destination` exists and is not an empty folder.
    """
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise InputError(f"{destination} exists already: name a new or an empty folder to export to")
    partial = destination.parent / f".{destination.name}.{uuid.uuid4().hex}.tmp"
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.replace(destination)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def counted(reasons: Mapping[str, int], thing: str) -> str:
    """Return counts by reason as text, "3 subjects covered by others, 1 subject outside ..."; "" if there are none."""
    return ", ".join(f"{count} {thing}{'s' * (count != 1)} {reason}" for reason, count in reasons.items())
