"""List a source at the start of a job: which kind it is, and the chunks that its shards are made from.

    listing = list_source("pictures", samples_per_shard=1000)

For local sources Beam is not imported, so that a wrong folder is reported at once. A listing holds little in memory,
about a kilobyte for each shard: what its shards are made from is in temporary files.
"""

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import cast, get_args

from schemas.errors import InputError, choices
from transforms.members import Members, MembersWriter, ShardSize, read_members
from transforms.sources.files import File, walk_files
from transforms.sources.folder import find_pictures
from transforms.sources.kinds import KINDS, Query, is_parquet
from transforms.sources.records import Chunk, Item
from transforms.sources.webdataset import Keys, is_tar
from transforms.spool import Folder, Shelf, Sorted

BATCH_SIZE = 8
"""Records that go through a model together."""


@dataclass(frozen=True)
class Listing:
    """A source of the kind `kind`, as the chunks that its shards are made from.

    The items of a chunk are in a temporary file, and are read when they are used. `members` are the inputs by shard, a
    local file for `transforms.dataset.prepare_output` (None: the source is not listed for a dataset). `lost` counts the
    inputs of an earlier run that are no longer there, by the number of their shard. `gaps` counts pictures and
    annotations that have no counterpart and are no records, by a name for people.
    """

    kind: str
    chunks: tuple[Chunk, ...]
    members: Path | None = None
    lost: Mapping[int, int] = field(default_factory=dict)
    folder: Folder | None = field(default=None, repr=False, compare=False)
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
    def has_maps(self) -> bool:
        """Whether the examples may come with condition maps."""
        return KINDS[self.kind].maps

    @property
    def has_people(self) -> bool:
        """Whether the examples come with the key points of people."""
        return KINDS[self.kind].people

    @property
    def expected(self) -> int | None:
        """The number of records in all chunks; None if it is not known before reading."""
        counts = [chunk.expected for chunk in self.chunks]
        return None if None in counts else sum(count for count in counts if count is not None)


def list_source(  # noqa: PLR0913 - what can be chosen about a source, by name
    source: str,
    kind: str | None = None,
    *,
    samples_per_shard: int = 1000,
    shard_bytes: int = 10**9,
    batch_size: int = BATCH_SIZE,
    limit: int | None = None,
    keys: str = "first-dot",
    rename: bool = False,
    earlier: str = "",
    follow_links: bool = False,
) -> Listing:
    """List a source.

    Args:
        source: a folder, a file or a glob, on any filesystem that Beam opens.
        kind: one of `KINDS`; None: it is detected.
        samples_per_shard: records that make a shard, rejected ones included; a tar, or a part of one, always makes one.
        shard_bytes: most bytes of pictures in a shard; larger tars are cut into parts.
        batch_size: records of one batch.
        limit: take only the first records, in the order of the listing.
        keys: where the keys of a WebDataset tar's members end, "first-dot" or "last-dot" of their names.
        rename: let keys begin with the name of their tar, wherever there are several.
        earlier: the file with the members of an earlier run, whose inputs stay in their shards; "" for none.
        follow_links: read what links lead to, also outside of the source.

    Raises:
        InputError: nothing is there, it cannot be read, its kind is unclear, or `keys` are none of its kind.
    """
    if keys not in get_args(Keys):
        raise InputError(f"there are no keys {keys!r}{choices(keys, get_args(Keys))}")
    if kind is not None and kind not in KINDS:
        raise InputError(f"there is no kind of source {kind!r}{choices(kind, KINDS)}")
    files = Sorted(walk_files(source, follow_links=follow_links), key=lambda file: file.name)
    chosen = kind or detect_kind(source, files)
    # A file named by hand together with its kind may have any name.
    wanted = (file for file in files if KINDS[chosen].is_read(file) or (kind and file.path == source))
    first = list(islice(wanted, 1))
    if not first:
        raise InputError(f"{source}: nothing to read as {chosen} among its {len(files)} files")
    if keys != "first-dot" and chosen != "webdataset":
        raise InputError(f"{source}: --keys {keys} is for the names in WebDataset tars, the source is {chosen}")
    how = {"kind": chosen, "samples_per_shard": samples_per_shard, "shard_bytes": shard_bytes}
    members = read_members(earlier, how) if earlier else Members()
    # The pictures of a folder may be too many for memory, and are not needed here.
    read = first if chosen == "folder" else [*first, *wanted]
    size = ShardSize(samples_per_shard, shard_bytes)
    query = Query(source, files, read, size, batch_size, limit, cast("Keys", keys), rename, members, follow_links)
    listed = KINDS[chosen].list(query)
    return replace(_shelve(chosen, listed.chunks, how, members), gaps=listed.gaps)


def _shelve(kind: str, chunks: Iterable[Chunk], how: Mapping[str, object], members: Members) -> Listing:
    """Move the items of the chunks to a temporary file, and their ids to another one."""
    folder = Folder()
    path = folder.path / "members"
    shelf, writer = Shelf[Item](), MembersWriter(str(path), how)
    kept = []
    for chunk in chunks:
        writer.add(chunk)
        kept.append(replace(chunk, items=shelf.put(chunk.items), ids=()))
    shelf.close()
    writer.close()
    return Listing(kind, tuple(kept), path, members.lost(), folder)


def detect_kind(source: str, files: Iterable[File]) -> str:
    """Return the kind of a source, from the names of its files; pictures are known by their contents too.

    Raises:
        InputError: they show no kind, or several.
    """
    found: dict[str, str] = {}
    tables: list[str] = []
    beside: set[str] = set()
    count = 0
    for count, file in enumerate(files, start=1):  # noqa: B007 - the number of files
        for name, kind in KINDS.items():
            if name not in found and kind.sign(file):
                found[name] = file.name
        if is_parquet(file):
            tables.append(file.stem)
        beside.add(file.stem if is_tar(file) else posixpath.dirname(file.name))
    hidden = {name for kind in found for name in KINDS[kind].hides}
    # The tables that img2dataset writes beside each of its tars or folders.
    if beside.issuperset(tables):
        hidden.add("parquet")
    found = {name: found[name] for name in KINDS if name in found and name not in hidden}
    if len(found) > 1:
        examples = ", ".join(f"{name} ({sign})" for name, sign in found.items())
        raise InputError(f"{source} holds several kinds of source, {examples}: choose one with --source")
    if not found and find_pictures([*files]):
        return "folder"
    if not found:
        raise InputError(
            f"{source}: nothing to read among its {count} files: no pictures, tars, Parquet or Arrow files, COCO "
            "annotations (panoptic_*.json, instances_*.json, person_keypoints_*.json) or Open Images boxes "
            "(*annotations-bbox*.csv); a file by another name needs --source"
        )
    return next(iter(found))
