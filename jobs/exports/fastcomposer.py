"""Export of FastComposer datasets to the folders that the published trainer loads unchanged.

    DEST/image_ids.txt, image_ids_train.txt, image_ids_test.txt   an id per line, nine digits
    DEST/ID[:5]/ID.jpg
    DEST/ID[:5]/ID.json    caption, and per subject: id, bbox [x1, y1, x2, y2], start, end, word, coco_label
    DEST/ID[:5]/ID.npy     [H, W] uint8: the id of the subject that a pixel belongs to, 0 for none

The format follows from what its loader does (mit-han-lab/fastcomposer, `fastcomposer/data.py` and `transforms.py`):

- It slices `image[y1:y2, x1:x2]`: the ends of a box are exclusive.
- It finds a phrase by its `end` alone: no two subjects of a picture may have the same one.
- It stacks the label map with the picture's three 8-bit channels: ids go up to 255.
- It opens JSON in the encoding of the machine: the text is ASCII with escapes.
- Its command line takes labels joined by "_": no label may contain one.

It pads a portrait picture to a square and resizes picture and label map together bilinearly, which mixes ids where
subjects touch. Of a landscape picture it keeps the middle, which can cut off a subject whose reference remains. Square
pictures go through both unchanged: see `square_window`.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.exports.folder import counted, new_folder, read_samples
from schemas.boxes import box_of, to_corners
from schemas.images import decode_image
from schemas.masks import MAX_LABELS, label_map
from schemas.samples.fastcomposer import Record, Subject

HELD_OUT = 1000
"""Number of pictures held out for testing, as in the paper; at most a tenth of the dataset."""

KEPT_SHARE = 0.9
"""A square keeps a subject if at least this share of its pixels is inside."""


@dataclass(frozen=True)
class Exported:
    """Numbers of what an export wrote and left out.

    Attributes:
        written: Number of pictures.
        held_out: Number of these held out for testing.
        without_subject: Number of pictures left out because no subject remained.
        dropped: Number of subjects left out, by reason.
    """

    written: int
    held_out: int
    without_subject: int
    dropped: dict[str, int]

    def lines(self, destination: Path) -> list[str]:
        """Return the numbers as lines for the terminal; `destination` is the folder."""
        dropped = counted(self.dropped, "subject") or "no subject left out"
        return [
            f"{self.written} pictures, {self.held_out} of them held out for testing, in {destination}",
            f"{self.without_subject} pictures left without a subject; {dropped}",
        ]


@dataclass(frozen=True)
class Region:
    """A subject in the exported picture; `mask`, [H, W] bool, is its part that no other subject covers."""

    subject: Subject
    mask: NDArray[np.bool_]

    @property
    def bbox(self) -> list[int]:
        """[x1, y1, x2, y2] in pixels of the exported picture, ends exclusive."""
        return list(to_corners(box_of(self.mask)))


def export_fastcomposer(
    output: str, destination: Path, *, square: bool = False, held_out: int | None = None, seed: int = 0
) -> Exported:
    """Write the FastComposer dataset in `output` to the folder `destination`.

    Args:
        output: Folder of the dataset.
        destination: A folder that does not exist, or is empty.
        square: Whether to crop every picture to the square that keeps most subjects.
        held_out: How many pictures are held out for testing; if None, `HELD_OUT`, at most a tenth.
        seed: Seed of the choice of the pictures held out.

    Raises:
        InputError: `output` holds no finished FastComposer dataset, or `destination` is not empty.
    """
    keys: list[str] = []
    dropped: Counter[str] = Counter()
    without_subject = 0
    with new_folder(destination) as folder:
        for sample in read_samples(output, "fastcomposer"):
            record = Record.from_sample(sample)
            image, regions = _cut(sample.members["jpg"], record, square, dropped)
            regions = visible(regions, dropped)
            if regions:
                _write_picture(folder, len(keys), image, record, regions)
                keys.append(record.key)
            else:
                without_subject += 1
        tests = _hold_out(keys, min(HELD_OUT, len(keys) // 10) if held_out is None else held_out, seed)
        _write_ids(folder / "image_ids.txt", range(len(keys)))
        _write_ids(folder / "image_ids_train.txt", (i for i in range(len(keys)) if i not in tests))
        _write_ids(folder / "image_ids_test.txt", sorted(tests))
    reasons = {reason: count for reason, count in sorted(dropped.items()) if count}
    return Exported(len(keys), len(tests), without_subject, reasons)


def square_window(masks: NDArray[np.bool_]) -> tuple[tuple[slice, slice], NDArray[np.bool_]]:
    """Choose the largest square that keeps most subjects.

    Its side is the short side of the picture. Of all places along the long side it takes the one that keeps most
    subjects (`KEPT_SHARE` of their pixels), then the one with the largest sum of their shares, then the one nearest to
    the middle, then the first.

    Args:
        masks: [N, H, W] bool, none of them empty.

    Returns:
        The window as (rows, columns), and [N] bool: which subjects it keeps.
    """
    height, width = masks.shape[1:]
    side = min(height, width)
    # profile[n, i]: pixels of subject n in column (or row) i of the long side; before[n, i]: in all columns before i.
    profile = masks.sum(axis=1 if width > height else 2)
    before = np.concatenate([np.zeros((len(masks), 1), np.int64), profile.cumsum(axis=1)], axis=1)
    shares = (before[:, side:] - before[:, :-side]) / before[:, -1:]
    kept = shares >= KEPT_SHARE
    places = np.arange(shares.shape[1])
    off_middle = np.abs(2 * places - (shares.shape[1] - 1))
    best = int(np.lexsort((places, off_middle, -shares.sum(axis=0).round(9), -kept.sum(axis=0)))[0])
    cut, whole = slice(best, best + side), slice(0, side)
    return ((whole, cut) if width > height else (cut, whole)), kept[:, best]


def visible(regions: list[Region], dropped: Counter[str]) -> list[Region]:
    """Return the regions that the format can represent, each with the pixels that are its own.

    A pixel has one id: where subjects overlap, the smaller one is in front. Subjects without a pixel of their own, with
    the same `end` as a subject of a higher score, or beyond the 255th are left out and counted in `dropped`.
    """
    best_by_end: dict[int, Region] = {}
    for region in sorted(regions, key=lambda r: -r.subject.score):
        best_by_end.setdefault(region.subject.end, region)
    distinct = [best_by_end[end] for end in sorted(best_by_end)]
    dropped["phrase ends with another's"] += len(regions) - len(distinct)
    dropped["beyond 255 in a picture"] += max(len(distinct) - MAX_LABELS, 0)
    labels = label_map([region.mask for region in distinct[:MAX_LABELS]])
    shown = [
        Region(region.subject, labels == number)
        for number, region in enumerate(distinct[:MAX_LABELS], start=1)
        if (labels == number).any()
    ]
    dropped["covered by others"] += min(len(distinct), MAX_LABELS) - len(shown)
    return shown


def _cut(image: bytes, record: Record, square: bool, dropped: Counter[str]) -> tuple[bytes, list[Region]]:
    masks = np.stack([subject.segmentation.to_mask().to_array() for subject in record.subjects])
    if not square or record.width == record.height:
        return image, [Region(s, mask) for s, mask in zip(record.subjects, masks, strict=True)]
    window, kept = square_window(masks)
    dropped["outside the square"] += int((~kept).sum())
    regions = [Region(s, mask[window]) for s, mask, keep in zip(record.subjects, masks, kept, strict=True) if keep]
    cut = io.BytesIO()
    Image.fromarray(decode_image(image)[window]).save(cut, "JPEG", quality=95, subsampling="4:4:4")
    return cut.getvalue(), regions


def _write_picture(folder: Path, number: int, image: bytes, record: Record, regions: list[Region]) -> None:
    name = f"{number:09d}"
    (folder / name[:5]).mkdir(exist_ok=True)
    path = folder / name[:5] / name
    description = {
        "image_id": number,
        "key": record.key,
        "caption": record.caption,
        "segments": [_segment(index, region) for index, region in enumerate(regions, start=1)],
    }
    path.with_suffix(".jpg").write_bytes(image)
    path.with_suffix(".json").write_text(json.dumps(description), encoding="ascii")
    np.save(path.with_suffix(".npy"), label_map([region.mask for region in regions]), allow_pickle=False)


def _segment(number: int, region: Region) -> dict[str, object]:
    subject = region.subject
    return {
        "id": number,
        "bbox": region.bbox,
        "start": subject.start,
        "end": subject.end,
        "word": subject.text,
        "coco_label": subject.label.replace("_", " "),
    }


def _hold_out(keys: list[str], count: int, seed: int) -> set[int]:
    def rank(number: int) -> bytes:
        return hashlib.blake2b(f"{seed}:{keys[number]}".encode(), digest_size=16).digest()

    return set(sorted(range(len(keys)), key=rank)[:count])


def _write_ids(path: Path, numbers: Iterable[int]) -> None:
    path.write_text("".join(f"{number:09d}\n" for number in numbers), encoding="ascii")
