"""Pictures with Open Images' boxes, each with a label and whether it holds one thing or a group.

    train-annotations-bbox.csv    ImageID, LabelName, XMin, XMax, YMin, YMax (shares of the picture), IsGroupOf, ...
    class-descriptions-boxable.csv    /m/0cmf2,Airplane
    train-images-boxable-with-rotation.csv    ImageID, OriginalURL, License, ... (not needed)
    0001eeaf4aed83f9.jpg ...      anywhere in the folder; a .txt or .caption beside one is its caption

The pictures are those that are there, not all that the CSVs list: these name millions, of which users download a part.
A picture without a box is read too. The format: https://storage.googleapis.com/openimages/web/download_v7.html
"""

import posixpath
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.csv import ConvertOptions, ReadOptions, read_csv

from schemas.errors import InputError, RecordError
from schemas.example import Box, Example, Source
from schemas.images import is_turned
from schemas.keys import clean_key
from schemas.rejects import Reason, Reject
from transforms.outages import retry
from transforms.sources.coco_masks import check_left_out, mismatch
from transforms.sources.files import MAX_PICTURE, MAX_TEXT, File
from transforms.sources.folder import is_picture
from transforms.sources.records import Entry, refuse, to_example

OF_BOXES = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax")
EDGES = dict.fromkeys(OF_BOXES[2:], pa.float64())
BOX = {"ImageID": pa.string(), "LabelName": pa.string(), **EDGES, "IsGroupOf": pa.string()}
PICTURE = dict.fromkeys(("ImageID", "OriginalURL", "License"), pa.string())
"""Columns that are read, with types: an ID of digits must not be read as a number."""


@dataclass(frozen=True)
class Frame:
    """A box of the CSV: its edges are shares of the picture's width and height, from the left and from the top."""

    label: str
    left: float
    right: float
    top: float
    bottom: float
    is_single: bool

    @property
    def is_near(self) -> bool:
        """Whether the box lies in the picture, or crosses its edge; an edge that is no number does not."""
        edges = (self.left, self.right, self.top, self.bottom)
        return all(-1 <= edge <= 2 for edge in edges)

    def box(self, width: int, height: int) -> Box:
        """The box in the pixels of a picture of `width` x `height`."""
        x, y = round(self.left * width), round(self.top * height)
        w, h = round(self.right * width) - x, round(self.bottom * height) - y
        return Box(self.label, (x, y, max(w, 1), max(h, 1)), self.is_single)


@dataclass(frozen=True)
class Framed:
    """A picture with its caption, its address, its licence and its boxes."""

    key: str
    image: File
    txt: File | None
    source: Source
    frames: tuple[Frame, ...]

    @property
    def uri(self) -> str:
        """The address of the picture."""
        return self.source.uri

    @property
    def stamp(self) -> str:
        """The files' stamps, the source and the boxes."""
        files = " ".join(file.stamp for file in (self.image, self.txt) if file)
        return f"{files} {self.source!r} {self.frames!r}"

    def load(self) -> Example:
        """Read the files.

        Raises:
            RecordError: MISMATCHED_ANNOTATION, the picture has to be rotated, or there are boxes and none lies in it.
        """
        data = self.image.read(MAX_PICTURE)
        example = to_example(self.key, data, self.txt.read(MAX_TEXT) if self.txt else None, self.source)
        if is_turned(data):
            raise mismatch("its EXIF orientation rotates the picture, and its boxes were drawn without that")
        boxes = [frame.box(example.width, example.height) for frame in self.frames if frame.is_near]
        bad = [f"the box of {frame.label} does not lie in it" for frame in self.frames if not frame.is_near]
        check_left_out(bad, len(boxes))
        return replace(example, boxes=tuple(boxes), left_out=len(bad))


def is_boxes(file: File) -> bool:
    """Whether a file has the name of a CSV of boxes."""
    return _is_csv(file, "annotations-bbox")


def list_framed(files: Sequence[File], annotations: Sequence[File]) -> list[Entry | Reject]:
    """List the pictures among `files`, with the boxes that the CSVs `annotations` hold for them.

    Returns:
        An entry per picture, in the order of their names; a reject for the second picture of one key.

    Raises:
        InputError: a CSV cannot be read or lacks a column, or there is no file with the names of the labels.
    """
    pictures = {posixpath.basename(file.stem): file for file in files if is_picture(file)}
    captions = {file.stem: file for kind in (".caption", ".txt") for file in files if file.has_extension((kind,))}
    names = _read_names(files)
    sources = _read_sources(files, pictures)
    frames: dict[str, list[Frame]] = defaultdict(list)
    for annotation in annotations:
        for row in _read_rows(annotation, pictures, BOX, OF_BOXES):
            edges = row["XMin"], row["XMax"], row["YMin"], row["YMax"]
            label = names.get(row["LabelName"], row["LabelName"])
            frames[row["ImageID"]].append(Frame(label, *edges, row["IsGroupOf"] != "1"))
    listed: list[Entry | Reject] = []
    first: dict[str, File] = {}
    for file in (file for file in files if is_picture(file)):
        name = posixpath.basename(file.stem)
        key = clean_key(name)
        if key in first:
            detail = f"{first[key].name} has the same name: Open Images' boxes are found by it"
            listed.append(refuse(key, file.uri, Reason.DUPLICATE_KEY, detail))
        else:
            first[key] = file
            source = sources.get(name, Source(file.uri))
            listed.append(Framed(key, file, captions.get(file.stem), source, tuple(frames[name])))
    return listed


def _read_names(files: Sequence[File]) -> dict[str, str]:
    """Read the names of the labels ("/m/0cmf2")."""
    found = [file for file in files if _is_csv(file, "class-descriptions")]
    if not found:
        raise InputError(
            "no class-descriptions*.csv among the files: it has the names of the labels, download it beside the boxes"
        )
    plain = ReadOptions(column_names=["LabelName", "DisplayName"])
    tables = (_read_csv(file, {"LabelName": pa.string(), "DisplayName": pa.string()}, plain) for file in found)
    return {row["LabelName"]: row["DisplayName"] for table in tables for row in table.to_pylist()}


def _read_sources(files: Sequence[File], pictures: Mapping[str, File]) -> dict[str, Source]:
    """Read the pictures' addresses and licences, if there is a CSV of pictures."""
    found = [file for file in files if _is_csv(file, "images") and not is_boxes(file)]
    rows = (row for file in found for row in _read_rows(file, pictures, PICTURE, ("ImageID",)))
    return {
        row["ImageID"]: Source(row["OriginalURL"] or pictures[row["ImageID"]].uri, row["License"] or "") for row in rows
    }


def _is_csv(file: File, part: str) -> bool:
    return file.has_extension((".csv",)) and part in posixpath.basename(file.name)


def _read_rows(
    file: File, pictures: Mapping[str, File], columns: Mapping[str, pa.DataType], needed: Sequence[str]
) -> list[dict[str, Any]]:
    """Read the rows of a CSV whose ID is one of `pictures`; the columns `needed` must not have gaps."""
    table = _read_csv(file, columns, ReadOptions())
    missing = [name for name in needed if table[name].null_count]
    if missing:
        raise InputError(f"{file.path} is no CSV of Open Images: it has no, or gaps in, column {', '.join(missing)}")
    known = pc.is_in(table["ImageID"], value_set=pa.array(list(pictures), pa.string()))
    rows: list[dict[str, Any]] = table.filter(known).to_pylist()
    return rows


def _read_csv(file: File, columns: Mapping[str, pa.DataType], how: ReadOptions) -> pa.Table:
    options = ConvertOptions(
        column_types=columns, include_columns=list(columns), include_missing_columns=True, strings_can_be_null=True
    )

    def read() -> pa.Table:
        with file.open() as stream:
            return read_csv(stream, how, convert_options=options)

    try:
        return retry(read)
    except (OSError, RecordError, pa.ArrowException) as error:
        raise InputError(f"{file.path} cannot be read as CSV: {error}") from error
