"""Pictures with Open Images' boxes, each with a label and whether it holds one thing or a group.

    train-annotations-bbox.csv    ImageID, LabelName, XMin, XMax, YMin, YMax (shares of the picture), IsGroupOf, ...
    class-descriptions-boxable.csv    /m/0cmf2,Airplane
    train-images-boxable-with-rotation.csv    ImageID, OriginalURL, License, ... (not needed)
    0001eeaf4aed83f9.jpg ...      anywhere in the folder; a .txt or .caption beside one is its caption

The pictures are those that are there, not all that the CSVs list: these name millions, of which users download a part.
A picture without a box is read too; both are counted (`GAPS`). A row with a gap, or of another length, costs its
box. The format: https://storage.googleapis.com/openimages/web/download_v7.html
"""

import math
import os
import posixpath
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.csv import ConvertOptions, InvalidRow, ParseOptions, ReadOptions, read_csv

from schemas.errors import InputError, RecordError
from schemas.example import Box, Example, Source
from schemas.images import is_turned
from schemas.keys import clean_key
from schemas.rejects import Reason, Reject
from transforms.outages import retry
from transforms.sources.coco_masks import check_left_out, mismatch
from transforms.sources.files import MAX_PICTURE, MAX_TEXT, File
from transforms.sources.folder import find_pictures
from transforms.sources.records import Entry, refuse, to_example

NEEDED = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax")
BOX = (*NEEDED, "IsGroupOf")
PICTURE = ("ImageID", "OriginalURL", "License")
"""Columns that are read, as bytes: an ID of digits must not be read as a number, nor a bad byte end the job."""

GAPS = ("pictures without boxes", "pictures with boxes that are not there", "rows without a picture")


@dataclass(frozen=True)
class Frame:
    """A box of the CSV: its edges are shares of the picture's width and height, from the left and from the top.

    An edge that is missing, or no number, is NaN.
    """

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

    @property
    def problem(self) -> str:
        """What is wrong with a box that is not near."""
        if math.isnan(self.left + self.right + self.top + self.bottom):
            return f"a row of its boxes has a gap or no numbers ({self.label})"
        return f"the box of {self.label} does not lie in it"

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
    def length(self) -> int:
        """Bytes of the picture's file."""
        return self.image.size

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
        bad = [frame.problem for frame in self.frames if not frame.is_near]
        check_left_out(bad, len(boxes))
        return replace(example, boxes=tuple(boxes), left_out=len(bad))


def is_boxes(file: File) -> bool:
    """Whether a file has the name of a CSV of boxes."""
    return _is_csv(file, "annotations-bbox")


def list_framed(files: Sequence[File], annotations: Sequence[File]) -> tuple[list[Entry | Reject], dict[str, int]]:
    """List the pictures among `files`, with the boxes that the CSVs `annotations` hold for them.

    Returns:
        An entry per picture, in the order of their names, and a reject for the second picture of one key; and how many
        pictures and rows have no counterpart, by the names in `GAPS`, but for those that are 0.

    Raises:
        InputError: a CSV cannot be read or lacks a column, or there is no file with the names of the labels.
    """
    found = find_pictures(files)
    pictures = {posixpath.basename(file.stem): file for file in found}
    captions = {file.stem: file for kind in (".caption", ".txt") for file in files if file.has_extension((kind,))}
    sources = _read_sources(files, pictures)
    boxes = _read_boxes(annotations, pictures, _read_names(files))
    listed: list[Entry | Reject] = []
    first: dict[str, File] = {}
    for file in found:
        name = posixpath.basename(file.stem)
        key = clean_key(name)
        if key in first:
            detail = f"{first[key].name} has the same name: Open Images' boxes are found by it"
            listed.append(refuse(key, file.uri, Reason.DUPLICATE_KEY, detail))
        else:
            first[key] = file
            source = sources.get(name, Source(file.uri))
            listed.append(Framed(key, file, captions.get(file.stem), source, tuple(boxes.frames.get(name, ()))))
    counts = (len(pictures.keys() - boxes.frames.keys()), len(boxes.missing), boxes.nameless)
    return listed, {name: count for name, count in zip(GAPS, counts, strict=True) if count}


@dataclass
class _Boxes:
    """The boxes of the pictures that are there, the names of those that are not, and the rows that name none."""

    frames: dict[str, list[Frame]] = field(default_factory=lambda: defaultdict(list))
    missing: set[bytes] = field(default_factory=set)
    nameless: int = 0


def _read_boxes(annotations: Sequence[File], pictures: Mapping[str, File], names: Mapping[str, str]) -> _Boxes:
    boxes = _Boxes()
    for file in annotations:
        table, misshapen = _read_csv(file, BOX, needed=NEEDED)
        boxes.missing.update(pc.unique(table["ImageID"]).to_pylist())
        boxes.nameless += table["ImageID"].null_count
        for row in _rows_of(table, pictures):
            label = row["LabelName"] and names.get(row["LabelName"], row["LabelName"])
            # Without a label it is no box either.
            left, right, top, bottom = (_edge(row[name] if label else "") for name in NEEDED[2:])
            frame = Frame(label or "no label", left, right, top, bottom, row["IsGroupOf"] != "1")
            boxes.frames[row["ImageID"]].append(frame)
        for text in sorted(misshapen):  # threads read them in any order
            of = [name for name in text.split(",") if name in pictures]
            boxes.nameless += not of
            for name in of[:1]:
                boxes.frames[name].append(
                    Frame("of another length", math.nan, math.nan, math.nan, math.nan, is_single=True)
                )
    boxes.missing -= {None, *(os.fsencode(name) for name in pictures)}
    return boxes


def _edge(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _read_names(files: Sequence[File]) -> dict[str, str]:
    """Read the names of the labels ("/m/0cmf2")."""
    found = [file for file in files if _is_csv(file, "class-descriptions")]
    if not found:
        raise InputError(
            "no class-descriptions*.csv among the files: it has the names of the labels, download it beside the boxes"
        )
    columns = ("LabelName", "DisplayName")
    tables = (_read_csv(file, columns, ReadOptions(column_names=columns))[0] for file in found)
    return {row["LabelName"]: row["DisplayName"] for table in tables for row in _decoded(table)}


def _read_sources(files: Sequence[File], pictures: Mapping[str, File]) -> dict[str, Source]:
    """Read the pictures' addresses and licences, if there is a CSV of pictures."""
    found = [file for file in files if _is_csv(file, "images") and not is_boxes(file)]
    tables = (_read_csv(file, PICTURE, needed=PICTURE[:1])[0] for file in found)
    return {
        row["ImageID"]: Source(row["OriginalURL"] or pictures[row["ImageID"]].uri, row["License"])
        for table in tables
        for row in _rows_of(table, pictures)
    }


def _is_csv(file: File, part: str) -> bool:
    return file.has_extension((".csv",)) and part in posixpath.basename(file.name)


def _rows_of(table: pa.Table, pictures: Mapping[str, File]) -> list[dict[str, str]]:
    """The rows of a table whose ID is one of `pictures`."""
    names = pa.array([os.fsencode(name) for name in pictures], pa.binary())
    return _decoded(table.filter(pc.is_in(table["ImageID"], value_set=names)))


def _decoded(table: pa.Table) -> list[dict[str, str]]:
    """The rows as text; a gap is "". An ID is the name of a file, with whatever bytes."""
    return [
        {
            name: os.fsdecode(v or b"") if name == "ImageID" else (v or b"").decode(errors="replace")
            for name, v in row.items()
        }
        for row in table.to_pylist()
    ]


def _read_csv(
    file: File, columns: Sequence[str], how: ReadOptions | None = None, needed: Sequence[str] = ()
) -> tuple[pa.Table, list[str]]:
    """Read columns of a CSV, and the text of the rows that do not have as many values as the first one.

    Raises:
        InputError: it cannot be read, or has nothing in one of the columns `needed`.
    """
    misshapen: list[str] = []

    def leave_out(row: InvalidRow) -> str:
        misshapen.append(row.text or "")
        return "skip"

    options = ConvertOptions(
        column_types=dict.fromkeys(columns, pa.binary()),
        include_columns=columns,
        include_missing_columns=True,
        strings_can_be_null=True,
        check_utf8=False,
    )

    def read() -> pa.Table:
        misshapen.clear()
        with file.open() as stream:
            return read_csv(stream, how, ParseOptions(invalid_row_handler=leave_out), options)

    try:
        table = retry(read)
    except (OSError, RecordError, pa.ArrowException) as error:
        raise InputError(f"{file.path} cannot be read as CSV: {error}") from error
    empty = [name for name in needed if len(table) == table[name].null_count]
    if empty and (len(table) or misshapen):
        raise InputError(f"{file.path} is no CSV of Open Images: it has nothing in column {', '.join(empty)}")
    return table, misshapen
