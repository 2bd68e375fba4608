"""The files beside the shards: the index, the rejects, `dataset.json`, and the parts that they are composed of."""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from schemas.rejects import Reject
from schemas.strict import StrictModel

INDEX_COLUMNS = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),  # file name of the tar
        ("offset", pa.int64()),  # bytes; tar[offset : offset + size] is a tar of this sample alone
        ("size", pa.int64()),  # bytes
        ("crc32", pa.uint32()),  # of those bytes
        ("caption", pa.string()),
        ("width", pa.int32()),  # pixels
        ("height", pa.int32()),
        ("source", pa.string()),  # address of the picture
        ("license", pa.string()),  # "" where the source states none
    ]
)
"""The columns of `index.parquet` that every recipe has; a recipe adds its own."""

REJECT_COLUMNS = pa.schema([(name, pa.string()) for name in ("key", "source", "stage", "reason", "detail")])

Row = dict[str, Any]
"""A row of the index: column name to value."""

_PART_KEY = b"subjectloom"


class ModelName(StrictModel):
    """A checkpoint: the name it was asked for by, and the commit or content hash it was resolved to."""

    name: str
    revision: str


class Job(StrictModel):
    """How a dataset is made, known before the job starts: the first fields of `dataset.json`.

    `precision` is that of the models, "fp32" or "bf16"; datasets that do not state it were made with fp32. `libraries`
    are versions by name; folders of earlier releases do not state them. `derived` says how a dataset was made from
    others; None for one that was built from pictures.
    """

    recipe: str
    config: dict[str, Any]
    models: dict[str, ModelName]
    seed: int
    precision: str = "fp32"
    libraries: dict[str, str] = Field(default_factory=dict)
    derived: "Derivation | None" = None

    def small_models(self) -> list[str]:
        """Return the kinds of the models, but the parser, that come with the package and know sample scenes only."""
        return [kind for kind, model in self.models.items() if model.name.startswith("sample/") and kind != "parser"]


def shard_fingerprint(chunk: str, job: Job) -> str:
    """Return the SHA-256 of what a shard is made from, its chunk's fingerprint, and how, all fields of the job.

    Fields that earlier releases did not have count only where they are not the default.
    """
    how = json.dumps(job.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
    return hashlib.sha256(f"{chunk}\n{how}".encode("utf-8", "surrogatepass")).hexdigest()


class Counts(StrictModel):
    """The books: `read == written + rejected`. `rejects` counts by stage, then by reason."""

    read: int
    written: int
    rejected: int
    shards: int
    rejects: dict[str, dict[str, int]]


class DatasetInfo(Job):
    """The contents of `dataset.json`.

    `seconds` are summed over workers, by stage; `libraries` names two versions where a resumed run had another one;
    `licenses` counts the samples by the licence that their source states; `gaps` counts, by a name, pictures and
    annotations of the source that have no counterpart there.
    """

    counts: Counts
    seconds: dict[str, float]
    licenses: dict[str, int]
    gaps: dict[str, int] = Field(default_factory=dict)


class Origin(StrictModel):
    """A dataset that another one was made from: its folder, and what its `dataset.json` said."""

    folder: str
    info: DatasetInfo


class Derivation(StrictModel):
    """How a dataset was made from others: the command, its options by name, and these datasets."""

    command: str
    options: dict[str, Any]
    origins: list[Origin]


Job.model_rebuild()
DatasetInfo.model_rebuild()


class RejectRow(StrictModel):
    """A row of `rejects.parquet`."""

    key: str
    source: str
    stage: str
    reason: str
    detail: str

    @classmethod
    def of(cls, reject: Reject) -> "RejectRow":
        """Take the fields of `reject`."""
        return cls(
            key=reject.key,
            source=_printable(reject.source),
            stage=reject.stage,
            reason=str(reject.reason),
            detail=_printable(reject.detail),
        )


def _printable(text: str) -> str:
    # A file name that is not UTF-8 reaches Python with lone surrogates, which neither Arrow nor JSON takes.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class Part(StrictModel):
    """The books of one shard. Its file appears after the shard's tar and marks the shard as done.

    `fingerprint` is that of what the shard was made from and how; a part with another one is out of date.
    """

    shard: int
    fingerprint: str
    read: int
    written: int
    rejects: list[RejectRow]
    seconds: dict[str, float]


def part_name(shard: int) -> str:
    """Return the file name of a part."""
    return f"part-{shard:06d}.parquet"


def encode_part(part: Part, rows: Sequence[Row], columns: pa.Schema) -> bytes:
    """Write `part` as Parquet: the shard's rows of the index as the table, the rest in the file's metadata."""
    table = pa.Table.from_pylist(list(rows), schema=columns)
    return table_to_parquet(table.replace_schema_metadata({_PART_KEY: part.model_dump_json()}))


def decode_part(metadata: Mapping[bytes, bytes]) -> Part:
    """Read the part out of a Parquet file's metadata, without its rows."""
    return Part.model_validate_json(metadata[_PART_KEY])


def rejects_table(rejects: Iterable[RejectRow]) -> pa.Table:
    """Make the table of `rejects.parquet`, sorted by key, stage and source."""
    rows = sorted((r.model_dump() for r in rejects), key=lambda r: (r["key"], r["stage"], r["source"]))
    return pa.Table.from_pylist(rows, schema=REJECT_COLUMNS)


def table_to_parquet(table: pa.Table) -> bytes:
    """Encode a table as a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def to_json(value: Mapping[str, Any]) -> bytes:
    """Encode as readable JSON in UTF-8, ending in a line break."""
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()
