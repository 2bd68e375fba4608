"""The kinds of source, a row each: what a kind is detected by, how it is listed, and what its examples come with."""

import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from glob import has_magic
from itertools import islice

from schemas.rejects import Reject
from transforms.members import Members, ShardSize, cut_entries, cut_items, in_earlier_order
from transforms.sources.arrow import is_arrow
from transforms.sources.coco import is_annotation, list_annotated
from transforms.sources.files import File, find_beside, find_files, refuse_links
from transforms.sources.folder import has_picture_extension, list_pictures, may_be_picture, stream_pictures
from transforms.sources.open_images import is_boxes, list_framed
from transforms.sources.parquet import list_rows
from transforms.sources.records import Chunk, Entry
from transforms.sources.sa1b import is_published, list_annotated_tars
from transforms.sources.webdataset import Keys, is_tar, list_tars
from transforms.spool import Sorted


@dataclass(frozen=True)
class Query:
    """What is to be listed: a `source` with its `files`, of which those of the kind are `wanted`; sorted by name.

    A shard has the size `size`, a batch `batch_size` records; `limit` takes only the first records (None: all). `keys`
    is where the keys of a tar's members end. With `rename`, keys begin with the name of their tar wherever there are
    several. `members` are those of an earlier run; `follow_links` as in `find_files`.
    """

    source: str
    files: Sequence[File] | Sorted[File]
    wanted: Sequence[File]
    size: ShardSize
    batch_size: int
    limit: int | None
    keys: Keys = "first-dot"
    rename: bool = False
    members: Members = field(default_factory=Members)
    follow_links: bool = False

    @property
    def is_folder(self) -> bool:
        """Whether `files` are all files of a folder, rather than those that a glob or a file's name picked."""
        return len(self.files) > 1 and not has_magic(self.source)

    def around(self) -> Sequence[File]:
        """The files among which pictures and captions of an annotation are looked for."""
        if self.is_folder:
            return [*self.files]
        folder = posixpath.dirname(self.wanted[0].path) or "."
        folder = posixpath.dirname(folder) or "." if posixpath.basename(folder) == "annotations" else folder
        return find_files(folder, follow_links=self.follow_links)

    def cut(self, entries: Iterable[Entry | Reject]) -> "Listed":
        """Cut entries into chunks."""
        return Listed(cut_entries(islice(entries, self.limit), self.members, self.size, self.batch_size))


@dataclass(frozen=True)
class Listed:
    """The chunks of a source, and how many of its pictures and annotations have no counterpart, by name."""

    chunks: Iterable[Chunk]
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
        maps: whether condition maps may lie beside the pictures.
        people: whether the examples come with the key points of people.
    """

    sign: Callable[[File], bool]
    list: Callable[[Query], Listed]
    reads: Callable[[File], bool] | None = None
    hides: frozenset[str] = frozenset()
    segments: bool = False
    boxes: bool = False
    labels: bool = False
    maps: bool = False
    people: bool = False

    def is_read(self, file: File) -> bool:
        """Whether `file` is read if the source is of this kind."""
        return (self.reads or self.sign)(file)


def _list_folder(query: Query) -> Listed:
    if not query.is_folder:
        return query.cut(list_pictures([*query.files], find_beside(query.files, follow_links=query.follow_links)))
    if isinstance(query.files, Sorted) and not query.files.is_in_memory:
        return query.cut(stream_pictures(query.files))
    return query.cut(list_pictures([*query.files], [*query.files]))


def _list_tars(query: Query) -> Listed:
    refuse_links(query.files)
    tars = list_tars(query.wanted, query.limit, query.size.bytes, query.keys)
    return Listed(cut_items([(tar.name, tar, tar.limit) for tar in tars], query.members))


def _list_parquet(query: Query) -> Listed:
    refuse_links(query.files)
    order = in_earlier_order([file.name for file in query.wanted], query.members)
    return Listed(list_rows([query.wanted[i] for i in order], query.size, query.limit))


def _list_coco(annotation: str, query: Query) -> Listed:
    refuse_links(query.files)
    return query.cut(list_annotated(query.around(), query.wanted, annotation))


def _list_open_images(query: Query) -> Listed:
    refuse_links(query.files)
    entries, gaps = list_framed(query.around(), query.wanted)
    return replace(query.cut(entries), gaps=gaps)


def _list_sa1b(query: Query) -> Listed:
    refuse_links(query.files)
    listed = list_annotated_tars(query.wanted, query.around(), query.limit, query.size.bytes, rename=query.rename)
    return Listed(cut_items([(item.tar.name, item, item.tar.limit) for item in listed], query.members))


def is_parquet(file: File) -> bool:
    """Whether the name says that it is a Parquet file."""
    return file.has_extension((".parquet", ".pq"))


def _is_other_tar(file: File) -> bool:
    return is_tar(file) and not is_published(file)


def _is_panoptic(file: File) -> bool:
    return is_annotation(file, "panoptic")


def _is_instances(file: File) -> bool:
    return is_annotation(file, "instances")


def _is_key_points(file: File) -> bool:
    return is_annotation(file, "person_keypoints")


_PICTURES, _TABLES = frozenset({"folder"}), frozenset({"parquet"})

KINDS: Mapping[str, Kind] = {
    "folder": Kind(has_picture_extension, _list_folder, reads=may_be_picture, maps=True),
    "webdataset": Kind(_is_other_tar, _list_tars, reads=is_tar, maps=True),
    "parquet": Kind(is_parquet, _list_parquet),
    "arrow": Kind(is_arrow, _list_parquet),
    "coco-panoptic": Kind(
        _is_panoptic,
        partial(_list_coco, "panoptic"),
        hides=_PICTURES | {"coco-keypoints"},
        segments=True,
        labels=True,
    ),
    # COCO's key points lie beside its instances: they are read where these are not, or --source names them.
    "coco-instances": Kind(
        _is_instances,
        partial(_list_coco, "instances"),
        hides=_PICTURES | {"coco-keypoints"},
        segments=True,
        labels=True,
    ),
    "coco-keypoints": Kind(
        _is_key_points,
        partial(_list_coco, "person_keypoints"),
        hides=_PICTURES,
        segments=True,
        labels=True,
        people=True,
    ),
    "open-images": Kind(is_boxes, _list_open_images, hides=_PICTURES, boxes=True, labels=True),
    # The Parquet file beside its tars holds captions.
    "sa-1b": Kind(is_published, _list_sa1b, reads=is_tar, hides=_TABLES, segments=True),
}
"""The kinds of source, by the names that `--source` takes."""
