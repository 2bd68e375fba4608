"""Export of boxes and masks to SimpleTuner (its grounding).

    DEST/images/KEY.jpg, KEY.txt     picture and caption
    DEST/images/KEY.bbox             [{"label", "bbox": [x1, y1, x2, y2] in [0, 1], "mask": path}, ...]
    DEST/masks/KEY_0.png ...         white where the subject is; not beside the pictures, which it would train on
    DEST/metadata.parquet            filename, caption, width, height, bboxes: the text of KEY.bbox
    DEST/multidatabackend.json       the data of its --data_backend_config; also give --max_grounding_entities

The Parquet file's column holds text: its loader puts the value through `str()` before it parses it. The loader takes a
`.bbox` that it cannot parse for none, without a word; so the export is read again as it reads it
(`simpletuner/helpers/training/grounding/metadata.py`).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jobs.exports.folder import new_folder, read_samples, recipe_of
from jobs.exports.subjects import INSTANCES, Instance, show
from schemas.boxes import to_corners
from schemas.errors import SubjectloomError

ROWS = 10_000
"""Rows of the Parquet file that are in memory at a time."""

_COLUMNS = pa.schema(
    [
        ("filename", pa.string()),
        ("caption", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bboxes", pa.string()),
    ]
)


@dataclass(frozen=True)
class Exported:
    """Numbers of what an export wrote; `most` is the largest number of subjects of a picture."""

    written: int
    subjects: int
    most: int

    def lines(self, destination: Path) -> list[str]:
        """Return the numbers as lines for the terminal; `destination` is the folder."""
        return [
            f"{self.written} pictures with {self.subjects} subjects in {destination}",
            f"train with --max_grounding_entities {self.most}, the most subjects of a picture",
            "checked as the trainer reads it: every file is there, every box and mask fits",
        ]


def export_simpletuner(output: str, destination: Path) -> Exported:
    """Write the dataset in `output` to the folder `destination`.

    Raises:
        InputError: `output` holds no finished dataset with subjects, or `destination` is not empty.
        SubjectloomError: The check found faults; each is a line of the message.
    """
    recipe = recipe_of(output, INSTANCES, "boxes")
    counts: list[int] = []
    with new_folder(destination) as folder:
        for name in ("images", "masks"):
            (folder / name).mkdir()
        with pq.ParquetWriter(folder / "metadata.parquet", _COLUMNS) as table:
            rows: list[dict[str, Any]] = []
            for sample in read_samples(output, recipe):
                shown, instances = show(recipe, sample), INSTANCES[recipe](sample)
                size = shown.width, shown.height
                boxes = json.dumps([_box(shown.key, i, thing, size) for i, thing in enumerate(instances)])
                path = folder / "images" / f"{shown.key}.jpg"
                path.write_bytes(shown.image)
                path.with_suffix(".txt").write_text(shown.caption, encoding="utf-8")
                path.with_suffix(".bbox").write_text(boxes, encoding="utf-8")
                for i, thing in enumerate(instances):
                    Image.fromarray(thing.mask * np.uint8(255)).save(folder / "masks" / f"{shown.key}_{i}.png")
                counts.append(len(instances))
                rows.append(
                    {
                        "filename": path.name,
                        "caption": shown.caption,
                        "width": size[0],
                        "height": size[1],
                        "bboxes": boxes,
                    }
                )
                if len(rows) == ROWS:
                    table.write_table(pa.Table.from_pylist(rows, schema=_COLUMNS))
                    rows = []
            table.write_table(pa.Table.from_pylist(rows, schema=_COLUMNS))
        config = json.dumps(_config(destination.absolute()), indent=2)
        (folder / "multidatabackend.json").write_text(config + "\n", encoding="ascii")
    faults = list(find_faults(destination, len(counts)))
    if faults:
        raise SubjectloomError(f"{len(faults)} faults in {destination}:\n" + "\n".join(faults))
    return Exported(len(counts), sum(counts), max(counts, default=0))


def _box(key: str, index: int, thing: Instance, size: tuple[int, int]) -> dict[str, Any]:
    left, top, right, bottom = to_corners(thing.bbox)
    width, height = size
    bbox = [left / width, top / height, right / width, bottom / height]
    return {"label": thing.text, "bbox": bbox, "mask": f"../masks/{key}_{index}.png"}


def _config(root: Path) -> list[dict[str, Any]]:
    """Return the two data backends that a training needs: the pictures, and a place for embeddings of texts."""
    return [
        {
            "id": root.name,
            "type": "local",
            "dataset_type": "image",
            "instance_data_dir": str(root / "images"),
            "cache_dir_vae": str(root / "cache_vae"),
            "caption_strategy": "parquet",
            "metadata_backend": "parquet",
            "parquet": {
                "path": str(root / "metadata.parquet"),
                "filename_column": "filename",
                "identifier_includes_extension": True,
                "caption_column": "caption",
                "width_column": "width",
                "height_column": "height",
                "bbox_column": "bboxes",
            },
            "grounding": {"enabled": True},
            "resolution": 1.0,
            "resolution_type": "area",
            "crop": False,
        },
        {
            "id": "text-embeds",
            "type": "local",
            "dataset_type": "text_embeds",
            "default": True,
            "cache_dir": str(root / "cache_text"),
        },
    ]


def find_faults(folder: Path, expected: int) -> Iterator[str]:
    """Yield what the loader would miss in the folder of an export with `expected` pictures, a line for each fault."""
    rows = {row["filename"]: row for row in pq.read_table(folder / "metadata.parquet").to_pylist()}
    pictures = sorted((folder / "images").glob("*.jpg"))
    if not len(pictures) == len(rows) == expected:
        yield f"{folder}: {len(pictures)} pictures, {len(rows)} rows of metadata.parquet, {expected} were written"
    for path in pictures:
        yield from (f"images/{path.name}: {problem}" for problem in _problems(path, rows.get(path.name)))


def _problems(path: Path, row: dict[str, Any] | None) -> Iterator[str]:
    boxes = path.with_suffix(".bbox")
    text = boxes.read_text("utf-8") if boxes.is_file() else ""
    if row is None:
        yield "has no row in metadata.parquet"
    elif row["bboxes"] != text:
        yield f"{boxes.name} and its row of metadata.parquet differ"
    if not path.with_suffix(".txt").is_file() or not path.with_suffix(".txt").read_text("utf-8").strip():
        yield "has no caption"
    with Image.open(path) as picture:
        size = picture.size
    try:
        found = json.loads(text)
        corners = [(*map(float, thing["bbox"]),) for thing in found]
        masks = [boxes.parent / thing["mask"] for thing in found]
    except (ValueError, TypeError, KeyError):
        yield f"{boxes.name} is no list of boxes with masks"
        return
    for x1, y1, x2, y2 in corners:
        if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
            yield f"{boxes.name}: the box {[x1, y1, x2, y2]} is empty or reaches beyond the picture"
    for mask in masks:
        yield from _mask_problems(mask, size)


def _mask_problems(path: Path, size: tuple[int, int]) -> Iterator[str]:
    if not path.is_file():
        yield f"masks/{path.name} is not there"
        return
    with Image.open(path) as mask:
        if mask.size != size:
            yield f"masks/{path.name} is {mask.width} x {mask.height} pixels, the picture {size[0]} x {size[1]}"
