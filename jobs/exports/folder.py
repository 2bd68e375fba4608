"""Read a dataset sample by sample, for the formats that other programs load, and make the folder that they go into."""

import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from schemas.errors import InputError
from schemas.shards import Sample, read_tar
from transforms.dataset import read_info, read_table
from transforms.files import join, open_file

MAX_LABELS = 255
"""Numbers of a label map that fit into uint8 beside 0."""


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


def label_map(masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.uint8]:
    """Lay masks, each [H, W] bool, over one another, smaller ones in front.

    Returns:
        [H, W] uint8: the number of the mask (from 1) at each pixel, 0 for none; [0, 0] of no masks.
    """
    labels = np.zeros(masks[0].shape if masks else (0, 0), np.uint8)
    areas = [int(mask.sum()) for mask in masks]
    for index in sorted(range(len(masks)), key=lambda i: (-areas[i], i)):
        labels[masks[index]] = index + 1
    return labels
