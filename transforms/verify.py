"""Whether a shard on the disk is the one that its books describe."""

import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from schemas.dataset import Job, part_name
from schemas.shards import Entry, shard_name, tar_size
from transforms.dataset import STATE
from transforms.files import is_remote, join, open_file, read_file

_BLOCK = 2**20


def verify_shard(path: str, books: Sequence[Entry]) -> str | None:
    """Compare the tar at `path` with its books, the entries of its samples in order; return what is wrong with it.

    The size is compared, the checksum of each sample, and that nothing but zeros follows the last one. Of a remote tar
    only the size: an object store keeps checksums itself, and reading all of a large dataset would take hours.

    Raises:
        OSError: it cannot be read.
    """
    expected = tar_size(books)
    with open_file(path) as stream:
        size = stream.seek(0, 2)
        if size != expected:
            return f"it has {size:,} bytes instead of {expected:,}"
        if is_remote(path):
            return None
        stream.seek(0)
        for entry in books:
            left, crc32 = entry.size, 0
            while left and (block := stream.read(min(left, _BLOCK))):
                left, crc32 = left - len(block), zlib.crc32(block, crc32)
            if crc32 != entry.crc32:
                return f"the sample {entry.key} has another checksum"
        return "bytes after its last sample are not zero" if any(stream.read()) else None


def intact_shards(output: str, finished: Mapping[int, str], console: Console) -> dict[int, str]:
    """Return those of the finished shards, with their fingerprints, whose tar is as its books say; name the others."""
    if not finished:
        return {}
    recipe = Job.model_validate_json(read_file(join(output, STATE, "job.json"))).recipe
    with console.status("verifying the finished shards"), ThreadPoolExecutor() as pool:
        problems = dict(zip(finished, pool.map(lambda shard: _problem(output, recipe, shard), finished), strict=True))
    for shard, problem in problems.items():
        if problem:
            console.print(f"{shard_name(recipe, shard)} is damaged and is made again: {problem}", soft_wrap=True)
    return {shard: fingerprint for shard, fingerprint in finished.items() if not problems[shard]}


def _problem(output: str, recipe: str, shard: int) -> str | None:
    try:
        with open_file(join(output, STATE, part_name(shard))) as stream:
            rows = pq.read_table(stream, columns=["key", "offset", "size", "crc32"]).to_pylist()
        books = sorted((Entry(**row) for row in rows), key=lambda entry: entry.offset)
        return verify_shard(join(output, shard_name(recipe, shard)), books) if books else None
    except (OSError, pa.ArrowException) as error:
        return str(error)
