"""Export of datasets with condition maps to the folders that ControlNet, diffusers and T2I-Adapter train from.

controlnet      DEST/prompt.json          a JSON per line, {"source", "target", "prompt"}; its tutorial_dataset.py
                DEST/source/KEY.png       the map
                DEST/target/KEY.jpg       the picture
imagefolder     DEST/train/metadata.jsonl {"file_name", "conditioning_image_file_name", "text"}; Hugging Face datasets
                DEST/train/KEY.jpg, DEST/train/conditioning/KEY.png
t2i-adapter     DEST/list.txt             the path of a picture per line; T2I-Adapter's ldm/data/dataset_depth.py
                DEST/KEY.jpg, DEST/KEY.depth.png, DEST/KEY.txt

The loaders of ControlNet and T2I-Adapter do not resize: pictures and maps are cut to squares of one size. Maps are
shown with the thresholds of `jobs.hints`.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from jobs.exports.folder import new_folder, read_samples
from jobs.hints import hint_of
from schemas.errors import ConfigError, RecordError
from schemas.images import decode_image, encode_jpeg
from schemas.maps import encode_png
from schemas.samples import format_of
from schemas.samples.mapped import Record
from schemas.shards import Sample
from training.maps import controlnet_normal
from transforms.dataset import read_info

RECIPES = ("controlnet", "t2i-adapter", "composer")
SIDE = 512
"""Side of the squares, in pixels: that of Stable Diffusion 1.5."""


@dataclass
class Exported:
    """Numbers of what an export wrote."""

    kind: str
    side: int
    pictures: int = 0
    lost: int = 0

    def lines(self, destination: Path) -> list[str]:
        """Return the numbers as lines for the terminal; `destination` is the folder."""
        size = f"squares of {self.side} pixels" if self.side else "of the size that they have"
        left_out = f"; {self.lost} left out, whose {self.kind} map cannot be read" if self.lost else ""
        return [f"{self.pictures} pictures with {self.kind} maps, {size}, in {destination}{left_out}"]


@dataclass(frozen=True)
class Pair:
    """A picture, the JPEG of a dataset or of its square, its map [H, W, 3] uint8, its key and its caption."""

    key: str
    jpeg: bytes
    hint: NDArray[np.uint8]
    caption: str


def export_controlnet(output: str, destination: Path, map: str = "", size: int = SIDE) -> Exported:  # noqa: A002
    """Write the dataset in `output` as ControlNet's tutorial dataset reads it; normals are turned to its convention.

    Args:
        output: folder of a dataset with maps.
        destination: a new or empty folder.
        map: the kind of map; "": the first one of the dataset.
        size: side of the squares in pixels; 0: pictures keep their size.

    Raises:
        InputError: `output` holds no finished dataset with maps, or `destination` is not empty.
        ConfigError: the dataset has no such map.
    """
    exported = Exported(chosen_map(output, map), size)
    with new_folder(destination) as folder:
        (folder / "source").mkdir()
        (folder / "target").mkdir()
        with (folder / "prompt.json").open("w", encoding="utf-8") as lines:
            for pair in _pairs(output, exported):
                hint = controlnet_normal(pair.hint) if exported.kind == "normal" else pair.hint
                (folder / "source" / f"{pair.key}.png").write_bytes(encode_png(hint))
                (folder / "target" / f"{pair.key}.jpg").write_bytes(pair.jpeg)
                row = {"source": f"source/{pair.key}.png", "target": f"target/{pair.key}.jpg", "prompt": pair.caption}
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    return exported


def export_imagefolder(output: str, destination: Path, map: str = "", size: int = 0) -> Exported:  # noqa: A002
    """Write the dataset in `output` as an image folder of Hugging Face with a conditioning column.

    Arguments and errors are those of `export_controlnet`; diffusers' scripts resize pictures themselves.
    """
    exported = Exported(chosen_map(output, map), size)
    with new_folder(destination) as folder:
        (folder / "train" / "conditioning").mkdir(parents=True)
        with (folder / "train" / "metadata.jsonl").open("w", encoding="utf-8") as lines:
            for pair in _pairs(output, exported):
                (folder / "train" / f"{pair.key}.jpg").write_bytes(pair.jpeg)
                (folder / "train" / "conditioning" / f"{pair.key}.png").write_bytes(encode_png(pair.hint))
                row = {
                    "file_name": f"{pair.key}.jpg",
                    "conditioning_image_file_name": f"conditioning/{pair.key}.png",
                    "text": pair.caption,
                }
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    return exported


def export_t2i_adapter(output: str, destination: Path, map: str = "", size: int = SIDE) -> Exported:  # noqa: A002
    """Write the dataset in `output` as T2I-Adapter's depth loader reads it; its list names files by their full path.

    Arguments and errors are those of `export_controlnet`.
    """
    exported = Exported(chosen_map(output, map), size)
    with new_folder(destination) as folder:
        place = Path(os.path.abspath(destination))  # noqa: PTH100 - links in it stay as they are
        with (folder / "list.txt").open("w", encoding="utf-8") as lines:
            for pair in _pairs(output, exported):
                (folder / f"{pair.key}.jpg").write_bytes(pair.jpeg)
                (folder / f"{pair.key}.{exported.kind}.png").write_bytes(encode_png(pair.hint))
                (folder / f"{pair.key}.txt").write_text(pair.caption + "\n", encoding="utf-8")
                lines.write(f"{place / pair.key}.jpg\n")
    return exported


def chosen_map(output: str, kind: str) -> str:
    """Return the kind of map that is exported of a dataset: `kind`, or the first one that it was built with.

    Raises:
        ConfigError: the dataset has no such map.
        InputError: there is no finished dataset.
    """
    maps = read_info(output).config.get("maps") or ["canny"]
    if kind and kind not in maps:
        raise ConfigError(f"--map {kind}: the dataset has the maps {', '.join(maps)}; build it with --set maps={kind}")
    return kind or str(maps[0])


def _pairs(output: str, exported: Exported) -> Iterator[Pair]:
    """Yield the pairs of a dataset, and count them."""
    kind = format_of(read_info(output).recipe).record
    for sample in read_samples(output, *RECIPES):
        record = kind.from_sample(sample)
        assert isinstance(record, Record)
        try:
            yield _pair(sample, record, exported.kind, exported.side)
        except RecordError:
            exported.lost += 1
        else:
            exported.pictures += 1


def _pair(sample: Sample, record: Record, kind: str, side: int) -> Pair:
    hint = hint_of(kind, sample, record)
    if not side:
        return Pair(record.key, sample.members["jpg"], hint, record.caption)
    resample = Image.Resampling.NEAREST if kind == "segmentation" else Image.Resampling.BILINEAR
    square = ImageOps.fit(Image.fromarray(hint), (side, side), resample)
    picture = ImageOps.fit(Image.fromarray(decode_image(sample.members["jpg"])), (side, side), Image.Resampling.LANCZOS)
    return Pair(record.key, encode_jpeg(np.asarray(picture)), np.asarray(square), record.caption)
