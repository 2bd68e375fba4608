"""Write samples into WebDataset shards, and the records of a job into a dataset.

`WriteWebDataset` is a tar sink for any Beam pipeline. `WriteDataset` is the end of every recipe: it also writes the
books of each shard, in a part that appears after the shard and marks it as done.
"""

import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import compress

import apache_beam as beam
import pyarrow.parquet as pq

from schemas.dataset import Part, RejectRow, Row, decode_part, encode_part, part_name
from schemas.errors import InputError, SubjectloomError
from schemas.rejects import Reason
from schemas.samples.base import SampleFormat
from schemas.shards import Entry, Sample, fragment, shard_name, tar_size, write_fragments
from schemas.webshart import Entries, encode_index, index_name, noting_entries
from transforms.batch import Batch
from transforms.candidates import compose_candidates
from transforms.dataset import STATE, check_books
from transforms.files import join, open_file, remove_files, replace_file, replacing
from transforms.pieces import piece_names, read_pieces, remove_pieces, remove_unread_pieces, write_piece
from transforms.read import CreateChunks
from transforms.settled import STAGE, Settled, settle
from transforms.sources.records import Chunk
from transforms.spool import Shelved
from transforms.unread import note_unread


@dataclass(eq=False)
class WriteWebDataset(beam.PTransform):
    """Write `(shard, Sample)` pairs into `PREFIX-000000.tar` and so on; yield a row per sample.

    The samples of a shard are sorted by key, and the tar is a function of them alone: the same samples give the
    same bytes on any runner. It gets its name when it is complete. A row is a dict with `key`, `shard`
    (the tar's file name), `offset`, `size` (bytes) and `crc32`, as an `Entry` has them.
    Samples of one shard are sorted in memory. Two samples of one key in a shard raise an InputError.

        (
            pipeline
            | beam.Create([Sample("dog", {"jpg": jpeg, "txt": b"a dog"}), ...])
            | beam.WithKeys(lambda sample: shard_of(sample.key, shards=100))
            | WriteWebDataset("gs://bucket/animals/train")
        )

    `prefix` is a path on any filesystem that Beam writes to.
    """

    prefix: str

    def expand(self, samples: beam.PCollection[tuple[int, Sample]]) -> beam.PCollection[Row]:
        """Group the samples by shard and write each group."""
        return samples | "by shard" >> beam.GroupByKey() | "write tar" >> beam.FlatMapTuple(self._write)

    def _write(self, shard: int, samples: Iterable[Sample]) -> Iterator[Row]:
        folder, _, name = self.prefix.rpartition("/")
        for entry in write_shard(folder, name, shard, samples):
            yield {"shard": shard_name(name, shard), **asdict(entry)}


@dataclass(eq=False)
class WriteDataset(beam.PTransform):
    """Write batches into the shards of a dataset, with the books of each shard; yield a `Part` per shard.

    `output` is a folder that `prepare_output` made ready, `sample_format` the recipe's. `chunks` are those of the
    shards that this pipeline makes, with the fingerprints of the shards: one without samples gets its part too, so
    that it counts as done. A shard with records that could not be read for a cause that may pass is not written, unless
    `leaves_unread`.
    """

    output: str
    sample_format: SampleFormat
    chunks: Sequence[Chunk | Shelved[Chunk]]
    leaves_unread: bool = False

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Part]:
        """Write a piece for each batch, and compose each shard of its pieces."""
        pieces = batches | "settle" >> beam.Map(self._settle)
        # A shard whose chunk is empty has no batch.
        heads = batches.pipeline | "every shard" >> CreateChunks(self.chunks) | "heads" >> beam.Map(self._head)
        return (
            (pieces, heads)
            | beam.Flatten()
            | "by shard" >> beam.GroupByKey()
            | "commit" >> beam.FlatMapTuple(self._commit)
        )

    def _settle(self, batch: Batch) -> tuple[int, Chunk | None]:
        write_piece(self.output, batch.piece, self.sample_format, settle(batch, self.sample_format))
        return batch.shard, None

    def _head(self, chunk: Chunk) -> tuple[int, Chunk | None]:
        return chunk.shard, replace(chunk, items=())

    def _commit(self, _: int, values: Iterable[Chunk | None]) -> Iterator[Part]:
        chunk = next(chunk for chunk in values if chunk)
        part = commit_pieces(self.output, self.sample_format, chunk, leaves_unread=self.leaves_unread)
        if part:
            yield part


def commit_pieces(
    output: str, sample_format: SampleFormat, chunk: Chunk, *, leaves_unread: bool = False
) -> Part | None:
    """Compose the shard of `chunk`, whose fingerprint is the shard's, of its pieces, and remove these.

    Of several samples with one key the first is written, the others become rejects. If records could not be read for a
    cause that may pass, nothing is written unless `leaves_unread`, and the pieces of their batches are removed: None.

    Raises:
        SubjectloomError: another number of records was read than was listed, or the shard's books do not balance.
    """
    shard, fingerprint = chunk.shard, chunk.fingerprint
    books, fragments = read_pieces(output, shard, fingerprint)
    if note_unread(output, shard, () if leaves_unread else books.rejects):
        remove_unread_pieces(output, shard, fingerprint)
        return None
    if chunk.expected is not None and books.read != chunk.expected:
        remove_pieces(output, shard, fingerprint)
        raise SubjectloomError(
            f"{shard_name(sample_format.recipe, shard)}: {chunk.expected} records were listed for it, {books.read} "
            "were read: did the source change? run again with --resume"
        )
    is_first = [not i or row["key"] != books.rows[i - 1]["key"] for i, row in enumerate(books.rows)]
    twins = [twin_reject(row) for row, first in zip(books.rows, is_first, strict=True) if not first]
    kept = replace(books, rows=tuple(compress(books.rows, is_first)), rejects=(*books.rejects, *twins))
    part = commit_fragments(output, sample_format, shard, fingerprint, kept, compress(fragments, is_first))
    if chunk.candidates:
        folder, names = piece_names(output, shard, fingerprint)
        compose_candidates(output, folder, shard, chunk.candidates, names)
    remove_pieces(output, shard, fingerprint)
    return part


def twin_reject(row: Row) -> RejectRow:
    """The reject of a sample whose key an earlier sample of its shard has."""
    detail = "an earlier sample of its shard has the same key"
    return RejectRow(key=row["key"], source=row["source"], stage=STAGE, reason=Reason.DUPLICATE_KEY, detail=detail)


def commit_shard(
    output: str, sample_format: SampleFormat, shard: int, fingerprint: str, settled: Sequence[Settled]
) -> Part:
    """Write a shard of batches that are in memory, and then its part.

    Raises:
        InputError: two samples of the shard have one key.
        SubjectloomError: the shard's books do not balance.
    """
    samples = sorted((sample for s in settled for sample in s.samples), key=lambda sample: sample.key)
    books = Settled(
        read=sum(s.read for s in settled),
        rows=tuple(sorted((row for s in settled for row in s.rows), key=lambda row: row["key"])),
        rejects=tuple(reject for s in settled for reject in s.rejects),
        seconds=tuple(pair for s in settled for pair in s.seconds),
    )
    return commit_fragments(output, sample_format, shard, fingerprint, books, ((s.key, fragment(s)) for s in samples))


def rewrite_shard(
    output: str,
    sample_format: SampleFormat,
    shard: int,
    fingerprint: str,
    refuse: Callable[[Row], RejectRow | None],
    stage: str,
) -> Part:
    """Write a shard again without some of its samples, the others unchanged, and its part under `fingerprint`.

    Args:
        output: the dataset's folder.
        sample_format: the recipe's.
        shard: number of the shard.
        fingerprint: the shard's from now on.
        refuse: returns the reject of the sample with this row of the index, None if it stays.
        stage: what the time is booked on.

    Raises:
        InputError: a sample in the shard has another checksum than its row of the index.
    """
    started = time.perf_counter()
    with open_file(join(output, STATE, part_name(shard))) as stream:
        table = pq.read_table(stream)
    part = decode_part(table.schema.metadata)
    rows = table.to_pylist()
    refused = [refuse(row) for row in rows]
    kept = tuple(row for row, reject in zip(rows, refused, strict=True) if not reject)
    rejects = (*part.rejects, *(reject for reject in refused if reject))
    seconds = (*part.seconds.items(), (stage, time.perf_counter() - started))
    fragments = _read_fragments(join(output, shard_name(sample_format.recipe, shard)), kept)
    return commit_fragments(
        output, sample_format, shard, fingerprint, Settled(part.read, (), kept, rejects, seconds), fragments
    )


def _read_fragments(path: str, rows: Sequence[Row]) -> Iterator[tuple[str, bytes]]:
    """Yield the keys and the fragments of the samples of a shard with these rows of the index."""
    if not rows:
        return
    with open_file(path) as stream:
        for row in rows:
            stream.seek(row["offset"])
            content = stream.read(row["size"])
            if zlib.crc32(content) != row["crc32"]:
                raise InputError(
                    f"{path}: the sample {row['key']} is damaged: remove this file and run again with --resume"
                )
            yield row["key"], content


def commit_fragments(
    output: str,
    sample_format: SampleFormat,
    shard: int,
    fingerprint: str,
    books: Settled,
    fragments: Iterable[tuple[str, bytes]],
) -> Part:
    """Write a shard of `fragments`, by key and one at a time, and then its part; `books.rows` are in the same order.

    Raises:
        SubjectloomError: the shard's books do not balance.
    """
    started = time.perf_counter()
    name = shard_name(sample_format.recipe, shard)
    path, index = join(output, name), join(output, index_name(name))
    # From the moment that the tar is another one until its part is written, it must not look done.
    old = join(output, STATE, part_name(shard))
    files: Entries = {}
    entries = _write_fragments(path, noting_entries(fragments, books.rows, files), before=old) if books.rows else []
    if entries:
        replace_file(index, encode_index(name, tar_size(entries), files))
    else:
        remove_files([old, path, index])
    rows = [row | asdict(entry) for row, entry in zip(books.rows, entries, strict=True)]
    seconds: dict[str, float] = defaultdict(float)
    for stage, spent in books.seconds:
        seconds[stage] += spent
    seconds[STAGE] += time.perf_counter() - started
    part = Part(
        shard=shard,
        fingerprint=fingerprint,
        read=books.read,
        written=len(entries),
        rejects=list(books.rejects),
        seconds=dict(seconds),
    )
    check_books(part.read, part.written, len(part.rejects), shard_name(sample_format.recipe, shard))
    replace_file(join(output, STATE, part_name(shard)), encode_part(part, rows, sample_format.index_columns))
    return part


def write_shard(folder: str, prefix: str, shard: int, samples: Iterable[Sample]) -> list[Entry]:
    """Write the tar of a shard, its samples sorted by key; without samples an existing tar is removed.

    Raises:
        InputError: two samples have one key.
    """
    ordered = sorted(samples, key=lambda sample: sample.key)
    path = join(folder, shard_name(prefix, shard)) if folder else shard_name(prefix, shard)
    if not ordered:
        remove_files([path])
        return []
    return _write_fragments(path, ((sample.key, fragment(sample)) for sample in ordered))


def _write_fragments(path: str, fragments: Iterable[tuple[str, bytes]], before: str = "") -> list[Entry]:
    """Write a tar; the file `before` is removed before the tar gets its name."""
    with replacing(path) as stream:
        try:
            entries = write_fragments(stream, fragments)
        except InputError as error:
            raise error if str(error).startswith(path) else InputError(f"{path}: {error}") from error
        remove_files([before] if before else [])
    return entries
