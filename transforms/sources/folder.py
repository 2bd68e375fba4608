"""A folder of pictures with a .txt or .json caption beside each.

    animals/dog.jpg   animals/dog.txt    a brown dog on a lawn
    animals/cat.png   animals/cat.json   {"caption": "a black cat", "license": "CC0", "url": "https://..."}

The key is the path without its extension, cleaned by `clean_key`. With both a .txt and a .json, the caption is that of
the .txt, licence and address are those of the .json.
"""

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from schemas.example import Example, Source
from schemas.keys import clean_key
from schemas.rejects import Reason, Reject
from transforms.files import read_file
from transforms.sources.files import File
from transforms.sources.records import (
    IMAGE_EXTENSIONS,
    OTHER_EXTENSIONS,
    Entry,
    caption_of,
    parse_metadata,
    refuse,
    source_of,
    to_example,
)

_PICTURES = tuple(f".{extension}" for extension in (*IMAGE_EXTENSIONS, *OTHER_EXTENSIONS))
_COMMON = IMAGE_EXTENSIONS.index("jfif")
"""Number of extensions at the beginning that are read whatever else has the same name."""
_CAPTIONS = (".txt", ".json")

_NO_CAPTION = re.compile(
    r"(.*/)?(\d+_stats\.json|(readme|licen[cs]e|copying|notice|authors|citation|changelog|requirements|classes)\.txt)",
    re.IGNORECASE,
)
"""Files without a picture that are no captions: img2dataset's statistics, and notes on a dataset."""


@dataclass(frozen=True)
class Picture:
    """A picture file and the files of its caption."""

    key: str
    image: File
    txt: File | None
    json: File | None

    @property
    def uri(self) -> str:
        """The address of the picture."""
        return self.image.uri

    @property
    def stamp(self) -> str:
        """The stamps of its files."""
        return " ".join(file.stamp for file in (self.image, self.txt, self.json) if file)

    def load(self) -> Example:
        """Read the files."""
        caption: object = None
        source = Source(self.uri)
        if self.json:
            fields = parse_metadata(read_file(self.json.path))
            caption, source = caption_of(fields), source_of(fields, self.uri)
        if self.txt:
            caption = read_file(self.txt.path)
        return to_example(self.key, read_file(self.image.path), caption, source)


def is_picture(file: File) -> bool:
    """Whether a file has the extension of a picture."""
    return file.has_extension(_PICTURES)


def _rank(file: File) -> int:
    """The place of a picture's extension in the order in which pictures of one name are taken."""
    return _PICTURES.index(posixpath.splitext(file.name)[1].lower())


def list_pictures(files: Sequence[File], beside: Sequence[File]) -> list[Entry | Reject]:
    """Pair pictures with captions, in the order of their names.

    Args:
        files: the files of the source, sorted by name.
        beside: files among which their captions and pictures may also be, sorted by name.

    Returns:
        An entry per picture; a reject for the second picture of one key, and for a caption without a picture. Of
        pictures that have one name and less common extensions (IMG.HEIC beside IMG.JPG), one is taken.
    """
    captions = {(file.stem, kind): file for file in beside for kind in _CAPTIONS if file.has_extension((kind,))}
    ranks: dict[str, int] = {}
    for file in beside:
        if is_picture(file):
            ranks[file.stem] = min(_rank(file), ranks.get(file.stem, len(_PICTURES)))
    unknown = {file.stem: file for file in beside if not is_picture(file) and not file.has_extension(_CAPTIONS)}
    return list(_pair(files, captions, ranks, unknown))


def _pair(
    files: Sequence[File],
    captions: Mapping[tuple[str, str], File],
    ranks: Mapping[str, int],
    unknown: Mapping[str, File],
) -> Iterator[Entry | Reject]:
    """As `list_pictures`, with the best rank of a picture by stem, and the files of unknown kinds by stem."""
    first: dict[str, File] = {}
    for file in files:
        key = clean_key(file.stem)
        if is_picture(file):
            if _rank(file) >= max(_COMMON, ranks[file.stem] + 1):
                continue
            if key in first:
                detail = f"{first[key].name} has the same key: rename one of the two"
                yield refuse(key, file.uri, Reason.DUPLICATE_KEY, detail)
            else:
                first[key] = file
                yield Picture(key, file, captions.get((file.stem, ".txt")), captions.get((file.stem, ".json")))
        elif _is_orphan(file, captions, ranks):
            detail = f"no picture stands beside {file.name}"
            if file.stem in unknown:
                detail += f", and {unknown[file.stem].name} has the extension of no known kind of picture"
            yield refuse(key, file.uri, Reason.MISSING_IMAGE, detail)


def _is_orphan(file: File, captions: Mapping[tuple[str, str], File], ranks: Mapping[str, int]) -> bool:
    """Whether `file` is a caption without a picture; of a .txt and a .json with one name, only the .txt counts."""
    if not file.has_extension(_CAPTIONS) or file.stem in ranks or _NO_CAPTION.fullmatch(file.name):
        return False
    return file.has_extension((".txt",)) or (file.stem, ".txt") not in captions
