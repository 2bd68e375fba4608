"""Export to the folders that FastComposer's published trainer loads unchanged.

    DEST/image_ids.txt, image_ids_train.txt, image_ids_test.txt   an id per line, nine digits
    DEST/ID[:5]/ID.jpg
    DEST/ID[:5]/ID.json    caption, and per subject: id, bbox [x1, y1, x2, y2], start, end, word, coco_label
    DEST/ID[:5]/ID.npy     [H, W] uint8: the id of the subject that a pixel belongs to, 0 for none

What its loader does (mit-han-lab/fastcomposer, `fastcomposer/data.py` and `transforms.py`) decides how:
it slices `image[y1:y2, x1:x2]`, so the box's ends are exclusive. It finds a phrase by `end` alone, so no two
subjects of a picture may share one. It lays the label map beside the picture's three bytes, so ids end at 255.
It opens JSON in the machine's encoding, so the text is ASCII with escapes. Labels are named on its command line
joined by "_", so none may hold one.

It pads a portrait picture to a square and scales picture and label map together bilinearly, which mixes ids
where subjects touch; of a landscape picture it keeps the middle, which can cut off a subject whose reference
stays. Square pictures pass both untouched: see `square_window`.
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

from jobs.exports.folder import MAX_LABELS, label_map, new_folder, read_samples
from schemas.boxes import box_of, to_corners
from schemas.images import decode_image
from schemas.samples.fastcomposer import Record, Subject

HELD_OUT = 1000
"""Pictures held out for testing, as in the paper; of a small dataset a tenth."""

KEPT_SHARE = 0.9
"""A square keeps a subject when at least this share of its pixels lies inside."""


@dataclass(frozen=True)
class Exported:
    """The books of an export.

    `dropped` counts subjects by the reason for which they were left out, `without_subject` the pictures left
    out because none remained.
    """

    written: int
    held_out: int
    without_subject: int
    dropped: dict[str, int]


@dataclass(frozen=True)
class Region:
    """A subject in the exported picture: `mask`, [H, W] bool, is what of it no other subject covers."""

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
        output: the dataset.
        destination: a folder that does not exist yet, or is empty.
        square: cut every picture to the square that keeps most subjects.
        held_out: how many pictures to hold out for testing; `HELD_OUT`, or a tenth, if None.
        seed: chooses which.

    Raises:
        InputError: `output` holds no finished FastComposer dataset, or `destination` holds something.
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
    return Exported(len(keys), len(tests), without_subject, {why: n for why, n in sorted(dropped.items()) if n})


def square_window(masks: NDArray[np.bool_]) -> tuple[tuple[slice, slice], NDArray[np.bool_]]:
    """Choose the largest square that keeps most subjects.

    Its side is the picture's short side. Among the places along the long side the one that keeps most subjects
    (`KEPT_SHARE` of their pixels) wins, then the one that holds the largest sum of their shares, then the one
    nearest to the middle, then the first.

    Args:
        masks: [N, H, W] bool, none of them empty.

    Returns:
        The window as (rows, columns), and which subjects it keeps, [N] bool.
    """
    height, width = masks.shape[1:]
    side = min(height, width)
    # [N, long side]: the pixels of each subject before each place along the long side.
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
    """Keep the regions that the format can hold, and of each mask the pixels that it can hold.

    A pixel has one id. Where subjects overlap, the smaller one is in front. Subjects left without a pixel, with
    the `end` of a better matched one, or beyond the 255th, are left out and counted in `dropped`.
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
