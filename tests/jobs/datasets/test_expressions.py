"""Expressions over an index, against Python's own evaluation of the same text."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.datasets.expressions import parse
from schemas.errors import ConfigError

ROWS: list[dict[str, Any]] = [
    {"key": "a", "score": 0.5, "width": 640, "labels": ["dog", "sky"], "scores": [0.2, 0.9], "license": "CC0"},
    {"key": "b", "score": None, "width": 320, "labels": ["cat"], "scores": [0.4], "license": ""},
    {"key": "c", "score": 0.75, "width": 512, "labels": [], "scores": [], "license": "CC BY 2.0"},
]
TABLE = pa.Table.from_pylist(ROWS)


def keys(text: str) -> str:
    rows = parse(text, TABLE.column_names).rows(TABLE)
    return "".join(row["key"] for row, kept in zip(ROWS, rows, strict=True) if kept)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("score >= 0.5", "ac"),
        ("0.5 < score <= 0.75", "c"),
        ("not score > 0.6", "a"),  # a missing score is neither above nor below
        ("score is None", "b"),
        ("score is not None", "ac"),
        ("score == None or width > 600", "ab"),
        ("score != None", "ac"),
        ('"dog" in labels', "a"),
        ('"dog" not in labels', "bc"),
        ('license in ["CC0", "CC BY 2.0"]', "ac"),
        ('"BY" in license', "c"),
        ('license != ""', "ac"),
        ("len(labels) == 0", "c"),
        ("len(key) == 1 and len(labels) < 2", "bc"),
        ("max(scores) > 0.5", "a"),
        ("min(scores) >= 0.2", "ab"),
        ('lower(license) == "cc0"', "a"),
        ("width / 2 >= 256 and width - 1 < 600", "c"),
        ("width / 600 > 1", "a"),
        ("-width > -400", "b"),
        ("(width > 600 or width < 400) and not license == ''", "a"),
        ("1 < 2", "abc"),
        ("1 in [2, 3] or score > 0.6", "c"),
    ],
)
def test_an_expression_chooses_rows(text: str, expected: str) -> None:
    assert keys(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scor > 1", "no column 'scor', did you mean 'score'"),
        ("score >", "is no expression"),
        ("", "is no expression"),
        ("score > 'a'", "cannot be computed"),
        ("score", "neither true nor false"),
        ("width + 1", "neither true nor false"),
        ("__import__('os').system('true')", "the functions are len, lower, min, max"),
        ("open('x')", "the functions are"),
        ("key.upper() == 'A'", "the functions are"),
        ("[k for k in key]", "is not among what expressions know"),
        ("lambda: 1", "is not among what expressions know"),
        ("key[0] == 'a'", "is not among what expressions know"),
        ("width ** 9 > 1", "is not among what expressions know"),
        ("key == b'a'", "is no value of an index"),
        ("width in key", "cannot be computed"),
        ("'a' in 'abc'", "cannot be computed"),
        ("(" * 300 + "width" + ")" * 300, "is no expression"),
        ("len > 1", "cannot be computed"),
    ],
)
def test_a_wrong_expression_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")) as raised:
        keys(text)
    assert "\n" not in str(raised.value)


@given(
    st.lists(st.tuples(st.integers(-5, 5), st.lists(st.integers(-3, 3), max_size=3)), min_size=1, max_size=8),
    st.integers(-5, 5),
    st.sampled_from(
        ["a < n", "a >= n or n in b", "not a == n", "len(b) > 1 and a * 2 <= n", "n not in b", "0 <= a < n"]
    ),
)
def test_rows_are_those_that_python_chooses(rows: list[tuple[int, list[int]]], n: int, form: str) -> None:
    text = form.replace("n in", f"{n} in").replace("n not", f"{n} not")
    text = " ".join(str(n) if word == "n" else word for word in text.split())
    kind = pa.schema([("a", pa.int64()), ("b", pa.list_(pa.int64()))])
    table = pa.Table.from_pylist([{"a": a, "b": b} for a, b in rows], kind)
    expected = [bool(eval(text, {"a": a, "b": b, "len": len})) for a, b in rows]
    assert parse(text, ["a", "b"]).rows(table).tolist() == expected
