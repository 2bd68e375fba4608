"""Export of GLIGEN datasets to the table that the published loader reads.

    DEST/train.tsv           a line for each picture: its number, a tab, JSON
    DEST/train.lineidx       the position of each line in bytes
    DEST/projection_matrix   CLIP's text projection [E, D], saved by torch; the loader opens it in its working folder

The JSON holds data_id, image (the JPEG in base64), file_name, caption, is_det, and annos: each bbox [x, y, w, h] in
pixels, tokens_positive [[start, end], ...] or category_name, and embeddings of text and crop before and after the
projection, float32 in base64 (gligen/GLIGEN, `dataset/tsv_dataset.py`).

The loader decodes a crop's embedding before the projection and does not use it: it is written as zeros. It scales
reprojected crops to 28.7, whatever the CLIP.
"""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.exports.folder import new_folder, read_samples
from schemas.samples.gligen import EMBEDDINGS, BoxField, Record, read_array
from schemas.shards import Sample
from transforms.dataset import read_info
from transforms.models.clip import load_clip
from transforms.models.clip_features import text_projection

LOADER_NORM = 28.7
"""Length to which the loader scales reprojected embeddings."""


@dataclass(frozen=True)
class Exported:
    """Numbers of what an export wrote, and the length of the dataset's own reprojected embeddings."""

    pictures: int
    boxes: int
    norm: float

    def lines(self, destination: Path) -> list[str]:
        """Return the numbers as lines for the terminal; `destination` is the folder."""
        lines = [f"{self.pictures} pictures with {self.boxes} boxes in {destination / 'train.tsv'}"]
        if abs(self.norm - LOADER_NORM) > 0.01:
            lines.append(f"its loader scales reprojected embeddings to {LOADER_NORM}, here they have {self.norm:g}")
        return lines


def export_gligen(output: str, destination: Path) -> Exported:
    """Write the GLIGEN dataset in `output` to the folder `destination`.

    Raises:
        InputError: `output` holds no finished GLIGEN dataset, or `destination` is not empty.
        ModelError: the CLIP that the dataset was built with is missing.
    """
    pictures, boxes, position, norm = 0, 0, 0, 0.0
    projection = text_projection(load_clip(read_info(output).models["clip"].name))
    with new_folder(destination) as folder:
        torch.save(torch.from_numpy(projection), folder / "projection_matrix")
        with (folder / "train.tsv").open("wb") as table, (folder / "train.lineidx").open("w") as places:
            for sample in read_samples(output, "gligen"):
                record = Record.from_sample(sample)
                line = f"{pictures}\t{json.dumps(row_of(pictures, record, sample))}\n".encode("ascii")
                table.write(line)
                places.write(f"{position}\n")
                position += len(line)
                pictures, boxes, norm = pictures + 1, boxes + len(record.boxes), record.norm
    return Exported(pictures, boxes, norm)


def row_of(number: int, record: Record, sample: Sample) -> dict[str, Any]:
    """The JSON of a picture."""
    count = len(record.boxes)
    features = {name: read_array(sample.members[f"{name}.npy"], count) for name in EMBEDDINGS}
    return {
        "data_id": number,
        "image": base64.b64encode(sample.members["jpg"]).decode("ascii"),
        "file_name": f"{record.key}.jpg",
        "caption": record.caption,
        "is_det": record.is_detection,
        "annos": [
            _annotation(box, {name: rows[i] for name, rows in features.items()}) for i, box in enumerate(record.boxes)
        ],
    }


def _annotation(box: BoxField, features: dict[str, NDArray[np.float32]]) -> dict[str, Any]:
    named = {"tokens_positive": box.spans} if box.spans else {"category_name": box.text}
    return {
        "bbox": box.bbox,
        **named,
        "text_embedding_before": _encode(features["text_before"]),
        "text_embedding_after": _encode(features["text_after"]),
        "image_embedding_before": _encode(np.zeros_like(features["image_after"])),
        "image_embedding_after": _encode(features["image_after"]),
    }


def _encode(values: NDArray[np.float32]) -> str:
    return base64.b64encode(np.ascontiguousarray(values, np.float32).tobytes()).decode("ascii")
