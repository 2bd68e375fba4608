"""What the models of a build found, kept beside the shards: a changed threshold or gate then runs no model.

    OUT/.subjectloom/candidates-000000.parquet        of a shard: piece, key, reason, record
    OUT/.subjectloom/candidate-pieces/                of batches whose shard is not done

The steps of a recipe up to the last one with a model find candidates, those behind it choose among them. A row is a
record as it came out of the former, without its picture: of that it has a digest, by which the picture is found when
the source is read again. The file states the fingerprint of what its rows were made from: the source, the steps before
it with their options, the models, the libraries. So it depends on no field that is used behind it.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.dataset import Job, RejectRow, table_to_parquet
from schemas.errors import SubjectloomError
from schemas.example import Example
from schemas.plain import from_plain, to_plain
from schemas.rejects import Reason, Reject
from transforms.batch import Batch, Outcome
from transforms.dataset import STATE
from transforms.files import (
    exists,
    join,
    list_files,
    open_file,
    read_file,
    remove_empty_folder,
    remove_files,
    replace_file,
)
from transforms.step import Step

COLUMNS = pa.schema([(name, pa.string()) for name in ("piece", "key", "reason", "record")])
PIECES = "candidate-pieces"
PATTERN = r"\.subjectloom/candidates-\d{6,}\.parquet"

_KEY = b"subjectloom"


def model_steps(steps: Sequence[Step]) -> int:
    """Return how many steps, from the first one on, find candidates: up to the last one that runs a model.

    0 if none does, or if none follows it.
    """
    last = max((number for number, step in enumerate(steps, start=1) if step.checkpoints()), default=0)
    return last if last < len(steps) else 0


def candidates_stamp(steps: Sequence[Step], job: Job, config: Mapping[str, Any]) -> str:
    """Return a text that changes when candidates do, apart from the source.

    Args:
        steps: those that find them.
        job: how the dataset is made: its models, precision and libraries count.
        config: the fields that all recipes have.
    """
    kinds = {kind for step in steps for kind in step.checkpoints()}
    how = {
        "steps": [_signature(step) for step in steps],
        "models": {kind: model.model_dump() for kind, model in sorted(job.models.items()) if kind in kinds},
        "precision": job.precision,
        "libraries": job.libraries,
        "config": dict(config),
    }
    return json.dumps(how, sort_keys=True, default=repr)


def _signature(step: Step) -> list[Any]:
    """A step's name and options, but for how workers hold its model."""
    options = {field.name: repr(getattr(step, field.name)) for field in fields(step) if field.name != "hosting"}
    return [type(step).__name__, options, step.stamp()]


def candidates_name(shard: int) -> str:
    """Return the name of the file with the candidates of a shard, in `STATE`."""
    return f"candidates-{shard:06d}.parquet"


def stored_candidates(output: str, shards: Iterable[int]) -> dict[int, str]:
    """Return the fingerprints of the candidates that are there, by shard; damaged files are none."""
    found = {}
    for shard in shards:
        path = join(output, STATE, candidates_name(shard))
        if exists(path):
            try:
                with open_file(path) as stream:
                    found[shard] = pq.read_schema(stream).metadata[_KEY].decode()
            except (pa.ArrowException, KeyError, TypeError, ValueError):
                continue
    return found


@dataclass(eq=False)
class KeepCandidates(beam.PTransform):
    """Write the records of each batch to a piece in the dataset's folder `output`, and pass them on."""

    output: str

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Write each batch by itself."""
        output = self.output
        return batches | "keep candidates" >> beam.Map(lambda batch: write_candidates(output, batch))


def write_candidates(output: str, batch: Batch) -> Batch:
    """Write the records of a batch to a piece, and return the batch."""
    piece = batch.piece.rpartition("/")[2]
    rows = [{"piece": piece, **_row(record)} for record in batch.records]
    content = table_to_parquet(pa.Table.from_pylist(rows, schema=COLUMNS))
    replace_file(join(output, STATE, PIECES, batch.piece), content)
    return batch


def _row(record: Outcome) -> dict[str, str]:
    if isinstance(record, Reject):
        return {"key": record.key, "reason": record.reason, "record": RejectRow.of(record).model_dump_json()}
    plain = to_plain(replace(record, image=_digest(record.image)))
    return {"key": record.key, "reason": "", "record": json.dumps(plain, ensure_ascii=True)}


def _digest(image: bytes) -> bytes:
    return hashlib.blake2b(image, digest_size=16).digest()


def compose_candidates(output: str, folder: str, shard: int, fingerprint: str, pieces: Sequence[str]) -> None:
    """Compose the candidates of a shard of its pieces, and remove these.

    Nothing is written if they are there already, or if some are missing: an earlier run may not have kept them.

    Args:
        output: the dataset's folder.
        folder: of the shard's pieces, as `Batch.piece` begins.
        shard: its number.
        fingerprint: of the candidates.
        pieces: the names of all pieces of the shard.
    """
    place = join(output, STATE, PIECES, folder)
    names = list_files(place)
    # A later step may make several batches of one, numbered behind its name.
    needed = {name if name in names else name[: -len("-000000")] for name in pieces}
    if stored_candidates(output, [shard]).get(shard) != fingerprint:
        path = join(output, STATE, candidates_name(shard))
        if needed and needed <= {*names}:
            tables = [pq.read_table(io.BytesIO(read_file(join(place, name)))) for name in sorted(needed)]
            whole = pa.concat_tables(tables).replace_schema_metadata({_KEY: fingerprint})
            replace_file(path, table_to_parquet(whole))
        else:
            remove_files([path])
    remove_files(join(place, name) for name in names)
    remove_empty_folder(place)


@dataclass(eq=False)
class TakeCandidates(beam.PTransform):
    """Put what the models found in place of the records that were read, whose pictures it gets."""

    output: str

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Replace each batch by itself."""
        return batches | "take candidates" >> beam.ParDo(_Take(self.output))


class _Take(beam.DoFn):
    """Holds the candidates of one shard at a time."""

    def __init__(self, output: str) -> None:
        self._output = output
        self._shard, self._pieces = -1, dict[str, list[Outcome]]()

    def process(self, batch: Batch) -> Iterator[Batch]:
        if batch.shard != self._shard:
            self._shard, self._pieces = batch.shard, read_candidates(self._output, batch.shard)
        yield from take_candidates(batch, self._pieces)


def read_candidates(output: str, shard: int) -> dict[str, list[Outcome]]:
    """Return the candidates of a shard by piece, in order; in place of their pictures they have digests.

    Raises:
        SubjectloomError: they cannot be read.
    """
    path = join(output, STATE, candidates_name(shard))
    pieces: dict[str, list[Outcome]] = {}
    try:
        for row in pq.read_table(io.BytesIO(read_file(path)), columns=["piece", "reason", "record"]).to_pylist():
            pieces.setdefault(row["piece"], []).append(_record(row))
    except (pa.ArrowException, OSError, TypeError, ValueError, KeyError) as error:
        raise _unfit(path) from error
    return pieces


def _record(row: Mapping[str, str]) -> Outcome:
    plain = json.loads(row["record"])
    if row["reason"]:
        return Reject(**{**plain, "reason": Reason(plain["reason"])})
    example: Example = from_plain(Example, plain)
    return example


def take_candidates(batch: Batch, pieces: Mapping[str, Sequence[Outcome]]) -> Iterator[Batch]:
    """Yield the batches of candidates that a batch, which was read, became: one, or several for several captions.

    Raises:
        SubjectloomError: they belong to other pictures.
    """
    folder, _, piece = batch.piece.rpartition("/")
    images = {_digest(record.image): record for record in batch.records if isinstance(record, Example)}
    names = [name for name in pieces if name == piece or name.startswith(f"{piece}-0")]
    if not names:
        raise _unfit(candidates_name(batch.shard))
    for number, name in enumerate(names):
        try:
            records = tuple(_with_picture(record, images) for record in pieces[name])
        except KeyError as error:
            raise _unfit(candidates_name(batch.shard)) from error
        yield replace(batch, records=records, piece=f"{folder}/{name}", seconds=() if number else batch.seconds)


def _with_picture(record: Outcome, images: Mapping[bytes, Example]) -> Outcome:
    return record if isinstance(record, Reject) else replace(record, image=images[record.image].image)


def _unfit(path: str) -> SubjectloomError:
    return SubjectloomError(f"{path} does not belong to this source: remove it, and run again with --resume")
