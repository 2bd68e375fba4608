import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from schemas.dataset import (
    INDEX_COLUMNS,
    Counts,
    Job,
    ModelName,
    Part,
    RejectRow,
    decode_part,
    encode_part,
    part_name,
    rejects_table,
    shard_fingerprint,
    table_to_parquet,
    to_json,
)
from schemas.rejects import Reason, Reject
from tests.datasets import JOB

LONE_SURROGATE = b"caf\xe9".decode("utf-8", "surrogateescape")
"""A file name that is not UTF-8, as Python reads it."""


def test_a_shard_is_out_of_date_when_its_chunk_or_anything_in_the_job_changed() -> None:
    changed: list[Job] = [
        JOB.model_copy(update=update)
        for update in (
            {"recipe": "mip-adapter"},
            {"config": {"threshold": 0.26, "input": "pictures"}},
            {"models": {"segmenter": ModelName(name="sample", revision="0123abd")}},
            {"seed": 8},
        )
    ]
    fingerprints = [shard_fingerprint("chunk", job) for job in (JOB, *changed)] + [shard_fingerprint("other", JOB)]
    assert len(set(fingerprints)) == 6


def test_the_order_of_the_config_does_not_matter() -> None:
    turned = JOB.model_copy(update={"config": dict(reversed(JOB.config.items()))})
    assert shard_fingerprint("chunk", turned) == shard_fingerprint("chunk", JOB)


def test_a_fingerprint_is_the_same_in_every_release() -> None:
    """`--resume` compares it with the parts of an earlier run: another one would build every shard again."""
    assert shard_fingerprint("chunk", JOB) == "d4aaa303f37f0a90b3feb3af802810122de5fc35b30389d033a88c9344b1735c"


def test_a_config_is_fingerprinted_as_it_is_written() -> None:
    written, held = (JOB.model_copy(update={"config": {"input": value}}) for value in ("pictures", Path("pictures")))
    assert shard_fingerprint("chunk", held) == shard_fingerprint("chunk", written)


def test_a_chunk_may_name_a_file_whose_name_is_no_utf8() -> None:
    assert shard_fingerprint(LONE_SURROGATE, JOB) != shard_fingerprint("caf", JOB)


def test_the_index_has_the_columns_that_its_readers_know() -> None:
    """Names and types are a contract with everyone who reads `index.parquet`."""
    assert [(field.name, str(field.type)) for field in INDEX_COLUMNS] == [
        ("key", "string"),
        ("shard", "string"),
        ("offset", "int64"),
        ("size", "int64"),
        ("crc32", "uint32"),
        ("caption", "string"),
        ("width", "int32"),
        ("height", "int32"),
        ("source", "string"),
        ("license", "string"),
    ]


def reject_row(key: str, stage: str = "match", source: str = "mem://") -> RejectRow:
    return RejectRow(key=key, source=source, stage=stage, reason="no-match", detail="0.1 < 0.2")


def test_rejects_are_sorted_by_key_then_stage_then_source() -> None:
    rows = [
        reject_row("b"),
        reject_row("a", "read", "1"),
        reject_row("a", "match", "2"),
        reject_row("a", "match", "1"),
    ]
    table = rejects_table(rows)
    listed = [(row["key"], row["stage"], row["source"]) for row in table.to_pylist()]
    assert listed == [("a", "match", "1"), ("a", "match", "2"), ("a", "read", "1"), ("b", "match", "mem://")]
    assert table.to_pylist()[0] == {"key": "a", "source": "1", "stage": "match"} | {
        "reason": "no-match",
        "detail": "0.1 < 0.2",
    }


def test_without_rejects_the_table_has_its_columns_all_the_same() -> None:
    table = rejects_table([])
    assert table.column_names == ["key", "source", "stage", "reason", "detail"]
    assert set(table.schema.types) == {pa.string()}


def test_a_reject_becomes_a_row_that_arrow_and_json_take() -> None:
    reject = Reject("k", f"/in/{LONE_SURROGATE}", "read", Reason.EMPTY_IMAGE, f"{LONE_SURROGATE} is empty")
    row = RejectRow.of(reject)
    assert (row.key, row.stage, row.reason) == ("k", "read", "empty-image")
    assert (row.source, row.detail) == (r"/in/caf\udce9", r"caf\udce9 is empty")
    assert rejects_table([row]).to_pylist() == [row.model_dump()]


def test_a_part_comes_back_with_its_rows_beside_it() -> None:
    part = Part(
        shard=2, fingerprint="f", read=3, written=2, rejects=[reject_row("c")], seconds={"read": 0.5, "match": 1.0}
    )
    columns = pa.schema([("key", pa.string()), ("score", pa.float32())])
    rows: list[dict[str, Any]] = [{"key": "a", "score": 0.5}, {"key": "b", "score": 0.25}]
    encoded = encode_part(part, rows, columns)
    table = pq.read_table(io.BytesIO(encoded))
    assert decode_part(table.schema.metadata) == part
    assert table.to_pylist() == rows
    assert table.schema.types == columns.types
    assert pq.read_table(io.BytesIO(encode_part(part, [], columns))).schema.names == columns.names


def test_parts_are_found_by_their_name() -> None:
    """An earlier release's output folder is resumed by it, and its metadata by its key."""
    assert part_name(12) == "part-000012.parquet"
    part = Part(shard=12, fingerprint="f", read=0, written=0, rejects=[], seconds={})
    assert decode_part({b"subjectloom": part.model_dump_json().encode(), b"pandas": b"{}"}) == part


def test_tables_are_compressed_as_zstd() -> None:
    encoded = table_to_parquet(pa.table({"key": ["a" * 1000]}))
    assert pq.ParquetFile(io.BytesIO(encoded)).metadata.row_group(0).column(0).compression == "ZSTD"


def test_json_is_utf8_for_people_and_ends_a_line() -> None:
    assert to_json({"caption": "café", "size": [2, 3]}) == (
        '{\n  "caption": "café",\n  "size": [\n    2,\n    3\n  ]\n}\n'.encode()
    )


def test_what_is_written_as_json_has_no_field_too_many_or_too_few() -> None:
    counts = {"read": 1, "written": 1, "rejected": 0, "shards": 1, "rejects": {}}
    assert Counts.model_validate_json(json.dumps(counts)).read == 1
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Counts.model_validate(counts | {"skipped": 0})
    with pytest.raises(ValidationError, match="Field required"):
        Counts.model_validate({name: value for name, value in counts.items() if name != "shards"})
    with pytest.raises(ValidationError, match="frozen"):
        Counts(**counts).read = 2  # type: ignore[arg-type]
