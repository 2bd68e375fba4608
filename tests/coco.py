"""A picture of a lawn with COCO's annotations: a dog, a crowd of persons, grass."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.example import Example
from schemas.masks import Mask
from schemas.rejects import Reason, Reject
from tests.pictures import encode, read_all, scene
from transforms.listing import list_source

JPEG = encode(scene(), "JPEG", quality=95)

CATEGORIES = [
    {"id": 1, "name": "dog", "isthing": 1},
    {"id": 2, "name": "grass", "isthing": 0},
    {"id": 3, "name": "person", "isthing": 1},
]
LICENSES = [{"id": 4, "name": "Attribution License", "url": "http://creativecommons.org/licenses/by/2.0/"}]

# A dog of 6 x 4 pixels with an id that needs all three channels, a crowd, grass below them, nothing elsewhere.
DOG, CROWD, GRASS = 3 + 256 * 2 + 65_536 * 1, 255, 256
IDS = np.zeros((24, 32), np.uint32)
IDS[2:6, 1:7] = DOG
IDS[2:6, 10:20] = CROWD
IDS[20:] = GRASS


def png_of(ids: NDArray[np.uint32]) -> bytes:
    return encode(np.stack([ids % 256, ids // 256 % 256, ids // 65_536], axis=2).astype(np.uint8))


def panoptic() -> dict[str, Any]:
    return {
        "images": [{"id": 7, "file_name": "lawn.jpg", "width": 32, "height": 24, "license": 4}],
        "licenses": LICENSES,
        "categories": CATEGORIES,
        "annotations": [
            {
                "image_id": 7,
                "file_name": "lawn.png",
                "segments_info": [
                    {"id": DOG, "category_id": 1, "area": 24, "iscrowd": 0, "bbox": [1, 2, 6, 4]},
                    {"id": CROWD, "category_id": 3, "area": 40, "iscrowd": 1, "bbox": [10, 2, 10, 4]},
                    {"id": GRASS, "category_id": 2, "area": 128, "iscrowd": 0, "bbox": [0, 20, 32, 4]},
                ],
            }
        ],
    }


def instances() -> dict[str, Any]:
    crowd = np.zeros((24, 32), bool)
    crowd[2:6, 10:20] = True
    return panoptic() | {
        "categories": [{"id": 1, "name": "dog"}, {"id": 3, "name": "person"}],
        "annotations": [
            {"id": 2, "image_id": 7, "category_id": 3, "iscrowd": 1, "segmentation": Mask.from_array(crowd).to_json()},
            {"id": 1, "image_id": 7, "category_id": 1, "iscrowd": 0, "segmentation": [[1, 2, 7, 2, 7, 6, 1, 6]]},
        ],
    }


def write(
    folder: Path, content: dict[str, Any], name: str = "panoptic.json", png: bytes | None = None, image: bytes = JPEG
) -> Path:
    (folder / "panoptic").mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    (folder / "lawn.jpg").write_bytes(image)
    (folder / "lawn.txt").write_text("a dog on a lawn")
    (folder / "panoptic" / "lawn.png").write_bytes(png_of(IDS) if png is None else png)
    return folder


def only(folder: Path, kind: str | None = None) -> Example | Reject:
    (record,) = read_all(list_source(str(folder), kind))
    return record


def example(folder: Path) -> Example:
    record = only(folder)
    assert isinstance(record, Example), record
    return record


def why(folder: Path) -> str:
    record = only(folder)
    assert isinstance(record, Reject)
    assert (record.key, record.stage, record.reason) == ("lawn", "read", Reason.MISMATCHED_ANNOTATION)
    return record.detail


def shown(record: Example) -> list[tuple[str, bool, float, int, tuple[int, int, int, int]]]:
    return [(s.label, s.is_thing, s.score, s.area, s.bbox) for s in record.segments]


THREE = [
    ("dog", True, 1.0, 24, (1, 2, 6, 4)),
    ("person", False, 1.0, 40, (10, 2, 10, 4)),
    ("grass", False, 1.0, 128, (0, 20, 32, 4)),
]
