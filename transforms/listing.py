"""List a source at the start of a job: which kind it is, and the chunks that its shards are made from.

    listing = list_source("pictures", samples_per_shard=1000)

For local sources Beam is not imported, so that a wrong folder is reported at once.
"""

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast, get_args

from schemas.errors import InputError, choices
from transforms.sources.files import File, find_files
from transforms.sources.folder import find_pictures
from transforms.sources.kinds import KINDS, Query, is_parquet
from transforms.sources.records import Chunk
from transforms.sources.webdataset import Keys, is_tar

BATCH_SIZE = 8
"""Records that go through a model together."""


@dataclass(frozen=True)
class Listing:
    """A source of the kind `kind`, as the chunks that its shards are made from.

    `gaps` counts pictures and annotations that have no counterpart and are no records, by a name for people.
    """

    kind: str
    chunks: tuple[Chunk, ...]
    gaps: Mapping[str, int] = field(default_factory=dict)

    @property
    def has_segments(self) -> bool:
        """Whether the examples come with their segments, so that no segmenter runs."""
        return KINDS[self.kind].segments

    @property
    def has_labels(self) -> bool:
        """Whether the examples' segments or boxes are named by a class."""
        return KINDS[self.kind].labels

    @property
    def has_boxes(self) -> bool:
        """Whether the examples come with boxes."""
        return KINDS[self.kind].boxes

    @property
    def expected(self) -> int | None:
        """The number of records in all chunks; None if it is not known before reading."""
        counts = [chunk.expected for chunk in self.chunks]
        return None if None in counts else sum(count for count in counts if count is not None)


def list_source(
    source: str,
    kind: str | None = None,
    *,
    samples_per_shard: int = 1000,
    batch_size: int = BATCH_SIZE,
    limit: int | None = None,
    keys: str = "first-dot",
    follow_links: bool = False,
) -> Listing:
    """List a source.

    Args:
        source: a folder, a file or a glob, on any filesystem that Beam opens.
        kind: one of `KINDS`; None: it is detected.
        samples_per_shard: records that make a shard, rejected ones included; a tar always makes one.
        batch_size: records of one batch.
        limit: take only the first records, in the order of the listing.
        keys: where the keys of a WebDataset tar's members end, "first-dot" or "last-dot" of their names.
        follow_links: read what links lead to, also outside of the source.

    Raises:
        InputError: nothing is there, it cannot be read, its kind is unclear, or `keys` are none of its kind.
    """
    if keys not in get_args(Keys):
        raise InputError(f"there are no keys {keys!r}{choices(keys, get_args(Keys))}")
    if kind is not None and kind not in KINDS:
        raise InputError(f"there is no kind of source {kind!r}{choices(kind, KINDS)}")
    files = find_files(source, follow_links=follow_links)
    chosen = kind or detect_kind(source, files)
    # A file named by hand together with its kind may have any name.
    wanted = [file for file in files if KINDS[chosen].is_read(file) or (kind and file.path == source)]
    if not wanted:
        raise InputError(f"{source}: nothing to read as {chosen} among its {len(files)} files")
    if keys != "first-dot" and chosen != "webdataset":
        raise InputError(f"{source}: --keys {keys} is for the names in WebDataset tars, the source is {chosen}")
    query = Query(source, files, wanted, samples_per_shard, batch_size, limit, cast("Keys", keys), follow_links)
    listed = KINDS[chosen].list(query)
    return Listing(chosen, tuple(listed.chunks), listed.gaps)


def detect_kind(source: str, files: Sequence[File]) -> str:
    """Return the kind of a source, from the names of its files; pictures are known by their contents too.

    Raises:
        InputError: they show no kind, or several.
    """
    signs = {name: next((file.name for file in files if kind.sign(file)), None) for name, kind in KINDS.items()}
    found = {name: sign for name, sign in signs.items() if sign is not None}
    hidden = {name for kind in found for name in KINDS[kind].hides}
    if _are_statistics(files):
        hidden.add("parquet")
    found = {name: sign for name, sign in found.items() if name not in hidden}
    if len(found) > 1:
        examples = ", ".join(f"{name} ({sign})" for name, sign in found.items())
        raise InputError(f"{source} holds several kinds of source, {examples}: choose one with --source")
    if not found and find_pictures(files):
        return "folder"
    if not found:
        raise InputError(
            f"{source}: nothing to read among its {len(files)} files: no pictures, tars, Parquet files, COCO "
            "annotations (panoptic_*.json, instances_*.json) or Open Images boxes (*annotations-bbox*.csv); a file by "
            "another name needs --source"
        )
    return next(iter(found))


def _are_statistics(files: Sequence[File]) -> bool:
    """Whether all Parquet files are the tables that img2dataset writes beside each of its tars or folders."""
    beside = {file.stem for file in files if is_tar(file)} | {posixpath.dirname(file.name) for file in files}
    return all(file.stem in beside for file in files if is_parquet(file))
