"""Export of Paint by Example datasets to the tree that the published loader reads.

    DEST/images/train/train_0/KEY.jpg   the picture, as stored
    DEST/bbox/train/KEY.txt             a line for each box: x1 y1 x2 y2 in pixels

A tenth of the pictures, chosen by their keys, is held out: DEST/images/validation/ and DEST/bbox/validation/, which the
loader wants too (Fantasy-Studio/Paint-by-Example, `ldm/data/open_images.py`).
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from jobs.exports.folder import new_folder, read_samples
from schemas.samples.paint_by_example import Record

HELD_OUT = 10
"""Of so many pictures one is held out."""


@dataclass(frozen=True)
class Exported:
    """Numbers of pictures to train on and held out, and of their boxes."""

    trained: int
    held_out: int
    boxes: int

    def lines(self, destination: Path) -> list[str]:
        """Return the numbers as lines for the terminal; `destination` is the folder."""
        return [f"{self.trained} pictures and {self.held_out} held out, with {self.boxes} boxes, in {destination}"]


def export_paint_by_example(output: str, destination: Path) -> Exported:
    """Write the Paint by Example dataset in `output` to the folder `destination`.

    Raises:
        InputError: `output` holds no finished Paint by Example dataset, or `destination` is not empty.
    """
    trained, held_out, boxes = 0, 0, 0
    with new_folder(destination) as folder:
        for place in ("images/train/train_0", "images/validation", "bbox/train", "bbox/validation"):
            (folder / place).mkdir(parents=True)
        for sample in read_samples(output, "paint-by-example"):
            record = Record.from_sample(sample)
            is_held_out = hashlib.sha256(record.key.encode()).digest()[0] % HELD_OUT == 0
            pictures, lists = ("validation", "validation") if is_held_out else ("train/train_0", "train")
            (folder / "images" / pictures / f"{record.key}.jpg").write_bytes(sample.members["jpg"])
            lines = [f"{x} {y} {x + w} {y + h}\n" for x, y, w, h in (box.bbox for box in record.boxes)]
            (folder / "bbox" / lists / f"{record.key}.txt").write_text("".join(lines), encoding="ascii")
            trained, held_out = trained + (not is_held_out), held_out + is_held_out
            boxes += len(lines)
    return Exported(trained, held_out, boxes)
