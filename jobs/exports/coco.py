"""Export of FastComposer datasets to COCO: pictures, `instances.json` with run-length masks, `captions.json`.

DEST/images/KEY.jpg
DEST/annotations/instances.json   images, annotations, categories; an annotation also has text, start, end, score
DEST/annotations/captions.json
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TextIO

from jobs.exports.folder import new_folder, read_samples
from schemas.samples.fastcomposer import Record, Subject


@dataclass(frozen=True)
class Exported:
    """Numbers of what an export wrote."""

    images: int
    annotations: int
    categories: int

    def lines(self, destination: Path) -> list[str]:
        """Return the numbers as lines for the terminal; `destination` is the folder."""
        return [f"{self.images} pictures, {self.annotations} annotations of {self.categories} classes in {destination}"]


@dataclass
class _Spool:
    """The items of a JSON list, appended to a file: all annotations of a dataset do not fit into memory."""

    path: Path
    length: int = 0
    _file: TextIO | None = field(default=None, repr=False)

    def __enter__(self) -> Self:
        self._file = self.path.open("w", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()

    def append(self, value: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.write((",\n" if self.length else "") + json.dumps(value, ensure_ascii=False))
        self.length += 1


def export_coco(output: str, destination: Path) -> Exported:
    """Write the FastComposer dataset in `output` to the folder `destination` as COCO.

    Images, annotations, categories and licences are numbered from 1, in the order in which they occur.

    Raises:
        InputError: `output` holds no finished FastComposer dataset, or `destination` is not empty.
    """
    with new_folder(destination) as folder:
        (folder / "images").mkdir()
        (folder / "annotations").mkdir()
        spools = {name: folder / f"{name}.spool" for name in ("images", "annotations", "captions")}
        categories: dict[str, int] = {}
        licenses: dict[str, int] = {}
        with (
            _Spool(spools["images"]) as images,
            _Spool(spools["annotations"]) as annotations,
            _Spool(spools["captions"]) as captions,
        ):
            for number, sample in enumerate(read_samples(output, "fastcomposer"), start=1):
                record = Record.from_sample(sample)
                (folder / "images" / f"{record.key}.jpg").write_bytes(sample.members["jpg"])
                images.append(_image(number, record, licenses.setdefault(record.source.license, len(licenses) + 1)))
                captions.append({"id": number, "image_id": number, "caption": record.caption})
                for subject in record.subjects:
                    category = categories.setdefault(subject.label, len(categories) + 1)
                    annotations.append(_annotation(annotations.length + 1, number, category, subject))
        head = {"info": {"description": "made by Subjectloom"}, "licenses": _named(licenses)}
        instances = {**head, "categories": _named(categories)}
        _compose(folder / "annotations" / "instances.json", instances, spools["images"], spools["annotations"])
        _compose(folder / "annotations" / "captions.json", head, spools["images"], spools["captions"])
        for path in spools.values():
            path.unlink()
    return Exported(images.length, annotations.length, len(categories))


def _image(number: int, record: Record, license_: int) -> dict[str, Any]:
    return {
        "id": number,
        "file_name": f"{record.key}.jpg",
        "width": record.width,
        "height": record.height,
        "license": license_,
        "source": record.source.uri,
    }


def _annotation(number: int, image: int, category: int, subject: Subject) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": list(subject.bbox),
        "area": subject.area,
        "segmentation": subject.segmentation.model_dump(mode="json"),
        "iscrowd": 0,
        "text": subject.text,
        "start": subject.start,
        "end": subject.end,
        "score": subject.score,
    }


def _named(numbers: Mapping[str, int]) -> list[dict[str, Any]]:
    return [{"id": number, "name": name} for name, number in numbers.items()]


def _compose(path: Path, head: Mapping[str, Any], images: Path, annotations: Path) -> None:
    """Write `head` as JSON with two more fields, the lists `images` and `annotations` from their spools."""
    with path.open("w", encoding="utf-8") as out:
        out.write(json.dumps(head, ensure_ascii=False)[:-1])
        for name, spool in (("images", images), ("annotations", annotations)):
            out.write(f',\n"{name}": [\n')
            with spool.open(encoding="utf-8") as lines:
                shutil.copyfileobj(lines, out)
            out.write("\n]")
        out.write("}\n")
