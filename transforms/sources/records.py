"""What all kinds of source share: making an example from a picture and its caption, and cutting into chunks."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from schemas.errors import RecordError
from schemas.example import Example, Source
from schemas.images import is_turned, to_stored_jpeg
from schemas.maps import MAP_FILES
from schemas.rejects import Reason, Reject
from transforms.batch import Outcome, check_blame, reject_of
from transforms.outages import ATTEMPTS, is_passing, retry
from transforms.text.markup import undo_markup

STAGE = "read"


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


IMAGE_EXTENSIONS = _words("jpg jpeg png webp gif bmp tif tiff jfif jpe jif jfi pjpeg pjp avif dib apng")
"""Extensions of pictures that are decoded; of several pictures of one sample, the first in this order is taken."""

OTHER_EXTENSIONS = _words(
    """heic heif heics hif avifs jxl jp2 j2k jpf jpx jxr wdp bpg flif psd psb xcf kra svg svgz ai eps emf wmf ico icns
    cur tga ppm pgm pbm pnm pam pfm pcx xbm xpm sgi exr hdr dds qoi mng fits dcm djvu
    dng cr2 cr3 crw nef nrw arw sr2 srf srw orf rw2 raf pef x3f 3fr erf kdc mrw mos iiq rwl"""
)
"""Extensions of pictures that are not decoded, unless their content is another's: they become rejects."""

DATA_EXTENSIONS = _words(
    """txt caption json jsonl csv tsv parquet pq arrow feather npy npz pt pth safetensors pkl h5 tar gz tgz zip 7z xml
    yaml yml toml md html htm pdf py sh log lock mp3 wav flac mp4 mov avi mkv webm"""
)
"""Extensions of files that are not pictures and are not opened to find out; those of all other files are unknown."""

MAX_CAPTION = 2_000
"""Most characters of a caption: a longer text is an article, or an error of the scraper."""


@dataclass(frozen=True)
class Unloaded:
    """A record that is not loaded yet: its key, the address of its picture, and what loads it (see `attempt`)."""

    key: str
    uri: str
    load: Callable[[], Example]


class Item(Protocol):
    """Inputs of one shard that a worker reads in one go."""

    @property
    def stamp(self) -> str:
        """A text that changes whenever the records that are read from it do."""

    def read(self) -> Iterator[Unloaded | Reject]:
        """Yield its records, always the same in the same order; one that cannot be loaded is a reject.

        Raises:
            OSError: a read failed for a cause that may pass (see `transforms.outages`).
        """


@dataclass(frozen=True)
class Chunk:
    """The inputs of one output shard.

    `fingerprint` is the SHA-256 of what identifies their content: names, sizes, times of change, rows. `expected` is
    the number of records in them, None if it is not known before reading. `ids` name the inputs of a source that begin
    in this chunk (see `transforms.members`). `candidates` is the fingerprint of what models find in them, "" if that is
    not kept (see `transforms.candidates`).
    """

    shard: int
    items: Sequence[Item]
    fingerprint: str
    expected: int | None
    ids: tuple[int, ...] = field(default=(), repr=False)
    candidates: str = ""

    @classmethod
    def of(cls, shard: int, items: Sequence[Item], expected: int | None, ids: tuple[int, ...] = ()) -> "Chunk":
        """Make a chunk of `items`."""
        stamps = "\n".join(item.stamp for item in items)
        digest = hashlib.sha256(stamps.encode("utf-8", "surrogatepass")).hexdigest()
        return cls(shard, tuple(items), digest, expected, ids)


class Entry(Protocol):
    """A record that is in files of its own."""

    @property
    def key(self) -> str:
        """The key, as `clean_key` returns it."""

    @property
    def uri(self) -> str:
        """The address of its picture."""

    @property
    def length(self) -> int:
        """Bytes of its picture's file."""

    @property
    def stamp(self) -> str:
        """A text that changes whenever the record does."""

    def load(self) -> Example:
        """Read it.

        Raises:
            Exception: that failed, see `attempt`.
        """


@dataclass(frozen=True)
class Group:
    """An item of consecutive entries; records that were refused when they were listed are among them as rejects."""

    entries: tuple[Entry | Reject, ...]

    @property
    def stamp(self) -> str:
        """Every entry's stamp."""
        return "\n".join(repr(entry) if isinstance(entry, Reject) else entry.stamp for entry in self.entries)

    def read(self) -> Iterator[Unloaded | Reject]:
        """Yield a record per entry."""
        for entry in self.entries:
            yield entry if isinstance(entry, Reject) else Unloaded(entry.key, entry.uri, entry.load)


def refuse(key: str, uri: str, reason: Reason, detail: str) -> Reject:
    """Make the reject of a record that cannot be read."""
    return Reject(key, uri, STAGE, reason, " ".join(detail.split())[:500])


def attempt(key: str, uri: str, load: Callable[[], Example], attempts: int = ATTEMPTS) -> Outcome:
    """Return the example that `load` returns, or a reject if it raises: a bad record never stops a job.

    While a read fails for a cause that may pass, it is tried again, `attempts` times in all.

    Raises:
        SubjectloomError: no record is the cause, see `check_blame`.
    """
    try:
        return retry(load, attempts)
    except OSError as error:
        if is_passing(error):
            return reject_of(key, uri, STAGE, error)
        return refuse(key, uri, Reason.UNREADABLE_FILE, str(error))
    except Exception as error:  # decoders and parsers raise a dozen types for what no specification allows
        check_blame(error, STAGE)
        return reject_of(key, uri, STAGE, error)


def to_example(
    key: str, image: bytes | None, caption: object, source: Source, beside: Mapping[str, bytes] | None = None
) -> Example:
    """Make an example of the bytes of a picture file and its caption, a text or a list of several.

    The first of several is the caption; of a picture without any it is "". `beside` are files that belong to the
    picture, by what follows its name; those of `MAP_FILES` are kept.

    Raises:
        RecordError: the picture is missing, or the picture or the caption cannot be used; INVALID_MAP, it has maps and
            its EXIF orientation turns it.
    """
    if image is None:
        raise RecordError(Reason.MISSING_IMAGE, "there is no picture with the caption")
    text, *others = usable_captions(caption) or [""]
    jpeg, pixels = to_stored_jpeg(image)
    height, width, _ = pixels.shape
    source = Source(_encodable(source.uri), _encodable(source.license))
    given = {MAP_FILES[name]: content for name, content in (beside or {}).items() if name in MAP_FILES}
    if given and is_turned(image):
        raise RecordError(
            Reason.INVALID_MAP,
            "its EXIF orientation turns the picture, and whether its maps are turned too is not known: save it upright",
        )
    return Example(
        key, jpeg, width, height, text, source, text, other_captions=tuple(others), given=given, _pixels=pixels
    )


def stated_scores(fields: Mapping[str, Any]) -> dict[str, float]:
    """Return the probabilities of a watermark and of unsafe content that metadata state.

    They stand under the names that LAION and DataComp use; a value that is no number in [0, 1] is left out.
    """
    names = {"pwatermark": ("pwatermark",), "nsfw": ("punsafe", "nsfw_prob", "nsfw")}
    stated = {}
    for axis, keys in names.items():
        for key in keys:
            value = fields.get(key)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1:
                stated[axis] = float(value)
                break
    return stated


def usable_captions(caption: object) -> list[str]:
    """The texts of a caption, or of a list of several, as they are stored; empty ones and repetitions are left out.

    Of several, those that cannot be used are left out too.

    Raises:
        RecordError: what `clean_caption` raises, if none can be used and not all are empty.
    """
    texts: list[str] = []
    errors: list[RecordError] = []
    for item in caption if isinstance(caption, (list, tuple)) else [caption]:
        if is_empty(item):
            continue
        try:
            texts.append(clean_caption(item))
        except RecordError as error:
            errors.append(error)
    if errors and not texts:
        raise errors[0]
    return list(dict.fromkeys(texts))


def first_caption(*captions: object) -> object:
    """The first of these that is not empty, a caption or a list of them; None if all are."""
    return next((caption for caption in captions if not is_empty(caption)), None)


def is_empty(caption: object) -> bool:
    """Whether a caption is missing: None, NaN as pandas writes it, no visible character, or a list of such ones."""
    if isinstance(caption, (list, tuple)):
        return all(map(is_empty, caption))
    if isinstance(caption, (str, bytes)):
        try:
            clean_caption(caption)
        except RecordError as error:
            return error.reason is Reason.EMPTY_CAPTION
        return False
    return caption is None or caption != caption  # noqa: PLR0124 - NaN


def clean_caption(caption: object) -> str:
    """Return a caption as it is stored: UTF-8 decoded, without HTML's entities and tags, on one line.

    Control characters (including NUL) count as spaces, and each run of spaces and line breaks becomes one space: text
    encoders read them that way, and a parser would take a line break for a word. The rest stays as it is.

    Raises:
        RecordError: UNDECODABLE_CAPTION (invalid UTF-8, or a value that is no text), EMPTY_CAPTION (no visible
            character), LONG_CAPTION (more than `MAX_CAPTION` characters).
    """
    try:
        text = caption.decode("utf-8-sig") if isinstance(caption, bytes) else caption
        if not isinstance(text, str):
            raise RecordError(Reason.UNDECODABLE_CAPTION, f"the caption is a {type(text).__name__}, not text")
        text.encode("utf-8")  # JSON may contain half a surrogate pair, which cannot be encoded
    except UnicodeError as error:
        raise RecordError(Reason.UNDECODABLE_CAPTION, f"the caption is not valid UTF-8: {error}") from error
    text = undo_markup(text)
    text = " ".join("".join(" " if _is_control(c) else c for c in text).split())
    if not any(c.isprintable() and c != " " for c in text):
        raise RecordError(Reason.EMPTY_CAPTION, "the caption holds no visible character")
    if len(text) > MAX_CAPTION:
        raise RecordError(
            Reason.LONG_CAPTION, f"the caption has {len(text):,} characters, the limit is {MAX_CAPTION:,}"
        )
    return text


def parse_metadata(data: bytes) -> dict[str, Any]:
    """Read the JSON object beside a picture.

    Raises:
        RecordError: UNDECODABLE_CAPTION, it is not a JSON object in UTF-8.
    """
    try:
        fields = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise RecordError(Reason.UNDECODABLE_CAPTION, f"the JSON beside the picture cannot be read: {error}") from error
    if not isinstance(fields, dict):
        raise RecordError(Reason.UNDECODABLE_CAPTION, "the JSON beside the picture is no object with a caption")
    return fields


def caption_of(fields: dict[str, Any]) -> object:
    """The caption in a metadata object, or a list of several: its `caption`, else its `text`, else its `captions`."""
    captions = fields.get("captions")  # may be anything, as a count: only the first two names are a caption's own
    several = captions if isinstance(captions, (str, list)) else None
    return first_caption(fields.get("caption"), fields.get("text"), several)


def source_of(fields: dict[str, Any], uri: str) -> Source:
    """The picture's address (`url`, else `uri`) and licence that a metadata object states."""
    license_ = fields.get("license") or fields.get("LICENSE") or ""
    return Source(str(fields.get("url") or uri), str(license_))


def _is_control(character: str) -> bool:
    return character < " " or "\x7f" <= character <= "\x9f"


def _encodable(text: str) -> str:
    """Escape lone surrogates, with which Python reads a file name that is not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
