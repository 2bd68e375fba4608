"""Read a source: list it into chunks at the start of a job, read these on the workers into batches.

    listing = list_source("pictures", samples_per_shard=1000)
    batches = pipeline | ReadBatches(listing.chunks)

What a chunk holds is a function of the source alone, so that shards are too.
"""

import posixpath
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from glob import has_magic
from itertools import islice

import apache_beam as beam

from schemas.errors import InputError
from schemas.rejects import Reason, Reject
from transforms.batch import Batch, Record
from transforms.sources.coco import is_annotation, list_annotated
from transforms.sources.files import File, find_beside, find_files
from transforms.sources.folder import is_picture, list_pictures
from transforms.sources.open_images import is_boxes, list_framed
from transforms.sources.parquet import list_rows
from transforms.sources.records import STAGE, Chunk, Item, cut_entries, refuse
from transforms.sources.sa1b import is_published, list_annotated_tars
from transforms.sources.webdataset import is_tar, list_tars

BATCH_SIZE = 8
"""Records that go through a model together."""

KINDS = ("folder", "webdataset", "parquet", "coco-panoptic", "coco-instances", "open-images", "sa-1b")
"""The kinds of source, by the names that `--source` takes."""


@dataclass(frozen=True)
class Listing:
    """A source of the kind `kind`, as the chunks that its shards are made from."""

    kind: str
    chunks: tuple[Chunk, ...]

    @property
    def has_segments(self) -> bool:
        """Whether the examples come with their segments, so that no segmenter runs."""
        return self.kind.startswith("coco-") or self.kind == "sa-1b"

    @property
    def has_labels(self) -> bool:
        """Whether what is marked in the examples, segments or boxes, is named by its class."""
        return self.kind.startswith("coco-") or self.kind == "open-images"

    @property
    def has_boxes(self) -> bool:
        """Whether the examples come with boxes and labels of the things in them."""
        return self.kind == "open-images"

    @property
    def expected(self) -> int | None:
        """The number of records in all chunks, None where only reading tells."""
        counts = [chunk.expected for chunk in self.chunks]
        return None if None in counts else sum(count for count in counts if count is not None)


def list_source(
    source: str,
    kind: str | None = None,
    *,
    samples_per_shard: int = 1000,
    batch_size: int = BATCH_SIZE,
    limit: int | None = None,
) -> Listing:
    """List a source.

    Args:
        source: a folder, a file or a glob, on any filesystem that Beam opens.
        kind: one of `KINDS`; None finds it out.
        samples_per_shard: records that make a shard, rejected ones included; a tar always makes one.
        batch_size: records of one batch.
        limit: take only the first records, in the order of the listing.

    Raises:
        InputError: nothing is there, it cannot be read, or its kind cannot be told.
    """
    files = find_files(source)
    chosen = kind or detect_kind(source, files)
    if chosen not in KINDS:
        raise InputError(f"there is no kind of source {chosen!r}: choose one of {', '.join(KINDS)}")
    # A file named by hand together with its kind may be called anything.
    is_wanted = is_tar if chosen in ("webdataset", "sa-1b") else _SIGNS[chosen]
    wanted = [file for file in files if is_wanted(file) or (kind and file.path == source)]
    if not wanted:
        raise InputError(f"{source}: nothing to read as {chosen} among its {len(files)} files")
    if chosen == "webdataset":
        return Listing(chosen, tuple(list_tars(wanted, limit)))
    if chosen == "parquet":
        return Listing(chosen, tuple(list_rows(wanted, samples_per_shard, limit)))
    is_folder = _is_folder(source, files)
    if chosen == "folder":
        entries = list_pictures(files, files if is_folder else find_beside(files))
        return Listing(chosen, tuple(cut_entries(entries[:limit], samples_per_shard, batch_size)))
    around = files if is_folder else _around(wanted[0])
    if chosen == "sa-1b":
        return Listing(chosen, tuple(list_annotated_tars(wanted, around, limit)))
    if chosen == "open-images":
        entries = list_framed(around, wanted)
    else:
        entries = list_annotated(around, wanted, chosen.removeprefix("coco-"))
    return Listing(chosen, tuple(cut_entries(entries[:limit], samples_per_shard, batch_size)))


def detect_kind(source: str, files: Sequence[File]) -> str:
    """Tell the kind of a source by the names of its files.

    Raises:
        InputError: they speak for no kind, or for several.
    """
    signs = {kind: next((file.name for file in files if sign(file)), None) for kind, sign in _SIGNS.items()}
    found = {kind: name for kind, name in signs.items() if name is not None}
    if found.keys() & {"coco-panoptic", "coco-instances", "open-images"}:
        found.pop("folder", None)  # the annotated pictures themselves
    if "sa-1b" in found or _are_statistics(files):
        found.pop("parquet", None)  # captions, or numbers about tars
    if len(found) > 1:
        examples = ", ".join(f"{kind} ({name})" for kind, name in found.items())
        raise InputError(f"{source} holds several kinds of source, {examples}: choose one with --source")
    if not found:
        raise InputError(
            f"{source}: nothing to read among its {len(files)} files: no pictures, tars, Parquet files, COCO "
            "annotations (panoptic_*.json, instances_*.json) or Open Images boxes (*annotations-bbox*.csv); a file by "
            "another name needs --source"
        )
    return next(iter(found))


@dataclass(eq=False)
class ReadBatches(beam.PTransform):
    """Read chunks into batches of at most `batch_size` consecutive records of one shard.

    Applied to the pipeline itself. The batches are the same ones on any number of workers; only their order is not.
    `needs_captions` rejects pictures without one; else these have the caption "".
    """

    chunks: Sequence[Chunk]
    batch_size: int = BATCH_SIZE
    needs_captions: bool = True

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection[Batch]:
        """Spread the items over the workers, then read each."""
        items = [(chunk.shard, item) for chunk in self.chunks for item in chunk.items]
        return (
            pipeline
            | "items" >> beam.Create(items, reshuffle=False)
            | "spread" >> beam.Reshuffle()
            | "read" >> beam.FlatMapTuple(self._read)
        )

    def _read(self, shard: int, item: Item) -> Iterator[Batch]:
        return read_batches(shard, item, self.batch_size, needs_captions=self.needs_captions)


def read_batches(
    shard: int, item: Item, batch_size: int = BATCH_SIZE, *, needs_captions: bool = True
) -> Iterator[Batch]:
    """Yield the records of `item` in batches for `shard`, with the seconds that reading took.

    `needs_captions` makes rejects of pictures without one.
    """
    records = map(_check_caption, item.read()) if needs_captions else item.read()
    while True:
        started = time.perf_counter()
        batch = tuple(islice(records, batch_size))
        if not batch:
            return
        yield Batch(shard, batch, ((STAGE, time.perf_counter() - started),))


def _check_caption(record: Record) -> Record:
    if isinstance(record, Reject) or record.caption:
        return record
    return refuse(record.key, record.source.uri, Reason.MISSING_CAPTION, "there is no caption with the picture")


def _is_parquet(file: File) -> bool:
    return file.has_extension((".parquet", ".pq"))


def _is_other_tar(file: File) -> bool:
    return is_tar(file) and not is_published(file)


def _is_panoptic(file: File) -> bool:
    return is_annotation(file, "panoptic")


def _is_instances(file: File) -> bool:
    return is_annotation(file, "instances")


_SIGNS: dict[str, Callable[[File], bool]] = {
    "folder": is_picture,
    "webdataset": _is_other_tar,
    "parquet": _is_parquet,
    "coco-panoptic": _is_panoptic,
    "coco-instances": _is_instances,
    "open-images": is_boxes,
    "sa-1b": is_published,
}
"""What a kind is detected by."""


def _are_statistics(files: Sequence[File]) -> bool:
    """Whether all Parquet files are the tables that img2dataset writes beside each of its tars or folders."""
    beside = {file.stem for file in files if is_tar(file)} | {posixpath.dirname(file.name) for file in files}
    return all(file.stem in beside for file in files if _is_parquet(file))


def _is_folder(source: str, files: Sequence[File]) -> bool:
    """Whether `files` are surely all that a folder holds, not what a glob or a file's name picked."""
    return len(files) > 1 and not has_magic(source)


def _around(annotation: File) -> Sequence[File]:
    """The files among which the pictures of an annotation lie that was named alone."""
    folder = posixpath.dirname(annotation.path) or "."
    return find_files(posixpath.dirname(folder) or "." if posixpath.basename(folder) == "annotations" else folder)
