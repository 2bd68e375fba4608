"""Accuracy of the sample SAM, and of the objects that `subjectloom build mip-adapter` grounds with it.

    python -m benchmarks.grounding [--count 300] [--built 60] [--write]

Masks of true boxes are measured on `count` scenes that no model was trained on. Automatic masks, which take seconds per
scene, and the dataset use the first `built` of them. A mask belongs to an object if their IoU is at least 0.5.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from segment_anything.modeling import Sam

from benchmarks.accuracy import SEED, Truth, read_truths
from benchmarks.tables import Row, Write, report
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
"""Wide bounds: the scenes' objects are small and slender."""

Picture = tuple[NDArray[np.uint8], Sequence[NDArray[np.bool_]]]
"""Picture, [H, W, 3] uint8, and the true masks of its objects, [H, W] bool."""


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
        (masks,) = segment_boxes(sam, [image], [[Mask.from_array(thing).bbox for thing in objects]])
        found += [intersection_over_union(mask.to_array(), thing) for mask, thing in zip(masks, objects, strict=True)]
    return found


def written_right(output: Path, truths: dict[str, Truth]) -> tuple[int, int]:
    """Count the objects of a dataset that are what their phrase names, and all objects."""
    right = written = 0
    for sample in read_samples(str(output), "mip-adapter"):
        record = json.loads(sample.members["json"])
        for thing in record["objects"]:
            mask = Mask.from_json(thing["segmentation"]).to_array()
            span = thing["start"], thing["end"]
            named = [o for o in truths[record["key"]]["objects"] if (o["start"], o["end"]) == span]
            written += 1
            right += any(
                intersection_over_union(mask, Mask.from_json(o["segmentation"]).to_array()) >= 0.5 for o in named
            )
    return right, written


def measure(count: int, built: int) -> Iterator[Row]:
    """Measure masks of true boxes on `count` scenes, the rest on the first `built` of them."""
    models = resolve("sample", {})
    sam = load_sam(models.sam)
    with tempfile.TemporaryDirectory() as folder:
        scenes, output = Path(folder) / "scenes", Path(folder) / "dataset"
        list(write_scenes(scenes, count, SEED))
        truths = read_truths(scenes)
        pictures = read_pictures(scenes, truths)
        overlaps = by_boxes(sam, pictures)
        note = f"at least 0.85; mean IoU of {len(overlaps)} objects"
        yield Row("SAM's masks of true boxes", f"{np.mean(overlaps):.3f}", note)
        hits = [
            max((intersection_over_union(mask.to_array(), thing) for mask, _ in found), default=0.0) >= 0.5
            for image, objects in islice(pictures, built)
            for found in segment_everything(sam, [image], models.everything)
            for thing in objects
        ]
        yield Row("objects among SAM's automatic masks", f"{np.mean(hits):.3f}", f"recall of {len(hits)} objects")
        request = Request("mip-adapter", str(scenes / "images"), str(output), WIDE, models, limit=built)
        counts = build(request, Console(stderr=True)).counts
        right, written = written_right(output, truths)
        named = sum(o["phrase"] is not None for truth in islice(truths.values(), built) for o in truth["objects"])
        yield Row(
            "written objects that are what their phrase names", f"{right} of {written}", f"{named} named by captions"
        )
        yield Row("samples written", f"{counts.written} of {counts.read}")


def main(
    count: Annotated[int, typer.Option(help="Scenes for masks of true boxes.")] = 300,
    built: Annotated[int, typer.Option(help="Scenes for automatic masks and for the dataset.")] = 60,
    write: Write = False,
) -> None:
    """Measure how accurate masks and objects are."""
    report("grounding", __doc__ or "", list(measure(count, built)), write=write)


if __name__ == "__main__":
    typer.run(main)
