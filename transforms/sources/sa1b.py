"""SA-1B's tars: pictures with masks by Segment Anything, without classes.

    sa_000000.tar    sa_1.jpg   sa_1.json {"image": {"width", "height", ...}, "annotations": [{"segmentation", ...}]}
    captions/sa_1.txt   or   captions.parquet (columns key, caption; any file name): captions, if there are any; rows of
                             one key are several captions of a picture

A tar is read as a stream and becomes one shard, as in `webdataset`. SA-1B has no captions of its own: they are the .txt
beside a picture in its tar, else the files beside the first tar; a picture without one has the caption "".
The format: https://github.com/facebookresearch/segment-anything#dataset.
"""

import hashlib
import json
import math
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import InputError, RecordError
from schemas.example import Example, Segment, Source
from schemas.rejects import Reason, Reject
from transforms.files import open_file
from transforms.outages import is_passing
from transforms.sources.coco_masks import check_left_out, check_size, decode_segmentation, mismatch
from transforms.sources.files import MAX_TEXT, File, find_file
from transforms.sources.parquet import is_text, values_of
from transforms.sources.records import Chunk, Unloaded, is_empty, to_example
from transforms.sources.webdataset import Tar, TarSample, picture_of, prefixes, take_tars

LABEL = "object"
"""The class of every segment, as SA-1B has none."""

_PUBLISHED = re.compile(r"sa_\d+\.tar")


@dataclass(frozen=True)
class Captions:
    """The captions beside the tars: `path` is a Parquet file, a folder of .txt files, or "" if there are none.

    `stamp` changes whenever one of them does.
    """

    path: str = ""
    stamp: str = ""

    def of(self, name: str) -> object:
        """The caption of the picture `name` ("sa_1"), or a list of several; None if there is none.

        Raises:
            RecordError: UNREADABLE_FILE, the Parquet file has become corrupt since it was listed; or the text is a link
                or too large.
            OSError: it cannot be read; trying again may help.
        """
        if _is_table(self.path):
            return _read_captions(self.path, self.stamp).get(name)
        if not self.path:
            return None
        text = find_file(self.path, f"{name}.txt")
        return text.read(MAX_TEXT) if text else None


@dataclass(frozen=True)
class AnnotatedTar:
    """An item that is a tar of SA-1B."""

    tar: Tar
    captions: Captions

    @property
    def stamp(self) -> str:
        """The tar's stamp and the captions'."""
        return f"{self.tar.stamp} {self.captions.stamp}"

    def read(self) -> Iterator[Unloaded | Reject]:
        """Yield a record per picture, and a reject where the tar breaks off."""
        for sample in self.tar.samples():
            yield sample if isinstance(sample, Reject) else self._record(sample)

    def _record(self, sample: TarSample) -> Unloaded:
        return Unloaded(sample.key, sample.uri, lambda: load(sample, self.captions))


def is_published(file: File) -> bool:
    """Whether a file has the name of a tar of SA-1B, `sa_000000.tar`."""
    return bool(_PUBLISHED.fullmatch(posixpath.basename(file.name)))


def list_annotated_tars(tars: Sequence[File], beside: Sequence[File], limit: int | None) -> list[Chunk]:
    """Make a chunk per tar, in the order of their names.

    Keys are those of the samples, as SA-1B numbers its pictures across all tars. If the tars do not have their
    published names, or two have the same name, keys begin with the name of the tar.

    Args:
        tars: the tars.
        beside: files among which captions may be found.
        limit: take only the first records.

    Raises:
        InputError: there are captions in several places, or their Parquet file cannot be read.
    """
    captions = find_captions(tars, beside)
    names = {posixpath.basename(tar.name) for tar in tars}
    is_numbered = len(names) == len(tars) and all(map(is_published, tars))
    before = [""] * len(tars) if is_numbered else prefixes(tars)
    taken = take_tars([Tar(file, prefix) for file, prefix in zip(tars, before, strict=True)], limit)
    return [Chunk.of(shard, [AnnotatedTar(tar, captions)], tar.limit) for shard, tar in enumerate(taken)]


def find_captions(tars: Sequence[File], beside: Sequence[File]) -> Captions:
    """Find a Parquet file beside one of the tars, or a folder `captions` of .txt files.

    Raises:
        InputError: there are several of these, or the Parquet file cannot be read or lacks a column.
    """
    folders = {_folder(tar.path) for tar in tars}
    found = {file.path: file.stamp for file in beside if _is_table(file.path) and _folder(file.path) in folders}
    # `beside` is sorted by name, so the digest does not depend on the order in which files were found.
    texts: dict[str, Any] = {}
    for file in beside:
        folder = posixpath.dirname(file.path)
        is_beside = posixpath.basename(folder) == "captions" and _folder(folder) in folders
        if is_beside and file.has_extension((".txt",)):
            texts.setdefault(folder, hashlib.sha256()).update(f"{file.stamp}\n".encode("utf-8", "surrogatepass"))
    found.update({folder: digest.hexdigest() for folder, digest in texts.items()})
    if len(found) > 1:
        raise InputError(f"there are captions in several places beside the tars, {', '.join(sorted(found))}: keep one")
    for path, stamp in found.items():
        if _is_table(path):
            _check_table(path)
        return Captions(path, stamp)
    return Captions()


def load(sample: TarSample, captions: Captions) -> Example:
    """Make an example of a picture and its annotation.

    Raises:
        RecordError: MISSING_IMAGE; MISMATCHED_ANNOTATION, the annotation is missing or malformed, or is for another
            size; or what `to_example` raises.
    """
    sample.check()
    image = picture_of(sample.members)
    if image is None:
        raise RecordError(Reason.MISSING_IMAGE, "there is no picture with the annotation")
    if "json" not in sample.members:
        raise mismatch("there is no annotation (.json) with the picture")
    # Only the last part of the name: a member called "../x" must not be looked up outside the folder of captions.
    caption: object = sample.members.get("txt")
    if is_empty(caption):
        caption = captions.of(posixpath.basename(sample.uri))
    example = to_example(sample.key, image, caption, Source(sample.uri))
    size, annotations = read_annotation(sample.members["json"])
    check_size(example, size)
    segments, left_out = segments_of(annotations, size)
    return replace(example, segments=segments, left_out=left_out)


def read_annotation(content: bytes) -> tuple[tuple[int, int], list[Any]]:
    """Return the (height, width) in pixels and the annotations of a picture's JSON.

    Raises:
        RecordError: MISMATCHED_ANNOTATION, it is not an annotation of SA-1B.
    """
    try:
        fields = json.loads(content)
        size, annotations = (fields["image"]["height"], fields["image"]["width"]), fields["annotations"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        detail = f"its JSON is no annotation of SA-1B ({type(error).__name__} {error})"
        raise mismatch(f"{detail}: other tars are read with --source webdataset") from error
    if not isinstance(annotations, list):
        raise mismatch(f"its JSON has a {type(annotations).__name__} of annotations instead of a list")
    return size, annotations


def segments_of(annotations: Sequence[Any], size: tuple[int, int]) -> tuple[tuple[Segment, ...], int]:
    """Return a segment per annotation whose mask is not empty, and the number of annotations that are left out.

    A segment's score is `predicted_iou`, clipped to [0, 1]. Annotations that are malformed, or whose mask is of another
    size, are left out.

    Args:
        annotations: those of the JSON.
        size: (height, width) of the picture in pixels.

    Raises:
        RecordError: MISMATCHED_ANNOTATION, there are annotations, and none of them can be used.
    """
    segments, left_out = [], []
    for number, annotation in enumerate(annotations):
        try:
            mask = decode_segmentation(annotation["segmentation"], size)
            score = float(annotation["predicted_iou"])
            if math.isnan(score):
                raise ValueError("its predicted_iou is no number")
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            left_out.append(f"annotation {number} is malformed: {type(error).__name__} {error}")
            continue
        if mask.area:
            segments.append(Segment(LABEL, min(max(score, 0.0), 1.0), mask))
    check_left_out(left_out, len(segments))
    return tuple(segments), len(left_out)


def _is_table(path: str) -> bool:
    return path.lower().endswith((".parquet", ".pq"))


def _folder(path: str) -> str:
    return posixpath.normpath(posixpath.dirname(path))


def _check_table(path: str) -> None:
    try:
        with open_file(path) as stream:
            schema = pq.read_schema(stream)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: the captions cannot be read: {error}") from error
    for name in ("key", "caption"):
        kind = schema.field(name).type if name in schema.names else None
        if kind is None or not is_text(kind):
            problem = f"column {name} holds {kind}, not text" if kind else f"there is no column {name}"
            raise InputError(f"{path}: {problem}: captions are read from the columns key (sa_1) and caption")


@lru_cache(maxsize=1)
def _read_captions(path: str, stamp: str) -> dict[str, Any]:  # noqa: ARG001 - another file, same path
    """Read all captions, by picture; several captions of a picture are a list. One that is not UTF-8 is bytes."""
    try:
        with open_file(path) as stream:
            table = pq.read_table(stream, columns=["key", "caption"])
    except (OSError, pa.ArrowException) as error:
        if is_passing(error):
            raise
        raise RecordError(Reason.UNREADABLE_FILE, f"the captions in {path} cannot be read: {error}") from error
    captions: dict[str, Any] = {}
    for key, caption in zip(values_of(table["key"]), values_of(table["caption"]), strict=True):
        if key not in captions:  # no list of one: SA-1B has eleven million pictures
            captions[key] = caption
        elif isinstance(captions[key], list):
            captions[key].append(caption)
        else:
            captions[key] = [captions[key], caption]
    return captions
