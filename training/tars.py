"""Where the samples of tars lie, and reading them there, from local files and from any address that fsspec opens.

The places come from the `index.parquet` beside the tars. Without one the headers of each tar are read, once: for tars
at addresses the places are kept in `~/.cache/subjectloom`.
"""

import atexit
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
import numpy as np
import pyarrow.parquet as pq
import webdataset
from numpy.typing import NDArray
from webdataset import tariterators

from schemas.errors import InputError
from schemas.shards import BLOCK

Raw = Mapping[str, Any]
"""A sample as webdataset reads it: `__key__`, `__url__` and its members by their endings, as `jpg` and `json`."""
Places = NDArray[np.int64]
"""Where the samples of a tar lie, in order: [N, 2], first byte and number of bytes."""

LIBRARIES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
"""What fsspec needs to open an address, by protocol."""
CONNECTIONS = 8
"""Tars at addresses whose headers are read at the same time."""
META = re.compile(r"__[^/]*__($|/)")
"""Members that webdataset passes over."""
PAUSES = (1, 5, 25)
"""Seconds before a failed read from an address is tried again."""
STATE = {"size", "ETag", "etag", "LastModified", "Last-Modified", "updated", "mtime", "created"}
"""What the filesystems of fsspec state about a file and what changes with it."""


@dataclass(frozen=True, eq=False)
class Tar:
    """A tar and its samples.

    Attributes:
        url: its path or address.
        source: where it is read: `url` or, where parts of that cannot be read, a local copy.
        places: of its samples.
    """

    url: str
    source: str
    places: Places


def find_tars(data: str, recipe: str) -> list[Tar]:
    """Find tars and their samples.

    Args:
        data: a dataset's folder, or tars, by path or address; braces name several tars.
        recipe: prefix of the names of the folder's tars.

    Raises:
        InputError: there is no tar, one cannot be read, or the index names other tars or samples.
    """
    if _is_folder(data):
        return _tars_of_folder(data, recipe)
    urls = webdataset.shardlists.expand_urls(data)
    missing = [url for url in urls if not _is_address(url) and not Path(url).is_file()]
    if missing:
        raise InputError(f"no shard {missing[0]}: name the folder of a dataset, or its tars")
    indexes = {folder: _read_index(folder) for folder in {url.rpartition("/")[0] for url in urls}}
    parts = [url.rpartition("/") for url in urls]
    return _find_all({url: indexes[folder].get(name) for url, (folder, _, name) in zip(urls, parts, strict=True)})


def _tars_of_folder(folder: str, recipe: str) -> list[Tar]:
    sizes, index = _list_folder(folder, recipe), _read_index(folder)
    if _exists(_join(folder, ".subjectloom/job.json")) and not _exists(_join(folder, "dataset.json")):
        raise InputError(
            f"the dataset {folder} is not finished: `subjectloom build` with --resume finishes it. To train on the "
            f"{len(sizes)} shards that are there, name them, as in {_join(folder, next(iter(sizes)))}"
        )
    advice = f"`subjectloom inspect {folder}` says what is wrong"
    for name, places in index.items():
        held = int(np.count_nonzero(places.sum(axis=1) <= sizes.get(name, 0)))
        if held < len(places):  # a tar cut off between two members ends like a whole one
            tar = _join(folder, name)
            raise InputError(f"the shard {tar} holds {held} samples, the index says {len(places)}: {advice}")
    found = _find_all({_join(folder, name): index.get(name) for name in sizes})
    for name, unlisted in zip(sizes, found, strict=True):
        if index and name not in index and len(unlisted.places):
            raise InputError(f"the shard {unlisted.url} is not in the index beside it: {advice}")
    return found


def _find_all(urls: Mapping[str, Places | None]) -> list[Tar]:
    with ThreadPoolExecutor(CONNECTIONS if any(map(_is_address, urls)) else 1) as pool:
        return list(pool.map(_find_tar, urls, urls.values()))


def _find_tar(url: str, places: Places | None) -> Tar:
    with _reading(url):
        source = url if _opens_in_parts(url) else _copy(url)
        if places is None:
            places = _remembered_places(source) if _is_address(source) else find_places(source)
    return Tar(url, source, places)


def _is_address(data: str) -> bool:
    return "://" in data or data.startswith("pipe:")


def _join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}" if folder else name


def _filesystem(url: str) -> tuple[Any, str]:
    """Return fsspec's filesystem of an address, and the path in it.

    Raises:
        InputError: a library is missing, or no filesystem has this protocol.
    """
    try:
        return cast("tuple[Any, str]", fsspec.core.url_to_fs(url))
    except (ImportError, ValueError) as error:
        library = LIBRARIES.get(url.partition("://")[0])
        raise InputError(f"{url}: {f'pip install {library} to read it' if library else error}") from error


@contextmanager
def _reading(url: str, what: str = "the shard ") -> Iterator[None]:
    advice = "is that its address, and can it be reached?" if _is_address(url) else "`subjectloom inspect` may say more"
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{what}{url} cannot be read: there is no such file; {advice}") from error
    except Exception as error:  # the libraries behind an address raise errors of their own
        raise InputError(f"{what}{url} cannot be read: {str(error) or type(error).__name__}; {advice}") from error


# Folders and the index.


def _is_folder(data: str) -> bool:
    if not _is_address(data):
        return Path(data).is_dir()
    if data.startswith(("pipe:", "http:", "https:")) or data.endswith(".tar"):
        return False
    with _reading(data, ""):
        filesystem, path = _filesystem(data)
        return bool(filesystem.isdir(path))


def _list_folder(folder: str, recipe: str) -> dict[str, int]:
    """Return the names of a folder's tars, sorted, and their sizes in bytes."""
    pattern = f"{recipe}-[0-9]*.tar"
    if _is_address(folder):
        with _reading(folder, ""):
            filesystem, path = _filesystem(folder)
            listing = filesystem.glob(f"{path.rstrip('/')}/{pattern}", detail=True)
        sizes = {path.rpartition("/")[2]: int(info["size"]) for path, info in listing.items()}
    else:
        sizes = {path.name: path.stat().st_size for path in Path(folder).glob(pattern)}
    if not sizes:
        if (recipe_there := _recipe_of(folder)) not in ("", recipe):
            raise InputError(f"{folder} holds a {recipe_there} dataset, not one of {recipe}")
        raise InputError(
            f"{folder} holds no shard: expected {recipe}-000000.tar ..., as `subjectloom build {recipe}` writes"
        )
    return dict(sorted(sizes.items()))


def _recipe_of(folder: str) -> str:
    """Return the recipe of the finished dataset in `folder`, "" if there is none."""
    path = _join(folder, "dataset.json")
    if not _exists(path):
        return ""
    with _reading(path, ""), _open(path) as stream:
        return str(json.load(stream)["recipe"])


def _exists(path: str) -> bool:
    return bool(_filesystem(path)[0].exists(path)) if _is_address(path) else Path(path).is_file()


def _read_index(folder: str) -> dict[str, Places]:
    """Read the places of a dataset's samples, by the name of the tar; empty if there is no index that states them."""
    path = _join(folder, "index.parquet")
    if folder.startswith("pipe:") or not _exists(path):
        return {}
    columns = ["shard", "offset", "size"]
    with _reading(path, ""), _open(path) as stream:
        file = pq.ParquetFile(stream)
        if not set(columns) <= set(file.schema_arrow.names):
            return {}
        table = file.read(columns).sort_by([("shard", "ascending"), ("offset", "ascending")])
    names, starts = np.unique(table["shard"].to_numpy().astype(str), return_index=True)
    places = np.stack([table["offset"].to_numpy(), table["size"].to_numpy()], axis=1)
    return dict(zip(names.tolist(), np.split(places, starts[1:]), strict=True))


# Places without an index.


def find_places(source: str) -> Places:
    """Read the headers of the tar at a path or an address; consecutive members of one key are a sample."""
    starts, ends, key = [], [], None
    with _open(source) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
        for info in tar:
            cast("Any", tar).members = []  # it would keep them all
            end = info.offset_data + info.size + -info.size % BLOCK
            base = tariterators.base_plus_ext(info.name)[0]
            if not info.isreg() or base is None or META.match(info.name):
                continue
            if base != key:
                starts.append(info.offset)
                ends.append(end)
            key, ends[-1] = base, end
    return np.stack([np.array(starts, np.int64), np.array(ends, np.int64) - np.array(starts, np.int64)], axis=1)


def _remembered_places(url: str) -> Places:
    """Read the places of a tar at an address from the cache; if it or the cache is new, from the tar."""
    filesystem, path = _filesystem(url)
    state = {name: str(value) for name, value in filesystem.info(path).items() if name in STATE}
    identity = f"{url.partition('?')[0]} {sorted(state.items())}"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "subjectloom"
    cached = folder / f"{hashlib.sha256(identity.encode()).hexdigest()}.npy"
    with suppress(OSError, ValueError):
        return cast("Places", np.load(cached))
    places = find_places(url)
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        aside = cached.with_suffix(f".{os.getpid()}")
        with aside.open("wb") as file:
            np.save(file, places)
        aside.replace(cached)
    return places


def _open(source: str) -> BinaryIO:
    if not _is_address(source):
        return Path(source).open("rb")
    filesystem, path = _filesystem(source)
    return cast("BinaryIO", filesystem.open(path, "rb"))


def _opens_in_parts(url: str) -> bool:
    """Whether bytes from the middle can be asked for: not those of a pipe, and not of every web server."""
    if url.startswith(("http:", "https:")):
        filesystem, path = _filesystem(url)
        return len(filesystem.cat_file(path, start=0, end=1)) == 1
    return not url.startswith("pipe:")


def _copy(url: str) -> str:
    """Copy a tar to a folder that is deleted when this process ends."""
    target = _copies() / hashlib.sha256(url.encode()).hexdigest()
    if url.startswith("pipe:"):
        with webdataset.gopen(url) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy)
    else:
        filesystem, path = _filesystem(url)
        filesystem.get_file(path, str(target))
    return str(target)


@cache
def _copies() -> Path:
    folder = tempfile.mkdtemp(prefix="subjectloom-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


# Reading samples.


def read_at(places: Sequence[tuple[Tar, int]]) -> list[Raw]:
    """Read samples, each by its tar and its number in it; those at addresses at the same time.

    Raises:
        InputError: one cannot be read.
    """
    ranges = [(tar.source, *tar.places[number].tolist()) for tar, number in places]
    samples = []
    for (tar, _), (_, _, size), block in zip(places, ranges, _read_ranges(ranges), strict=True):
        with _reading(tar.url):
            if isinstance(block, Exception):
                raise block
            if len(block) != size:
                raise EOFError(f"{size} bytes of a sample expected, {len(block)} found")
            samples.append(_parse(block, tar.url))
    return samples


def _read_ranges(ranges: Sequence[tuple[str, int, int]]) -> list[bytes | Exception]:
    """Read parts of files: each is a path or address, the first byte and the number of bytes."""
    blocks: list[bytes | Exception] = [b""] * len(ranges)
    remote: dict[Any, list[int]] = defaultdict(list)
    for number, (source, start, size) in enumerate(ranges):
        if _is_address(source):
            remote[_filesystem(source)[0]].append(number)
        else:
            blocks[number] = _read_local(source, start, size)
    for filesystem, numbers in remote.items():
        paths = [_filesystem(ranges[number][0])[1] for number in numbers]
        starts = [ranges[number][1] for number in numbers]
        ends = [sum(ranges[number][1:]) for number in numbers]
        for number, block in zip(numbers, _read_remote(filesystem, paths, starts, ends), strict=True):
            blocks[number] = block
    return blocks


def _read_local(path: str, start: int, size: int) -> bytes | Exception:
    try:
        with Path(path).open("rb") as file:
            file.seek(start)
            return file.read(size)
    except OSError as error:
        return error


def _read_remote(filesystem: Any, paths: list[str], starts: list[int], ends: list[int]) -> list[bytes | Exception]:  # noqa: ANN401
    for pause in PAUSES:
        blocks = filesystem.cat_ranges(paths, starts, ends)
        failed = [block for block in blocks if isinstance(block, Exception)]
        if not failed or any(isinstance(error, FileNotFoundError | PermissionError) for error in failed):
            return cast("list[bytes | Exception]", blocks)
        time.sleep(pause)
    return cast("list[bytes | Exception]", filesystem.cat_ranges(paths, starts, ends))


def _parse(block: bytes, url: str) -> Raw:
    files = tariterators.tar_file_iterator(io.BytesIO(block))
    samples = list(tariterators.group_by_keys({"__url__": url, **file} for file in files))
    if len(samples) != 1:
        raise ValueError(f"expected one sample, found {[sample['__key__'] for sample in samples]}")
    return cast("Raw", samples[0])
