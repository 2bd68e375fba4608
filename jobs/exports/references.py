"""Export to trainers with reference pictures: targets, references in order, captions, and a check of them.

    DEST/images/KEY.jpg            the target, as the dataset has it
    DEST/references/KEY_0.png ...  its references (or layers), in order
    DEST/...                       what describes them for the trainer (`jobs.exports.trainers`)

For trainers that pair files by their names, a folder for each number of references, N, so that none is missing:

    DEST/N/images/KEY.jpg, KEY.txt
    DEST/N/references_1/KEY.png ... DEST/N/references_N/KEY.png
    DEST/N/masks/KEY.png           white where a subject is

When all is written, the files are read again as the trainer's loader reads them. Each reference that is missing, each
picture that cannot be opened, each count and each name that does not fit is a line.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.exports.folder import counted, new_folder, read_samples, recipe_of
from jobs.exports.subjects import INSTANCES, Reference, Shown, layers_of, references_of, show
from jobs.exports.trainers import TRAINERS, Entry, Loaded, Trainer
from schemas.boxes import area
from schemas.errors import ConfigError, SubjectloomError, choices
from schemas.shards import Sample


@dataclass(frozen=True)
class Exported:
    """Numbers of what an export wrote and left out.

    Attributes:
        written: Number of targets.
        references: Number of their references.
        per_target: Number of targets by their number of references.
        dropped: Number of references left out, by reason.
        without: Number of samples left out because no reference remained.
        layered: Whether the references are layers.
    """

    written: int
    references: int
    per_target: dict[int, int]
    dropped: dict[str, int]
    without: int
    layered: bool = False

    def lines(self, destination: Path) -> list[str]:
        """Return the numbers as lines for the terminal; `destination` is the folder."""
        thing = "layer" if self.layered else "reference"
        spread = ", ".join(f"{targets} with {count}" for count, targets in self.per_target.items())
        dropped = counted(self.dropped, thing) or f"no {thing} left out"
        return [
            f"{self.written} targets and {self.references} {thing}s in {destination}" + (f": {spread}" * bool(spread)),
            f"{self.without} pictures left without a {thing}; {dropped}",
            "checked as the trainer reads it: every file is there, counts and names fit",
        ]


def export_references(output: str, destination: Path, *, trainer: str | None = None) -> Exported:
    """Write the dataset in `output` to the folder `destination` for a trainer, a key of `TRAINERS`.

    Raises:
        ConfigError: There is no such trainer, or none is named.
        InputError: `output` holds no finished dataset with references, or `destination` is not empty.
        SubjectloomError: The check found faults; each is a line of the message.
    """
    if trainer is None:
        raise ConfigError(f"--format references needs --trainer{choices('', TRAINERS)}")
    if trainer not in TRAINERS:
        raise ConfigError(f"there is no --trainer {trainer!r}{choices(trainer, TRAINERS)}")
    target = TRAINERS[trainer]
    recipe = recipe_of(output, INSTANCES, "references")
    dropped: Counter[str] = Counter()
    without = 0
    entries: list[Entry] = []
    with new_folder(destination) as folder:
        for sample in read_samples(output, recipe):
            entry = _write_sample(folder, recipe, sample, target, dropped)
            if entry:
                entries.append(entry)
            else:
                without += 1
        target.write(folder, destination.absolute(), entries)
    faults = list(find_faults(target, destination.absolute(), len(entries)))
    if faults:
        raise SubjectloomError(f"{len(faults)} faults in {destination}:\n" + "\n".join(faults))
    counts = Counter(len(entry.references) for entry in entries)
    reasons = {reason: count for reason, count in sorted(dropped.items()) if count}
    references = sum(count * targets for count, targets in counts.items())
    return Exported(len(entries), references, dict(sorted(counts.items())), reasons, without, target.layered)


def _write_sample(folder: Path, recipe: str, sample: Sample, trainer: Trainer, dropped: Counter[str]) -> Entry | None:
    """Write the pictures of a sample; None if it has no reference that the trainer takes."""
    shown = show(recipe, sample)
    if trainer.layered:
        layers = layers_of(recipe, sample)
        image, paths = _write_pictures(folder, shown, layers, None)
        return Entry(shown.key, shown.caption, image, paths)
    references = _chosen(references_of(recipe, sample), shown.caption, trainer, dropped)
    if not references:
        return None
    mask = None
    if trainer.in_folders:
        mask = np.any([instance.mask for instance in INSTANCES[recipe](sample)], axis=0)
    image, paths = _write_pictures(folder, shown, [r.pixels for r in references], mask)
    boxes = tuple((r.bbox, r.target_bbox) for r in references)
    return Entry(shown.key, shown.caption, image, paths, tuple(r.text for r in references), boxes)


def _chosen(references: Sequence[Reference], caption: str, trainer: Trainer, dropped: Counter[str]) -> list[Reference]:
    """The references that the trainer takes, in their order: of too many, those that are largest in the target."""
    found = []
    for reference in references:
        if reason := trainer.refuses(reference.text, caption):
            dropped[reason] += 1
        else:
            found.append(reference)
    if trainer.most is None or len(found) <= trainer.most:
        return found
    dropped[f"beyond {trainer.most} of a picture"] += len(found) - trainer.most
    largest = sorted(range(len(found)), key=lambda i: (-area(found[i].target_bbox), i))[: trainer.most]
    return [found[i] for i in sorted(largest)]


def _write_pictures(
    folder: Path, shown: Shown, pictures: Sequence[NDArray[np.uint8]], mask: NDArray[np.bool_] | None
) -> tuple[str, tuple[str, ...]]:
    """Write a target and its pictures, with a mask in folders by the number of pictures; return their paths."""
    if mask is None:
        image = f"images/{shown.key}.jpg"
        paths = [f"references/{shown.key}_{i}.png" for i in range(len(pictures))]
    else:
        image = f"{len(pictures)}/images/{shown.key}.jpg"
        paths = [f"{len(pictures)}/references_{i + 1}/{shown.key}.png" for i in range(len(pictures))]
    for path in (image, *paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / image).write_bytes(shown.image)
    for path, pixels in zip(paths, pictures, strict=True):
        Image.fromarray(pixels).save(folder / path)
    if mask is not None:
        (folder / image).with_suffix(".txt").write_text(shown.caption, encoding="utf-8")
        masks = folder / f"{len(pictures)}" / "masks"
        masks.mkdir(exist_ok=True)
        Image.fromarray(mask * np.uint8(255)).save(masks / f"{shown.key}.png")
    return image, tuple(paths)


def find_faults(trainer: Trainer, folder: Path, expected: int) -> Iterator[str]:
    """Yield what a trainer would miss in the folder of an export with `expected` targets, a line for each fault."""
    counts: dict[str, set[int]] = {}
    images: set[Path] = set()
    used: set[Path] = set()
    for loaded in trainer.read(folder):
        yield from _faults_of(loaded, folder)
        if loaded.image in images:
            yield f"{_name(loaded.image, folder)}: stands twice in {loaded.source}"
        images.add(loaded.image)
        used.update(loaded.references)
        counts.setdefault(loaded.source, set()).add(len(loaded.references))
    if len(images) != expected:
        yield f"{folder}: {len(images)} targets are found, {expected} were written"
    for source, found in counts.items():
        if trainer.even and len(found) > 1:
            numbers = " and ".join(map(str, sorted(found)))
            yield f"{source}: samples of {numbers} references, a batch takes one number"
    if trainer.in_folders:
        yield from _strangers(folder, used)


def _faults_of(loaded: Loaded, folder: Path) -> Iterator[str]:
    name = _name(loaded.image, folder)
    if not loaded.caption.strip():
        yield f"{name}: has no caption in {loaded.source}"
    if not loaded.references:
        yield f"{name}: has no reference in {loaded.source}"
    for path in (loaded.image, *loaded.references):
        if problem := _picture_problem(path):
            yield f"{name}: {_name(path, folder)} {problem}"


def _picture_problem(path: Path) -> str:
    if not path.is_file():
        return "is not there"
    try:
        with Image.open(path) as picture:
            picture.verify()
    except (OSError, SyntaxError, ValueError) as error:
        return f"cannot be opened: {error}"
    return ""


def _strangers(folder: Path, used: set[Path]) -> Iterator[str]:
    for path in sorted(folder.glob("*/references_*/*")):
        if path not in used:
            yield f"{_name(path, folder)}: no target has this name"


def _name(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
