"""Read a dataset sample by sample, for the formats that other programs load, and make the folder that they go into."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import InputError
from schemas.shards import Sample, read_tar
from transforms.output import join, open_file, read_info, read_table


def read_samples(output: str, recipe: str) -> Iterator[Sample]:
    """Read every sample of a dataset of `recipe`, shard after shard, one in memory at a time.

    Raises:
        InputError: there is no finished dataset in `output`, or it is another recipe's.
    """
    info = read_info(output)
    if info.recipe != recipe:
        raise InputError(f"{output} holds a {info.recipe} dataset: this format is made from {recipe} datasets")
    for shard in sorted(set(read_table(output, "index.parquet")["shard"].to_pylist())):
        with open_file(join(output, shard)) as stream:
            for _, sample in read_tar(stream):
                yield sample


@contextmanager
def new_folder(destination: Path) -> Iterator[Path]:
    """Give a folder to write into; it becomes `destination` when all went well and vanishes otherwise.

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
