"""Pictures with COCO's panoptic or instance annotations: their masks are the segments, no segmenter runs.

    annotations/panoptic_val2017.json   annotations/panoptic_val2017/*.png   val2017/*.jpg
    annotations/instances_val2017.json  annotations/captions_val2017.json
    annotations/person_keypoints_val2017.json

Pictures and the folder of PNGs may also be beside the JSON. The captions are those in the captions file
of the same name, in the order of their IDs, else the .txt beside the picture. The format: https://cocodataset.org/#format-data.
"""

import json
import posixpath
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from schemas.errors import InputError, RecordError
from schemas.example import Example, Source
from schemas.keys import clean_key
from schemas.rejects import Reason, Reject
from transforms.outages import retry
from transforms.sources.coco_masks import InstancesTruth, PanopticTruth, check_size, hashable, is_set, mismatch
from transforms.sources.files import MAX_PICTURE, MAX_TABLE, MAX_TEXT, File
from transforms.sources.records import Entry, is_empty, refuse, to_example

Json = dict[str, Any]


@dataclass(frozen=True)
class Annotated:
    """A picture with its captions and its annotation. `size` is (height, width) in pixels, as in the JSON."""

    key: str
    uri: str
    license: str
    image: File | None
    size: tuple[int, int]
    caption: tuple[str, ...] | File | None
    truth: PanopticTruth | InstancesTruth

    @property
    def length(self) -> int:
        """Bytes of the picture's file."""
        return self.image.size if self.image else 0

    @property
    def stamp(self) -> str:
        """The picture's stamp, the caption and the annotation."""
        image = self.image.stamp if self.image else ""
        caption = self.caption.stamp if isinstance(self.caption, File) else repr(self.caption)
        return f"{self.key} {self.uri} {self.license} {image} {self.size} {caption} {self.truth.stamp}"

    def load(self) -> Example:
        """Read the files.

        Raises:
            RecordError: MISMATCHED_ANNOTATION, the annotation is not that of the picture.
        """
        image = self.image.read(MAX_PICTURE) if self.image else None
        caption = self.caption.read(MAX_TEXT) if isinstance(self.caption, File) else self.caption
        example = to_example(self.key, image, caption, Source(self.uri, self.license))
        check_size(example, self.size)
        segments, left_out = self.truth.segments(self.size)
        people = self.truth.people if isinstance(self.truth, InstancesTruth) else None
        return replace(example, segments=segments, left_out=left_out, people=people)


def is_annotation(file: File, kind: str) -> bool:
    """Whether a file has the name of an annotation file of `kind`: "panoptic", "instances" or "person_keypoints"."""
    if not file.has_extension((".json",)):
        return False
    name = posixpath.basename(file.name).removeprefix("cityscapes_")
    return name.startswith(kind) and not name.startswith("panoptic_categories")


def list_annotated(files: Sequence[File], annotations: Sequence[File], kind: str) -> list[Entry | Reject]:
    """List the pictures of the JSON files `annotations`, which are of `kind`; see `is_annotation`.

    Args:
        files: all files of the source.
        annotations: those of them that are read as annotations.
        kind: the kind of annotation.

    Returns:
        An entry per picture in a JSON's `images`. A reject per picture whose key an earlier one has, or whose
        annotation is missing or malformed, and per picture that has an annotation and no entry in `images`.

    Raises:
        InputError: a file is not JSON of the kind.
    """
    by_path = {posixpath.normpath(file.path): file for file in files}
    entries: list[Entry | Reject] = []
    first: dict[str, File] = {}
    for annotation in annotations:
        for entry in _read_tables(annotation, kind, by_path).entries():
            if entry.key in first:
                detail = f"{first[entry.key].name} has an earlier picture of the same key"
                entries.append(refuse(entry.key, _uri(entry), Reason.DUPLICATE_KEY, detail))
            else:
                first[entry.key] = annotation
                entries.append(entry)
    return entries


@dataclass(frozen=True)
class _Tables:
    """An annotation file with categories, licences, captions and annotations by ID."""

    file: File
    kind: str
    by_path: Mapping[str, File]
    images: list[Json]
    categories: Mapping[int, tuple[str, bool]]
    licenses: Mapping[int, str]
    captions: Mapping[int, Sequence[str]]
    annotations: Mapping[Any, list[Json]]

    def entries(self) -> list["Annotated | Reject"]:
        listed = [self._entry(image) for image in self.images]
        known = {hashable(image.get("id")) for image in self.images}
        for image_id in sorted(set(self.annotations) - known, key=str):
            detail = f"{self.file.name} annotates the picture {image_id}, which is not among its images"
            listed.append(refuse(clean_key(f"image-{image_id}"), self.file.uri, Reason.MISSING_IMAGE, detail))
        return listed

    def _entry(self, image: Json) -> "Annotated | Reject":
        names = self._names(image)
        candidates = (self._find(name, self._picture_folders()) for name in names)
        found = next((candidate for candidate in candidates if candidate), None)
        key = clean_key(posixpath.splitext(names[0])[0])
        uri = str(image.get("coco_url") or image.get("flickr_url") or (found.uri if found else names[0]))
        try:
            return Annotated(
                key=key,
                uri=uri,
                license=self.licenses.get(image.get("license", 0), ""),
                image=found,
                size=(int(image["height"]), int(image["width"])),
                caption=self._caption(hashable(image["id"]), found),
                truth=self._truth(self.annotations.get(hashable(image["id"]), [])),
            )
        except RecordError as error:
            return refuse(key, uri, error.reason, error.detail)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            detail = f"its entry in {self.file.name} is malformed: {type(error).__name__} {error}"
            return refuse(key, uri, Reason.MISMATCHED_ANNOTATION, detail)

    def _truth(self, annotations: list[Json]) -> PanopticTruth | InstancesTruth:
        if self.kind != "panoptic":
            return InstancesTruth.of(annotations, self.categories)
        if len(annotations) != 1:
            raise mismatch(f"{self.file.name} holds {len(annotations)} annotations of this picture instead of one")
        png = self._find(annotations[0]["file_name"], self._png_folders())
        return PanopticTruth.of(png, annotations[0]["segments_info"], self.categories)

    def _names(self, image: Json) -> list[str]:
        """The names that the picture's file may have, relative to one of the folders of pictures.

        The first is that of its entry. Of an absolute path, and of the address in LVIS' entries, which name no file,
        the last parts are the name.
        """
        if not image.get("file_name"):
            path = urlsplit(str(image.get("coco_url") or "")).path
            return [posixpath.basename(path), *_ends(path)] if path.strip("/") else [f"image-{image.get('id')}"]
        name = str(image["file_name"])
        if not self._find(name, self._picture_folders()):
            name = name.replace("\\", "/")  # between folders, as Windows writes them
        names = [name]
        if re.match("([A-Za-z]:)?/", name):
            names += _ends(name)
        if "_gtFine_leftImg8bit" in name:
            picture = name.replace("_gtFine", "")
            split = _name(self.file).removeprefix("cityscapes_panoptic_").removesuffix("_trainId")
            names.append(f"leftImg8bit/{split}/{picture.split('_')[0]}/{picture}")
        return names

    def _caption(self, image_id: int, picture: File | None) -> tuple[str, ...] | File | None:
        if image_id in self.captions:
            return tuple(self.captions[image_id])
        if not picture:
            return None
        stem = posixpath.splitext(picture.path)[0]
        return self._find(f"{stem}.txt", [""]) or self._find(f"{stem}.caption", [""])

    def _find(self, name: str, folders: list[str]) -> File | None:
        paths = (posixpath.normpath(posixpath.join(folder, name)) for folder in folders)
        return next((self.by_path[path] for path in paths if path in self.by_path), None)

    def _picture_folders(self) -> list[str]:
        here = posixpath.dirname(self.file.path)
        up, split = posixpath.dirname(here), _name(self.file).removeprefix(f"{self.kind}_")
        names = ("", split, "images", f"images/{split}")
        return [posixpath.join(folder, name).rstrip("/") for folder in (here, up) for name in names]

    def _png_folders(self) -> list[str]:
        here = posixpath.dirname(self.file.path)
        up, name = posixpath.dirname(here), _name(self.file)
        return [posixpath.join(here, name), posixpath.join(here, "panoptic"), posixpath.join(up, name), here]


def _ends(path: str) -> list[str]:
    """The last parts of a path, from all but its root to the name alone."""
    parts = [part for part in path.split("/") if part and not part.endswith(":")]
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _read_tables(file: File, kind: str, by_path: Mapping[str, File]) -> _Tables:
    content = _read_json(file)
    annotations: dict[Any, list[Json]] = defaultdict(list)
    try:
        for annotation in content["annotations"]:
            if isinstance(annotation, dict):
                annotations[hashable(annotation.get("image_id"))].append(annotation)
            else:
                annotations[None].append({})
        if content["annotations"] and [*annotations] == [None]:
            raise KeyError("image_id")
        categories = content.get("categories") or _beside(file, "panoptic_categories", by_path)
        if not categories:
            raise InputError(f"{file.path} names no categories, and there is no panoptic_categories.json beside it")
        captions: dict[int, list[str]] = defaultdict(list)
        caption_file = _beside(file, "captions" + _name(file).removeprefix(kind), by_path)
        for caption in sorted(caption_file["annotations"], key=lambda c: c["id"]) if caption_file else []:
            if not is_empty(caption["caption"]):
                captions[caption["image_id"]].append(caption["caption"])
        return _Tables(
            file=file,
            kind=kind,
            by_path=by_path,
            images=[i if isinstance(i, dict) else {"id": f"{n}"} for n, i in enumerate(content["images"])],
            categories={c["id"]: (c["name"], is_set(c.get("isthing", 1))) for c in categories},
            licenses={entry["id"]: _license(entry) for entry in content.get("licenses", [])},
            captions=captions,
            annotations=annotations,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file.path} is no COCO {kind} file: {type(error).__name__} {error}") from error


def _read_json(file: File) -> Any:  # noqa: ANN401
    try:
        return json.loads(retry(lambda: file.read(MAX_TABLE)))
    except (OSError, RecordError, ValueError, RecursionError) as error:
        raise InputError(f"{file.path} cannot be read as JSON: {error}") from error


def _beside(file: File, name: str, by_path: Mapping[str, File]) -> Any:  # noqa: ANN401
    """The contents of the JSON file `name` in the folder of `file`; None if there is none."""
    found = by_path.get(posixpath.normpath(posixpath.join(posixpath.dirname(file.path), f"{name}.json")))
    return _read_json(found) if found else None


def _license(entry: Json) -> str:
    """Name and address of a licence: the name alone has no version."""
    name, url = entry.get("name", ""), entry.get("url", "")
    return f"{name} ({url})" if name and url else name or url


def _name(file: File) -> str:
    return posixpath.basename(file.stem)


def _uri(entry: Annotated | Reject) -> str:
    return entry.source if isinstance(entry, Reject) else entry.uri
