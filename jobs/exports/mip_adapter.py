"""Export to the folders that MIP-Adapter's published trainer loads unchanged.

    DEST/images/KEY.png         the picture
    DEST/masks/KEY.png          [H, W] uint8: the entry of final_masks that a pixel belongs to, 0 the background
    DEST/jsons/KEY.json         text, original_size [w, h], final_masks: value, label, logit, box [x1, y1, x2, y2]
    DEST/indexes.json           a list of all keys
    DEST/selected_indexes.pkl   a pickled list of those keys that its loader takes; selected_indexes.json is the same

What its loader does (hqhQAQ/MIP-Adapter, `data/subject_dataset.py`) decides how: it looks for `label`, a single word,
in the caption; an entry without a box is background. Where masks overlap the smaller one is in front, so that a hat
is not lost under its head; the published label maps were drawn in the order of detection.

The loader takes exactly two objects of a picture, and puts another picture drawn at random in the place of one that
its gates refuse: which it sees is then unknown. So the gates are applied here too, what they refuse is counted, and
the selected keys are those that pass. It finds an object's pixels by the value that is most frequent in its box:
where that is another's, or the background's, the reference would show the wrong thing, and the picture is not selected.
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

from jobs.exports.folder import MAX_LABELS, label_map, new_folder, read_samples
from schemas.boxes import from_corners, overlap
from schemas.images import decode_image
from schemas.samples.mip_adapter import ObjectField, Record

SIDE = 512
"""Pixels of the square that the loader makes of a picture."""

SHARES = (0.08, 0.7)
PROPORTIONS = (0.3, 3.0)
MIN_LOGIT = 0.3
VALUES = (2, 5)
MIN_FILL = 0.6
MAX_OVERLAP = 0.8
MIN_PIXELS = 200
"""The loader's gates. A box's share of the picture, its width : height and its logit lie strictly between or above
these. In it the label map has so many values, and the most frequent one fills at least that share; of the smaller of
two boxes at most that share is shared; of the square the box has more than that many pixels."""

Box = tuple[int, int, int, int]
"""[x1, y1, x2, y2] in pixels of the stored image, ends exclusive."""


@dataclass(frozen=True)
class Shown:
    """An object of an exported picture, as `final_masks` has it."""

    value: int
    label: str
    logit: float
    box: Box


@dataclass(frozen=True)
class Exported:
    """The books of an export.

    `dropped` counts objects that were left out, by why; `without_object` pictures that were left out because none
    remained. Of what was `written`, `selected` pictures pass the loader's gates and are shown rightly; `refused`
    counts why others are not, `refused_objects` why single objects are not.
    """

    written: int
    selected: int
    without_object: int
    dropped: dict[str, int]
    refused_objects: dict[str, int]
    refused: dict[str, int]


def export_mip_adapter(output: str, destination: Path) -> Exported:
    """Write the MIP-Adapter dataset in `output` to the folder `destination`.

    Raises:
        InputError: `output` holds no finished MIP-Adapter dataset, or `destination` holds something.
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
            if why := refusal(shown, labels, refused_objects):
                refused[why] += 1
            else:
                selected.append(record.key)
        (folder / "indexes.json").write_text(json.dumps(keys), encoding="ascii")
        (folder / "selected_indexes.json").write_text(json.dumps(selected), encoding="ascii")
        (folder / "selected_indexes.pkl").write_bytes(pickle.dumps(selected, protocol=4))
    books = [{why: n for why, n in sorted(counter.items()) if n} for counter in (dropped, refused_objects, refused)]
    return Exported(len(keys), len(selected), without_object, *books)


def show_objects(record: Record, dropped: Counter[str]) -> tuple[list[Shown], NDArray[np.uint8]]:
    """Return the objects that the format can hold, and their label map, [H, W] uint8.

    Objects that no single word of the caption names, that others cover wholly, or beyond the 255th are left out and
    counted in `dropped`.
    """
    named = [(one, label) for one in record.objects if (label := label_of(one.text, record.caption))]
    dropped["without a word of the caption"] += len(record.objects) - len(named)
    dropped["beyond 255 in a picture"] += max(len(named) - MAX_LABELS, 0)
    named = named[:MAX_LABELS]
    masks = [one.segmentation.to_mask().to_array() for one, _ in named]
    visible = np.unique(label_map(masks))
    # What is wholly covered gives up its number; removing it uncovers nothing, so the others keep their pixels.
    kept = [index for index in range(len(named)) if index + 1 in visible]
    dropped["covered by others"] += len(named) - len(kept)
    shown = [_shown(value, *named[index]) for value, index in enumerate(kept, start=1)]
    return shown, label_map([masks[index] for index in kept])


def label_of(text: str, caption: str) -> str:
    """Return a phrase's last word without punctuation around it, "" where the caption does not hold it."""
    words = text.split()
    word = re.sub(r"^\W+|\W+$", "", words[-1]) if words else ""
    return word if word in caption else ""


def refusal(shown: Sequence[Shown], labels: NDArray[np.uint8], refused: Counter[str]) -> str:
    """Say why the published loader refuses a picture, or shows it wrongly; "" if it does neither.

    Args:
        shown: its objects, at least one.
        labels: its label map, [H, W] uint8.
        refused: counts the objects that the loader refuses, each by the first gate that does.
    """
    taken: list[Shown] = []
    for one in sorted(shown, key=lambda one: -one.logit):
        if why := _box_problem(one, labels) or _overlap_problem(one, taken):
            refused[why] += 1
        else:
            taken.append(one)
    # The loader crops with all boxes in mind, refused ones too, and only then looks at what the crop left.
    window = crop_window([one.box for one in shown], labels.shape)
    whole = [one for one in taken if _survives(one.box, window)]
    refused["cut by the loader's square"] += len(taken) - len(whole)
    pair = whole[:2]
    if len(pair) < 2:
        return "with fewer than two objects that pass"
    if pair[0].label == pair[1].label:
        return "with two objects of one name"
    if any(_most_frequent(one.box, labels)[0] != one.value for one in pair):
        return "whose reference would show something else"
    return ""


def crop_window(boxes: Sequence[Box], size: tuple[int, ...]) -> Box:
    """Return a square that the loader may cut out of a picture of `size` (height, width).

    Its side is the shorter one of the picture. It holds all boxes where that is possible; the loader draws one of
    these at random, which moves what is in it and changes nothing else. Else it lies in the middle.
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


def _box_problem(one: Shown, labels: NDArray[np.uint8]) -> str:
    x1, y1, x2, y2 = one.box
    area = (x2 - x1) * (y2 - y1)
    if not SHARES[0] < area / labels.size < SHARES[1]:
        return "too small or too large"
    if not PROPORTIONS[0] < (x2 - x1) / (y2 - y1) < PROPORTIONS[1]:
        return "too long"
    if one.logit <= MIN_LOGIT:
        return "too unsure"
    if not VALUES[0] <= len(np.unique(labels[y1:y2, x1:x2])) <= VALUES[1]:
        return "alone in their boxes, or among too many"
    value, count = _most_frequent(one.box, labels)
    if count < MIN_FILL * area:
        return "without anything that fills their boxes"
    return "spread beyond their boxes" if int((labels == value).sum()) > area else ""


def _overlap_problem(one: Shown, taken: Sequence[Shown]) -> str:
    box = from_corners(one.box)
    return "inside another's box" if any(overlap(box, from_corners(o.box)) > MAX_OVERLAP for o in taken) else ""


def _survives(box: Box, window: Box) -> bool:
    """Whether a box is still large and compact enough in the square that the loader makes of `window`."""
    left = _shared(box, window)
    pixels = _area(left) * (SIDE / (window[2] - window[0])) ** 2
    return pixels > MIN_PIXELS and PROPORTIONS[0] < (left[3] - left[1]) / (left[2] - left[0]) < PROPORTIONS[1]


def _shared(a: Box, b: Box) -> Box:
    x1, y1, x2, y2 = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return x1, y1, max(x1, x2), max(y1, y2)


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _most_frequent(box: Box, labels: NDArray[np.uint8]) -> tuple[int, int]:
    """Return the label map's most frequent value in a box, the lowest of several, and how often it stands there."""
    counts = np.bincount(labels[box[1] : box[3], box[0] : box[2]].ravel())
    return int(counts.argmax()), int(counts.max())


def _shown(value: int, one: ObjectField, label: str) -> Shown:
    x, y, w, h = one.bbox
    return Shown(value, label, one.score, (x, y, x + w, y + h))


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
    # ASCII with escapes: read the same in any machine's encoding.
    (folder / "jsons" / f"{record.key}.json").write_text(json.dumps(description), encoding="ascii")
