"""Export of MIP-Adapter datasets to the folders that the published trainer loads unchanged.

    DEST/images/KEY.png         the picture
    DEST/masks/KEY.png          [H, W] uint8: value of the entry of final_masks that a pixel belongs to, 0 background
    DEST/jsons/KEY.json         text, original_size [w, h], final_masks: value, label, logit, box [x1, y1, x2, y2]
    DEST/indexes.json           a list of all keys
    DEST/selected_indexes.pkl   a pickled list of the keys that its loader accepts; selected_indexes.json is the same

The format follows from what its loader does (hqhQAQ/MIP-Adapter, `data/subject_dataset.py`): it looks for `label`, a
single word, in the caption; an entry without a box is background. Where masks overlap, the smaller one is in front, so
that a hat is not lost under the head that wears it; the published label maps were drawn in the order of detection.

The loader uses exactly two objects of a picture. It replaces a picture that its gates refuse by another at random, so
that nobody knows what it trains on. Therefore the gates are applied here, too: what they refuse is counted, and the
selected keys are those that pass. The loader finds the pixels of an object by the most frequent value in its box. Where
that is the value of another object or of the background, the reference would show the wrong thing, and the picture is
not selected either.
"""

import json
import pickle
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.exports.folder import counted, new_folder, read_samples
from schemas.boxes import from_corners, overlap
from schemas.images import decode_image
from schemas.masks import MAX_LABELS, label_map
from schemas.samples.mip_adapter import ObjectField, Record

SIDE = 512
"""Side of the square that the loader resizes a picture to, in pixels."""

SHARES = (0.08, 0.7)
PROPORTIONS = (0.3, 3.0)
MIN_LOGIT = 0.3
VALUES = (2, 5)
MIN_FILL = 0.6
MAX_OVERLAP = 0.8
MIN_PIXELS = 200
"""The loader's gates. An object passes if

- its box covers a share of the picture strictly between `SHARES`,
- its width / height lies strictly between `PROPORTIONS`,
- its logit is above `MIN_LOGIT`,
- the label map has `VALUES` (least, most) different values inside its box,
- the most frequent of them fills at least the share `MIN_FILL` of the box, and has no more pixels than the box,
- it shares at most `MAX_OVERLAP` of the smaller box with a box of higher logit that passed,
- it has more than `MIN_PIXELS` pixels of the square.
"""

Box = tuple[int, int, int, int]
"""[x1, y1, x2, y2] in pixels of the stored image, ends exclusive."""


@dataclass(frozen=True)
class Shown:
    """An object of an exported picture: an entry of `final_masks`."""

    value: int
    label: str
    logit: float
    box: Box


@dataclass(frozen=True)
class Exported:
    """Numbers of what an export wrote and left out.

    Attributes:
        written: Number of pictures.
        selected: Number of these that pass the loader's gates and whose references show the right objects.
        without_object: Number of pictures left out because no object remained.
        dropped: Number of objects left out, by reason.
        refused_objects: Number of objects that the gates refuse, by reason.
        refused: Number of pictures written and not selected, by reason.
    """

    written: int
    selected: int
    without_object: int
    dropped: dict[str, int]
    refused_objects: dict[str, int]
    refused: dict[str, int]

    def lines(self, destination: Path) -> list[str]:
        """Return the numbers as lines for the terminal; `destination` is the folder."""
        dropped = counted(self.dropped, "object") or "no object left out"
        refused = [counted(self.refused_objects, "object"), counted(self.refused, "picture")]
        return [
            f"{self.written} pictures in {destination}, {self.selected} of them in selected_indexes.pkl",
            f"{self.without_object} pictures left without an object; {dropped}",
            "its loader's gates: " + ("; ".join(filter(None, refused)) or "all pass"),
        ]


def export_mip_adapter(output: str, destination: Path) -> Exported:
    """Write the MIP-Adapter dataset in `output` to the folder `destination`.

    Raises:
        InputError: `output` holds no finished MIP-Adapter dataset, or `destination` is not empty.
    """
    dropped: Counter[str] = Counter()
    refused_objects: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    keys: list[str] = []
    selected: list[str] = []
    without_object = 0
    with new_folder(destination) as folder:
        for name in ("images", "masks", "jsons"):
            (folder / name).mkdir()
        for sample in read_samples(output, "mip-adapter"):
            record = Record.from_sample(sample)
            shown, labels = show_objects(record, dropped)
            if not shown:
                without_object += 1
                continue
            _write_picture(folder, record, decode_image(sample.members["jpg"]), shown, labels)
            keys.append(record.key)
            if reason := refusal(shown, labels, refused_objects):
                refused[reason] += 1
            else:
                selected.append(record.key)
        (folder / "indexes.json").write_text(json.dumps(keys), encoding="ascii")
        (folder / "selected_indexes.json").write_text(json.dumps(selected), encoding="ascii")
        (folder / "selected_indexes.pkl").write_bytes(pickle.dumps(selected, protocol=4))
    counters = (dropped, refused_objects, refused)
    by_reason = [{reason: count for reason, count in sorted(counter.items()) if count} for counter in counters]
    return Exported(len(keys), len(selected), without_object, *by_reason)


def show_objects(record: Record, dropped: Counter[str]) -> tuple[list[Shown], NDArray[np.uint8]]:
    """Return the objects that the format can represent, and their label map, [H, W] uint8.

    Objects that no single word of the caption names, that others cover completely, or beyond the 255th are left out and
    counted in `dropped`.
    """
    named = [(thing, label) for thing in record.objects if (label := label_of(thing.text, record.caption))]
    dropped["without a word of the caption"] += len(record.objects) - len(named)
    dropped["beyond 255 in a picture"] += max(len(named) - MAX_LABELS, 0)
    named = named[:MAX_LABELS]
    masks = [thing.segmentation.to_mask().to_array() for thing, _ in named]
    visible = np.unique(label_map(masks))
    # Objects that are completely covered get no value. Removing them uncovers nothing: the others keep their pixels.
    kept = [index for index in range(len(named)) if index + 1 in visible]
    dropped["covered by others"] += len(named) - len(kept)
    shown = [_shown(value, *named[index]) for value, index in enumerate(kept, start=1)]
    return shown, label_map([masks[index] for index in kept])


def label_of(text: str, caption: str) -> str:
    """Return the last word of a phrase without punctuation around it, or "" if the caption does not contain it."""
    words = text.split()
    word = re.sub(r"^\W+|\W+$", "", words[-1]) if words else ""
    return word if word in caption else ""


def refusal(shown: Sequence[Shown], labels: NDArray[np.uint8], refused: Counter[str]) -> str:
    """Return why the published loader refuses a picture or shows wrong references; "" if it does neither.

    Args:
        shown: The objects of the picture, at least one.
        labels: Its label map, [H, W] uint8.
        refused: Counts the objects that the loader refuses, each under the first gate that refuses it.
    """
    passed: list[Shown] = []
    for thing in sorted(shown, key=lambda thing: -thing.logit):
        if reason := _box_problem(thing, labels) or _overlap_problem(thing, passed):
            refused[reason] += 1
        else:
            passed.append(thing)
    # The loader chooses its crop by all boxes, refused ones included, and only then checks what the crop leaves.
    window = crop_window([thing.box for thing in shown], labels.shape)
    whole = [thing for thing in passed if _survives(thing.box, window)]
    refused["cut by the loader's square"] += len(passed) - len(whole)
    pair = whole[:2]
    if len(pair) < 2:
        return "with fewer than two objects that pass"
    if pair[0].label == pair[1].label:
        return "with two objects of one name"
    if any(_most_frequent(thing.box, labels)[0] != thing.value for thing in pair):
        return "whose reference would show something else"
    return ""


def crop_window(boxes: Sequence[Box], size: tuple[int, ...]) -> Box:
    """Return a square that the loader may crop a picture of `size` (height, width) to.

    Its side is the shorter side of the picture. It contains all boxes if that is possible; the loader chooses one of
    these squares at random, which shifts what is in it and changes nothing else. Otherwise it lies in the middle.
    """
    height, width = size
    side = min(height, width)
    edges = np.array(boxes)
    (left, top), (right, bottom) = edges[:, :2].min(axis=0).tolist(), edges[:, 2:].max(axis=0).tolist()
    if max(right - left, bottom - top) <= side:
        x, y = min(left, width - side), min(top, height - side)
    else:
        x, y = (width - side) // 2, (height - side) // 2
    return x, y, x + side, y + side


def _box_problem(thing: Shown, labels: NDArray[np.uint8]) -> str:
    x1, y1, x2, y2 = thing.box
    area = (x2 - x1) * (y2 - y1)
    if not SHARES[0] < area / labels.size < SHARES[1]:
        return "too small or too large"
    if not PROPORTIONS[0] < (x2 - x1) / (y2 - y1) < PROPORTIONS[1]:
        return "too long"
    if thing.logit <= MIN_LOGIT:
        return "too unsure"
    if not VALUES[0] <= len(np.unique(labels[y1:y2, x1:x2])) <= VALUES[1]:
        return "alone in their boxes, or among too many"
    value, count = _most_frequent(thing.box, labels)
    if count < MIN_FILL * area:
        return "without anything that fills their boxes"
    return "spread beyond their boxes" if int((labels == value).sum()) > area else ""


def _overlap_problem(thing: Shown, passed: Sequence[Shown]) -> str:
    box = from_corners(thing.box)
    boxes = (from_corners(other.box) for other in passed)
    return "inside another's box" if any(overlap(box, other) > MAX_OVERLAP for other in boxes) else ""


def _survives(box: Box, window: Box) -> bool:
    """Whether the part of a box inside `window` is large and compact enough once the loader resized the window."""
    left = _shared(box, window)
    pixels = _area(left) * (SIDE / (window[2] - window[0])) ** 2
    return pixels > MIN_PIXELS and PROPORTIONS[0] < (left[3] - left[1]) / (left[2] - left[0]) < PROPORTIONS[1]


def _shared(a: Box, b: Box) -> Box:
    x1, y1, x2, y2 = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return x1, y1, max(x1, x2), max(y1, y2)


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _most_frequent(box: Box, labels: NDArray[np.uint8]) -> tuple[int, int]:
    """Return the most frequent value of the label map in a box (of several, the lowest), and its number of pixels."""
    counts = np.bincount(labels[box[1] : box[3], box[0] : box[2]].ravel())
    return int(counts.argmax()), int(counts.max())


def _shown(value: int, thing: ObjectField, label: str) -> Shown:
    x, y, w, h = thing.bbox
    return Shown(value, label, thing.score, (x, y, x + w, y + h))


def _write_picture(
    folder: Path, record: Record, pixels: NDArray[np.uint8], shown: Sequence[Shown], labels: NDArray[np.uint8]
) -> None:
    entries = [{"value": s.value, "label": s.label, "logit": s.logit, "box": list(s.box)} for s in shown]
    description = {
        "text": record.caption,
        "original_size": [record.width, record.height],
        "final_masks": [{"value": 0, "label": "background"}, *entries],
    }
    Image.fromarray(pixels).save(folder / "images" / f"{record.key}.png")
    Image.fromarray(labels).save(folder / "masks" / f"{record.key}.png")
    # ASCII with escapes reads the same in every encoding that a machine may have.
    (folder / "jsons" / f"{record.key}.json").write_text(json.dumps(description), encoding="ascii")
