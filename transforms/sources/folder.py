"""A folder of pictures with captions beside them.

    animals/dog.jpg   animals/dog.txt    a brown dog on a lawn
    animals/cat.png   animals/cat.json   {"caption": "a black cat", "license": "CC0", "url": "https://..."}
    animals/metadata.jsonl               {"file_name": "owl.jpg", "text": "an owl"}

    animals/dog.depth.png                a condition map of the picture, of a kind of `schemas.maps.GIVEN`

The key is the path without its extension, cleaned by `clean_key`. A caption is looked for in the .txt, kohya's
.caption, the .json (`caption`, `text`, `captions`) and Hugging Face's metadata.jsonl or metadata.csv, and the first
that is not empty is taken; licence and address are those of the .json, else of the metadata. A file may be named after
the picture with its extension ("dog.jpg.json"). In JSON, a list of texts is several captions of the picture; the lines
of a .txt are one. A file whose extension is unknown, or that has none, is a picture if it begins like one.
"""

import csv
import io
import json
import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from typing import Any

from schemas.errors import RecordError
from schemas.example import Example
from schemas.images import HEAD, is_picture
from schemas.keys import clean_key
from schemas.maps import MAP_FILES
from schemas.rejects import Reason, Reject
from transforms.files import is_remote
from transforms.outages import retry
from transforms.sources.files import MAX_PICTURE, MAX_TABLE, MAX_TEXT, File
from transforms.sources.records import (
    DATA_EXTENSIONS,
    IMAGE_EXTENSIONS,
    OTHER_EXTENSIONS,
    Entry,
    caption_of,
    first_caption,
    parse_metadata,
    refuse,
    source_of,
    stated_scores,
    to_example,
)

_PICTURES = tuple(f".{extension}" for extension in (*IMAGE_EXTENSIONS, *OTHER_EXTENSIONS))
_DATA = tuple(f".{extension}" for extension in DATA_EXTENSIONS)
_COMMON = IMAGE_EXTENSIONS.index("jfif")
"""Number of extensions at the beginning that are read whatever else has the same name."""
_TEXTS = (".txt", ".caption")
_CAPTIONS = (*_TEXTS, ".json")
_METADATA = ("metadata.jsonl", "metadata.csv")
_TOGETHER = 10_000
"""Files that are paired at a time where there are too many for memory."""

_NO_CAPTION = re.compile(
    r"(.*/)?(\d+_stats\.json|(readme|licen[cs]e|copying|notice|authors|citation|changelog|requirements|classes)\.txt)",
    re.IGNORECASE,
)
"""Files without a picture that are no captions: img2dataset's statistics, and notes on a dataset."""


@dataclass(frozen=True)
class Picture:
    """A picture file, the files of its caption, and its row of a metadata file as JSON ("" if there is none).

    `maps` are the files of its condition maps, by what follows the picture's name ("depth.png").
    """

    key: str
    image: File
    texts: tuple[File, ...]
    json: File | None
    metadata: str = ""
    maps: tuple[tuple[str, File], ...] = ()

    @property
    def uri(self) -> str:
        """The address of the picture."""
        return self.image.uri

    @property
    def length(self) -> int:
        """Bytes of the picture's file."""
        return self.image.size

    @property
    def stamp(self) -> str:
        """The stamps of its files, and its metadata."""
        files = (self.image, *self.texts, self.json, *(file for _, file in self.maps))
        return " ".join([*(file.stamp for file in files if file), *([self.metadata] if self.metadata else [])])

    def load(self) -> Example:
        """Read the files."""
        row = json.loads(self.metadata or "{}")
        fields = parse_metadata(self.json.read(MAX_TEXT)) if self.json else {}
        texts = [file.read(MAX_TEXT) for file in self.texts]
        caption = first_caption(*texts, caption_of(fields), caption_of(row))
        beside = {name: file.read(MAX_PICTURE) for name, file in self.maps}
        source = source_of(row | fields, self.uri)
        example = to_example(self.key, self.image.read(MAX_PICTURE), caption, source, beside)
        return replace(example, stated=stated_scores(row | fields))


def has_picture_extension(file: File) -> bool:
    """Whether a file has the extension of a picture."""
    return file.has_extension(_PICTURES)


def may_be_picture(file: File) -> bool:
    """Whether the extension of a file is not that of a file of another kind."""
    return not file.has_extension(_DATA)


def find_pictures(files: Sequence[File]) -> list[File]:
    """Return the pictures among `files`: by their extensions, and by what they begin with where these are unknown.

    Of the latter, those that another picture is a link to are left out, as in the cache of the Hugging Face hub.
    """
    unknown = [file for file in files if may_be_picture(file) and not has_picture_extension(file)]
    with ThreadPoolExecutor(32) as pool:  # remote files take their time to open
        likely = {file for file, begins in zip(unknown, pool.map(_begins_like_picture, unknown), strict=True) if begins}
    known = {_identity(file) for file in files if has_picture_extension(file)} if likely else set()
    return [f for f in files if has_picture_extension(f) or (f in likely and _identity(f) not in known)]


def _identity(file: File) -> object:
    """What the names of one file have in common."""
    return file.path if is_remote(file.path) else os.path.realpath(file.path)


def _begins_like_picture(file: File) -> bool:
    """Whether it does; one that cannot be opened counts, so that it becomes a reject."""

    def read() -> bytes:
        with file.open() as stream:
            return stream.read(HEAD)

    try:
        return is_picture(retry(read))
    except RecordError:  # no plain file
        return False
    except OSError:
        return True


def _rank(file: File) -> int:
    """The place of a picture's extension in the order in which those of one name are taken; an unknown one is last."""
    extension = posixpath.splitext(file.name)[1].lower()
    return _PICTURES.index(extension) if extension in _PICTURES else len(_PICTURES)


def list_pictures(files: Sequence[File], beside: Sequence[File]) -> list[Entry | Reject]:
    """Pair pictures with captions, in the order of their names.

    Args:
        files: the files of the source, sorted by name.
        beside: these and the files among which their captions and pictures may also be, sorted by name.

    Returns:
        An entry per picture; a reject for the second picture of one key, and for a caption without a picture. Of
        pictures that have one name and less common extensions (IMG.HEIC or IMG.JPG.bak beside IMG.JPG), one is taken.
    """
    captions = {(file.stem, kind): file for file in beside for kind in _CAPTIONS if file.has_extension((kind,))}
    metadata = [file for file in beside if posixpath.basename(file.name) in _METADATA]
    rows_of = cache(_read_rows)  # a metadata file is read once, for its pictures and for its rejects
    rows = {name: row for file in metadata for name, row in rows_of(file) if not isinstance(row, Reject)}
    ranks: dict[str, int] = {}
    found = find_pictures(beside)
    maps = _find_maps(found, captions, rows)
    kept = {file.name for file in found} - {file.name for group in maps.values() for _, file in group}
    for file in found:
        ranks[file.stem] = min(_rank(file), ranks.get(file.stem, len(_PICTURES)))
    return list(_pair(files, captions, rows_of, rows, ranks, kept, maps))


def _find_maps(
    pictures: Sequence[File], captions: Mapping[tuple[str, str], File], rows: Mapping[str, object]
) -> dict[str, list[tuple[str, File]]]:
    """The condition maps of pictures, by the stem of their picture: what follows its name, and the file.

    A file that has a caption of its own is a picture, whatever its name.
    """
    stems = {file.stem for file in pictures}
    maps: dict[str, list[tuple[str, File]]] = defaultdict(list)
    for file in pictures:
        owner, _, kind = file.stem.rpartition(".")
        is_captioned = file.name in rows or any((file.stem, text) in captions for text in _CAPTIONS)
        if f"{kind}.png" in MAP_FILES and file.has_extension((".png",)) and owner in stems and not is_captioned:
            maps[owner].append((f"{kind}.png", file))
    return maps


def stream_pictures(files: Iterable[File]) -> Iterator[Entry | Reject]:
    """Do what `list_pictures` does for all files of a folder that holds too many for memory.

    What belongs to one picture has its name up to the first dot, and sorted names with one beginning are neighbours. So
    the files are paired some thousand at a time. Two pictures whose names become one key by `clean_key`, and are not
    near each other, are found when the dataset is finished. With a metadata file, whose rows name files anywhere, all
    files must fit into memory.

    Args:
        files: sorted by name; read twice.
    """
    metadata = [file for file in files if posixpath.basename(file.name) in _METADATA]
    if metadata:
        everything = [*files]
        yield from list_pictures(everything, everything)
        return
    some: list[File] = []
    for _, group in groupby(files, key=lambda file: file.name[: _first_dot(file.name)]):
        some += group
        if len(some) >= _TOGETHER:
            yield from list_pictures(some, some)
            some = []
    yield from list_pictures(some, some)


def _first_dot(name: str) -> int:
    """Where the first dot of a file's name is, in a name with folders; the end if there is none."""
    folder = name.rfind("/") + 1
    dot = name.find(".", folder)
    return len(name) if dot < 0 else dot


def _pair(
    files: Sequence[File],
    captions: Mapping[tuple[str, str], File],
    rows_of: Callable[[File], list[tuple[str, dict[str, Any] | Reject]]],
    rows: Mapping[str, dict[str, Any]],
    ranks: Mapping[str, int],
    pictures: set[str],
    maps: Mapping[str, Sequence[tuple[str, File]]],
) -> Iterator[Entry | Reject]:
    """As `list_pictures`.

    Args:
        files: as there.
        captions: the files of captions by stem and extension.
        rows_of: reads the rows of a metadata file.
        rows: the rows of metadata files by the name of their picture.
        ranks: the best rank of a picture by stem.
        pictures: the names of all pictures.
        maps: their condition maps, by stem.
    """
    first: dict[str, File] = {}
    stems = pictures | ranks.keys()
    for file in files:
        key = clean_key(file.stem)
        if file.name in pictures:
            is_backup = (
                _rank(file) == len(_PICTURES) and file.stem != file.name and file.stem in pictures
            )  # a.jpg.bak beside a.jpg
            if is_backup or _rank(file) >= max(_COMMON, ranks[file.stem] + 1):
                continue
            if key in first:
                detail = f"{first[key].name} has the same key: rename one of the two"
                yield refuse(key, file.uri, Reason.DUPLICATE_KEY, detail)
            else:
                first[key] = file
                texts, described = _beside(file, captions)
                row = json.dumps(rows[file.name], ensure_ascii=False) if file.name in rows else ""
                yield Picture(key, file, texts, described, row, tuple(maps.get(file.stem, ())))
        elif file.problem and file.name.endswith("/"):
            yield refuse(key, file.uri, *file.problem)
        elif posixpath.basename(file.name) in _METADATA:
            yield from (
                row if isinstance(row, Reject) else _without_picture(name, file)
                for name, row in rows_of(file)
                if isinstance(row, Reject) or name not in pictures
            )
        elif _is_orphan(file, captions, stems):
            yield refuse(key, file.uri, Reason.MISSING_IMAGE, f"no picture stands beside {file.name}")


def _beside(picture: File, captions: Mapping[tuple[str, str], File]) -> tuple[tuple[File, ...], File | None]:
    """The texts and the JSON of a picture; those named after it without its extension first."""
    found = {
        kind: [captions[name, kind] for name in (picture.stem, picture.name) if (name, kind) in captions]
        for kind in _CAPTIONS
    }
    return tuple(file for kind in _TEXTS for file in found[kind]), next(iter(found[".json"]), None)


def _read_rows(file: File) -> list[tuple[str, dict[str, Any] | Reject]]:
    """The rows of a metadata file by the names of their pictures; a line that is no row is a reject."""
    try:
        text = retry(lambda: file.read(MAX_TABLE)).decode("utf-8-sig")
        lines: list[Any] = (
            list(csv.DictReader(io.StringIO(text)))
            if file.has_extension((".csv",))
            else [line for line in text.splitlines() if line.strip()]
        )
    except (RecordError, UnicodeDecodeError, csv.Error) as error:
        return [("", refuse(clean_key(file.name), file.uri, Reason.UNREADABLE_FILE, f"{file.name}: {error}"))]
    rows: list[tuple[str, dict[str, Any] | Reject]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = parse_metadata(line.encode()) if isinstance(line, str) else line
            name = posixpath.join(posixpath.dirname(file.name), row["file_name"])
            rows.append((posixpath.normpath(name), row))
        except (RecordError, KeyError, TypeError, AttributeError) as error:
            detail = f"row {number} of {file.name} has no file_name or is no JSON object: {error}"
            key = clean_key(f"{file.name}-{number}")
            rows.append(("", refuse(key, file.uri, Reason.UNDECODABLE_CAPTION, detail)))
    return rows


def _without_picture(name: str, metadata: File) -> Reject:
    detail = f"{metadata.name} describes {name}, which is not there"
    return refuse(clean_key(posixpath.splitext(name)[0]), metadata.uri, Reason.MISSING_IMAGE, detail)


def _is_orphan(file: File, captions: Mapping[tuple[str, str], File], stems: set[str]) -> bool:
    """Whether `file` is a caption without a picture; of several with one name, only the first kind counts."""
    if not file.has_extension(_CAPTIONS) or file.stem in stems or _NO_CAPTION.fullmatch(file.name):
        return False
    kinds = [kind for kind in _CAPTIONS if (file.stem, kind) in captions]
    return not kinds or file.has_extension((kinds[0],))
