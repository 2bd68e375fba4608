"""How right the sample SAM is, and the objects that `subjectloom build mip-adapter` grounds with it.

    python -m benchmarks.grounding [--count 300] [--built 60]

On `count` scenes that training never saw: the mean IoU of masks prompted by the objects' true boxes. On the first
`built` of them, each seconds long: which share of the objects is among SAM's automatic masks, and how many of the
objects that the recipe writes are the ones that their phrases name. A mask is an object's at an IoU of one half.
"""

import json
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from segment_anything.modeling import Sam

from benchmarks.accuracy import SEED, Truth, read_truths
from jobs.build import Request, build
from jobs.exports.folder import read_samples
from jobs.sample_models.metrics import intersection_over_union
from jobs.scenes import write_scenes
from pipelines.mip_adapter import MipAdapterConfig
from schemas.images import decode_image
from schemas.masks import Mask
from transforms.models.presets import resolve
from transforms.models.sam import load_sam, segment_boxes, segment_everything

WIDE = MipAdapterConfig(min_area=0.005, min_aspect=0.1, max_aspect=10, fill=0.2, duplicates=None)
"""Gates as wide as the scenes' objects are small and slender."""

Picture = tuple[NDArray[np.uint8], Sequence[NDArray[np.bool_]]]
"""[H, W, 3] uint8, and the true masks [H, W] of its objects."""


def read_pictures(scenes: Path, truths: dict[str, Truth]) -> list[Picture]:
    """Read the pictures of scenes with their objects' masks."""
    return [
        (
            decode_image((scenes / "images" / f"{key}.jpg").read_bytes()),
            [Mask.from_json(thing["segmentation"]).to_array() for thing in truth["objects"]],
        )
        for key, truth in truths.items()
    ]


def by_boxes(sam: Sam, pictures: Sequence[Picture]) -> list[float]:
    """IoU of each object with the mask that its true box prompts."""
    found = []
    for image, objects in pictures:
        masks = segment_boxes(sam, image, [Mask.from_array(thing).bbox for thing in objects])
        found += [intersection_over_union(mask, thing) for mask, thing in zip(masks, objects, strict=True)]
    return found


def written_right(output: Path, truths: dict[str, Truth]) -> tuple[int, int]:
    """Count the objects of a dataset that are what their phrase names, and all objects."""
    right = given = 0
    for sample in read_samples(str(output), "mip-adapter"):
        record = json.loads(sample.members["json"])
        for one in record["objects"]:
            mask = Mask.from_json(one["segmentation"]).to_array()
            named = [
                o for o in truths[record["key"]]["objects"] if (o["start"], o["end"]) == (one["start"], one["end"])
            ]
            given += 1
            right += any(
                intersection_over_union(mask, Mask.from_json(o["segmentation"]).to_array()) >= 0.5 for o in named
            )
    return right, given


def main(
    count: Annotated[int, typer.Option(help="Scenes for boxes.")] = 300,
    built: Annotated[int, typer.Option(help="Scenes for automatic masks, and to build from.")] = 60,
) -> None:
    """Print how right masks and objects are."""
    console = Console(highlight=False)
    models = resolve("sample", {})
    sam = load_sam(models.sam)
    with tempfile.TemporaryDirectory() as folder:
        scenes, output = Path(folder) / "scenes", Path(folder) / "dataset"
        list(write_scenes(scenes, count, SEED))
        truths = read_truths(scenes)
        pictures = read_pictures(scenes, truths)
        overlaps = by_boxes(sam, pictures)
        console.print(f"masks by true boxes    IoU {np.mean(overlaps):.3f}, of {len(overlaps)} objects")
        hits = [
            max((intersection_over_union(mask, thing) for mask, _ in found), default=0.0) >= 0.5
            for image, objects in islice(pictures, built)
            for found in [segment_everything(sam, image, models.everything)]
            for thing in objects
        ]
        console.print(f"automatic masks        recall {np.mean(hits):.3f}, of {len(hits)} objects")
        info = build(Request("mip-adapter", str(scenes / "images"), str(output), WIDE, models, limit=built), console)
        right, given = written_right(output, truths)
        named = sum(o["phrase"] is not None for truth in islice(truths.values(), built) for o in truth["objects"])
        console.print(f"objects written        {right} of {given} right, {named} named by captions")
        console.print(f"samples written        {info.counts.written} of {info.counts.read}")


if __name__ == "__main__":
    typer.run(main)
