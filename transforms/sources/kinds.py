"""The kinds of source, a row each: what a kind is detected by, how it is listed, and what its examples come with."""

import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from glob import has_magic

from schemas.rejects import Reject
from transforms.sources.coco import is_annotation, list_annotated
from transforms.sources.files import File, find_beside, find_files, refuse_links
from transforms.sources.folder import has_picture_extension, list_pictures, may_be_picture
from transforms.sources.open_images import is_boxes, list_framed
from transforms.sources.parquet import list_rows
from transforms.sources.records import Chunk, Entry, cut_entries
from transforms.sources.sa1b import is_published, list_annotated_tars
from transforms.sources.webdataset import Keys, is_tar, list_tars


@dataclass(frozen=True)
class Query:
    """What is to be listed: a `source` with its `files`, of which those of the kind are `wanted`; sorted by name.

    `samples_per_shard` records make a shard and `batch_size` a batch; `limit` takes only the first records (None: all).
    `keys` is where those of a tar's members end; `follow_links` as in `find_files`.
    """

    source: str
    files: Sequence[File]
    wanted: Sequence[File]
    samples_per_shard: int
    batch_size: int
    limit: int | None
    keys: Keys = "first-dot"
    follow_links: bool = False

    @property
    def is_folder(self) -> bool:
        """Whether `files` are all files of a folder, rather than those that a glob or a file's name picked."""
        return len(self.files) > 1 and not has_magic(self.source)

    def around(self) -> Sequence[File]:
        """The files among which pictures and captions of an annotation are looked for."""
        if self.is_folder:
            return self.files
        folder = posixpath.dirname(self.wanted[0].path) or "."
        folder = posixpath.dirname(folder) or "." if posixpath.basename(folder) == "annotations" else folder
        return find_files(folder, follow_links=self.follow_links)

    def cut(self, entries: Sequence[Entry | Reject]) -> "Listed":
        """Cut entries into chunks."""
        return Listed(cut_entries(entries[: self.limit], self.samples_per_shard, self.batch_size))


@dataclass(frozen=True)
class Listed:
    """The chunks of a source, and how many of its pictures and annotations have no counterpart, by name."""

    chunks: Sequence[Chunk]
    gaps: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """A kind of source.

    Attributes:
        sign: whether a file shows that a source is of this kind.
        list: makes the chunks of a source.
        reads: whether a file is read if the kind is named; None: if it is a sign.
        hides: kinds whose files may lie in a source of this kind, as the pictures beside an annotation.
        segments: whether the examples come with segments, so that no segmenter runs.
        boxes: whether they come with boxes.
        labels: whether segments or boxes are named by a class.
    """

    sign: Callable[[File], bool]
    list: Callable[[Query], Listed]
    reads: Callable[[File], bool] | None = None
    hides: frozenset[str] = frozenset()
    segments: bool = False
    boxes: bool = False
    labels: bool = False

    def is_read(self, file: File) -> bool:
        """Whether `file` is read if the source is of this kind."""
        return (self.reads or self.sign)(file)


def _list_folder(query: Query) -> Listed:
    beside = query.files if query.is_folder else find_beside(query.files, follow_links=query.follow_links)
    return query.cut(list_pictures(query.files, beside))


def _list_tars(query: Query) -> Listed:
    refuse_links(query.files)
    return Listed(list_tars(query.wanted, query.limit, query.keys))


def _list_parquet(query: Query) -> Listed:
    refuse_links(query.files)
    return Listed(list_rows(query.wanted, query.samples_per_shard, query.limit))


def _list_coco(annotation: str, query: Query) -> Listed:
    refuse_links(query.files)
    return query.cut(list_annotated(query.around(), query.wanted, annotation))


def _list_open_images(query: Query) -> Listed:
    refuse_links(query.files)
    entries, gaps = list_framed(query.around(), query.wanted)
    return replace(query.cut(entries), gaps=gaps)


def _list_sa1b(query: Query) -> Listed:
    refuse_links(query.files)
    return Listed(list_annotated_tars(query.wanted, query.around(), query.limit))


def is_parquet(file: File) -> bool:
    """Whether the name says that it is a Parquet file."""
    return file.has_extension((".parquet", ".pq"))


def _is_other_tar(file: File) -> bool:
    return is_tar(file) and not is_published(file)


def _is_panoptic(file: File) -> bool:
    return is_annotation(file, "panoptic")


def _is_instances(file: File) -> bool:
    return is_annotation(file, "instances")


_PICTURES, _TABLES = frozenset({"folder"}), frozenset({"parquet"})

KINDS: Mapping[str, Kind] = {
    "folder": Kind(has_picture_extension, _list_folder, reads=may_be_picture),
    "webdataset": Kind(_is_other_tar, _list_tars, reads=is_tar),
    "parquet": Kind(is_parquet, _list_parquet),
    "coco-panoptic": Kind(_is_panoptic, partial(_list_coco, "panoptic"), hides=_PICTURES, segments=True, labels=True),
    "coco-instances": Kind(
        _is_instances, partial(_list_coco, "instances"), hides=_PICTURES, segments=True, labels=True
    ),
    "open-images": Kind(is_boxes, _list_open_images, hides=_PICTURES, boxes=True, labels=True),
    # The Parquet file beside its tars holds captions.
    "sa-1b": Kind(is_published, _list_sa1b, reads=is_tar, hides=_TABLES, segments=True),
}
"""The kinds of source, by the names that `--source` takes."""
