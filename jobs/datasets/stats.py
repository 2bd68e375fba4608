"""The numbers of a dataset: counts, licences, and what the columns of its index hold, for people or as JSON."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as kinds

from jobs.report.figures import significant
from transforms.dataset import open_table, read_info, read_tables

PLACES = frozenset({"key", "shard", "offset", "size", "crc32", "caption", "source", "license"})
"""Columns whose values say little when they are counted; licences are counted apart."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
TOP = 20
"""Most values of a column of text that are listed."""


def stats(folder: str) -> dict[str, Any]:
    """Return the numbers of a dataset, ready for JSON.

    Returns:
        `recipe`, `counts` (as in `dataset.json`), `bytes` of all samples, `licenses` (samples by licence) and
        `columns`: for a column of numbers, or of lists of them, `values`, `missing`, `min`, `mean`, `max`, `quantiles`;
        for one of text, or of lists of text, `values`, `missing`, `distinct` and `top`, its most frequent values.
        Values are those in the lists, and `missing` are rows.

    Raises:
        InputError: there is no finished dataset, or its index cannot be read.
    """
    info = read_info(folder)
    with open_table(folder, "index.parquet") as file:
        schema = file.schema_arrow
    columns = {
        field.name: described
        for field in schema
        if field.name not in PLACES and (described := _column(folder, field)) is not None
    }
    size = sum(pc.sum(table["size"]).as_py() or 0 for table in read_tables(folder, columns=["size"]))
    head = {"recipe": info.recipe, "counts": info.counts.model_dump(), "bytes": size, "licenses": info.licenses}
    return {**head, "columns": columns}


def _column(folder: str, field: pa.Field) -> dict[str, Any] | None:
    """Describe a column, which is read by itself; None for one of neither numbers nor text, and for hashes."""
    kind = field.type.value_type if kinds.is_list(field.type) else field.type
    if kinds.is_string(kind):
        return _text(folder, field)
    if kinds.is_floating(kind) or kinds.is_signed_integer(kind):
        return _numbers(folder, field)
    return None


def _values(folder: str, field: pa.Field) -> Iterator[tuple[int, pa.ChunkedArray]]:
    """Yield how many rows miss the column, and the values that the others have, for some rows at a time."""
    for table in read_tables(folder, columns=[field.name]):
        column = table[field.name]
        values = pc.list_flatten(column) if kinds.is_list(field.type) else column
        yield column.null_count, values.drop_null()


def _text(folder: str, field: pa.Field) -> dict[str, Any]:
    counts, missing = Counter[str](), 0
    for nulls, values in _values(folder, field):
        missing += nulls
        counts.update({row["values"]: row["counts"] for row in pc.value_counts(values).to_pylist()})
    top = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:TOP]
    return {"values": counts.total(), "missing": missing, "distinct": len(counts), "top": dict(top)}


def _numbers(folder: str, field: pa.Field) -> dict[str, Any]:
    parts, missing = [np.empty(0)], 0
    for nulls, values in _values(folder, field):
        missing += nulls
        parts.append(np.asarray(values.to_numpy(), np.float64))
    numbers = np.concatenate(parts)
    numbers = numbers[np.isfinite(numbers)]
    if not numbers.size:
        return {"values": 0, "missing": missing}
    quantiles = dict(zip(map(str, QUANTILES), np.quantile(numbers, QUANTILES).tolist(), strict=True))
    extremes = {"min": float(numbers.min()), "mean": float(numbers.mean()), "max": float(numbers.max())}
    return {"values": int(numbers.size), "missing": missing, **extremes, "quantiles": quantiles}


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the numbers as lines for the terminal."""
    counts = found["counts"]
    size = f"{counts['shards']:,} shards, {found['bytes'] / 1e6:,.1f} MB"
    yield f"{found['recipe']} dataset: {counts['written']:,} samples in {size}"
    yield f"read {counts['read']:,}, rejected {counts['rejected']:,}"
    for stage, reasons in counts["rejects"].items():
        yield from (f"  {stage}: {reason} {number:,}" for reason, number in reasons.items())
    yield from (f"licence {name or 'not stated'}: {number:,}" for name, number in found["licenses"].items())
    width = max(map(len, found["columns"]), default=0)
    for name, column in found["columns"].items():
        missing = f", missing in {column['missing']:,}" if column["missing"] else ""
        yield f"{name:{width}}  {_in_words(column)}{missing}"


def _in_words(column: Mapping[str, Any]) -> str:
    if "top" in column:
        most = ", ".join(f"{name} {number:,}" for name, number in list(column["top"].items())[:8])
        return f"{column['distinct']:,} different: {most}"
    if not column["values"]:
        return "no values"
    low, middle, high = (significant(column["quantiles"][str(share)]) for share in (0.05, 0.5, 0.95))
    ends = f"{significant(column['min'])} to {significant(column['max'])}"
    return f"{ends}, mean {significant(column['mean'])}; 5 % {low}, median {middle}, 95 % {high}"
