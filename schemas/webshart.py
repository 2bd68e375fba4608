"""The index beside a shard: where each file of the tar is, as webshart and SimpleTuner's `type: webshart` read it.

    RECIPE-000000.tar    a shard
    RECIPE-000000.json   {"path", "filesize", "includes_image_geometry", "files": {"KEY.jpg": {"offset", ...}}}

An entry of a picture also has `width`, `height`, `aspect` (width / height), `captions`, and the place of the sample's
JSON: `json_path`, `json_offset`, `json_length`. Offsets and lengths are in bytes; an offset is that of the contents.

webshart (github.com/bghira/webshart, `src/metadata.rs`) takes every file for a sample of its own, but for a JSON whose
name differs from another's in the extension alone. `KEY.json` is therefore left out of the entries where no such file
exists, as beside `KEY.target.jpg`; the pictures' entries say where it is.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from typing import Any

from PIL import Image

from schemas.dataset import Row

Entries = dict[str, dict[str, Any]]
"""The files of a tar by their names."""


def index_name(shard: str) -> str:
    """Return the name of the index beside the tar `shard`."""
    return f"{shard.removesuffix('.tar')}.json"


def noting_entries(
    fragments: Iterable[tuple[str, bytes]], rows: Iterable[Row], entries: Entries
) -> Iterator[tuple[str, bytes]]:
    """Yield the keys and fragments of a shard as they are, and add the entries of their files to `entries`.

    `rows` are the rows of the index for the same samples, in the same order.
    """
    offset = 0
    for (key, content), row in zip(fragments, rows, strict=True):
        entries.update(_entries_of(key, content, offset, row))
        offset += len(content)
        yield key, content


def _entries_of(key: str, fragment: bytes, offset: int, row: Row) -> Entries:
    with tarfile.open(fileobj=io.BytesIO(fragment), mode="r:") as tar:
        places = {info.name: {"offset": offset + info.offset_data, "length": info.size} for info in tar}
    name = f"{key}.json"
    described = places.pop(name)
    about = {
        **({"captions": row["caption"]} if row["caption"] else {}),
        "json_path": name,
        "json_offset": described["offset"],
        "json_length": described["length"],
    }
    entries = {}
    for member, place in places.items():
        start = place["offset"] - offset
        is_picture = member.endswith((".jpg", ".png"))
        size = _size_of(fragment[start : start + place["length"]]) if is_picture else {}
        entries[member] = place | (size | about if size else {})
    has_pair = any(member.rpartition(".")[0] == key for member in places)
    return entries | ({name: described} if has_pair else {})


def _size_of(picture: bytes) -> dict[str, Any]:
    """Width, height and aspect out of the header of a picture; {} if it cannot be read."""
    try:
        with Image.open(io.BytesIO(picture)) as opened:
            width, height = opened.size
    except (OSError, ValueError):
        return {}
    return {"width": width, "height": height, "aspect": width / height}


def encode_index(shard: str, size: int, entries: Entries) -> bytes:
    """Encode the index of the tar `shard` of `size` bytes as JSON."""
    content = {"path": shard, "filesize": size, "includes_image_geometry": True, "files": entries}
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
