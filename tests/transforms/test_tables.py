import io
from itertools import chain, pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import transforms.tables
from transforms.tables import every_kth, sort_tables, write_tables

SCHEMA = pa.schema([("key", pa.string()), ("tags", pa.list_(pa.string())), ("number", pa.int64())])


def tables(count: int, per_table: int) -> list[pa.Table]:
    numbers = np.random.default_rng(0).permutation(count).tolist()
    rows = [{"key": f"{n // 3:05d}", "tags": ["t"] * (n % 3), "number": n} for n in numbers]
    return [pa.Table.from_pylist(rows[i : i + per_table], SCHEMA) for i in range(0, count, per_table)]


@pytest.mark.parametrize("in_memory", [10_000, 50])
def test_tables_are_sorted_in_ranges_that_hold_equal_keys_together(
    monkeypatch: pytest.MonkeyPatch, in_memory: int
) -> None:
    monkeypatch.setattr(transforms.tables, "IN_MEMORY", in_memory)
    monkeypatch.setattr(transforms.tables, "SAMPLE", 100)
    source = tables(1000, 13)
    ordered = list(sort_tables(lambda: iter(source), ["key"]))
    keys = [table["key"].to_pylist() for table in ordered]
    assert list(chain(*keys)) == sorted(f"{n // 3:05d}" for n in range(1000))
    assert all(a[-1] < b[0] for a, b in pairwise(keys))
    assert max(map(len, keys)) <= max(3 * in_memory, 60)  # a sample of at least 50 keys bounds the ranges
    assert {row["number"] for table in ordered for row in table.to_pylist()} == set(range(1000))
    assert ordered[0].schema.field("key").type == pa.large_string()
    assert ordered[0].schema.field("tags").type == pa.large_list(pa.large_string())


def test_equal_first_columns_are_sorted_by_the_next() -> None:
    (ordered,) = sort_tables(lambda: [pa.table({"a": ["x", "x", "w"], "b": ["2", "1", "3"]})], ["a", "b"])
    assert ordered.to_pydict() == {"a": ["w", "x", "x"], "b": ["3", "1", "2"]}


def test_no_rows_are_no_table_and_a_file_without_rows() -> None:
    assert list(sort_tables(lambda: [SCHEMA.empty_table()], ["key"])) == []
    stream = io.BytesIO()
    write_tables(stream, [], SCHEMA)
    assert pq.read_table(io.BytesIO(stream.getvalue())).schema == SCHEMA


def test_one_file_has_the_types_it_was_asked_for_and_evenly_spaced_rows_can_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transforms.tables, "ROW_GROUP", 30)
    stream = io.BytesIO()
    write_tables(stream, sort_tables(lambda: tables(100, 9), ["key"]), SCHEMA)
    file = pq.ParquetFile(io.BytesIO(stream.getvalue()))
    assert file.schema_arrow.equals(SCHEMA)
    assert file.num_row_groups == 4
    everything = file.read()
    assert every_kth(file, 1000).equals(everything)
    assert every_kth(file, 40)["number"].to_pylist() == everything["number"].to_pylist()[::3]
    assert every_kth(file, 50, ["key"]).schema.names == ["key"]
