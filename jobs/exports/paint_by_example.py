"""Export of Paint by Example datasets to the tree that the published loader reads as dataset/open-images/.

    DEST/images/train_D/KEY.jpg   the picture, as stored; D is one of sixteen digits, 0 to f
    DEST/bbox/train_D/KEY.txt     a line for each box: x1 y1 x2 y2 in pixels

A tenth of the pictures, chosen by their keys, is in images/validation/ and bbox/validation/. The loader lists all of
these folders, of which any may be empty (Fantasy-Studio/Paint-by-Example, `ldm/data/open-images.py`).
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from jobs.exports.folder import new_folder, read_samples
from schemas.samples.paint_by_example import Record

HELD_OUT = 10
"""Of so many pictures one is held out."""
PARTS = (*(f"train_{digit:x}" for digit in range(16)), "validation")
"""The folders that the loader lists."""


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
        for kind in ("images", "bbox"):
            for part in PARTS:
                (folder / kind / part).mkdir(parents=True)
        for sample in read_samples(output, "paint-by-example"):
            record = Record.from_sample(sample)
            digest = hashlib.sha256(record.key.encode()).digest()
            is_held_out = digest[0] % HELD_OUT == 0
            part = "validation" if is_held_out else f"train_{digest[1] % 16:x}"
            (folder / "images" / part / f"{record.key}.jpg").write_bytes(sample.members["jpg"])
            lines = [f"{x} {y} {x + w} {y + h}\n" for x, y, w, h in (box.bbox for box in record.boxes)]
            (folder / "bbox" / part / f"{record.key}.txt").write_text("".join(lines), encoding="ascii")
            trained, held_out = trained + (not is_held_out), held_out + is_held_out
            boxes += len(lines)
    return Exported(trained, held_out, boxes)
