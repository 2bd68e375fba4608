"""Expressions over the columns of an index, such as `score_min >= 0.6 and "dog" in labels`.

They are written as in Python: comparisons, `and`, `or`, `not`, `in`, arithmetic, numbers, text, lists, `None`, and the
functions of `FUNCTIONS`. Python's own parser reads an expression and Arrow computes it, column by column; nothing of it
is executed as Python. A comparison with a value that is missing is neither true nor false, as in SQL.
"""

import ast
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.errors import ConfigError, choices

Value = Any
"""A column of Arrow, or a constant of Python."""

_COMPARE: Mapping[type[ast.cmpop], Callable[[Value, Value], Value]] = {
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
}
_ARITHMETIC: Mapping[type[ast.operator], Callable[[Value, Value], Value]] = {
    ast.Add: pc.add,
    ast.Sub: pc.subtract,
    ast.Mult: pc.multiply,
    ast.Div: lambda a, b: pc.divide(_as_float(a), _as_float(b)),
}


@dataclass(frozen=True)
class Expression:
    """An expression that names known columns only.

    Attributes:
        text: as it was written.
        tree: its syntax.
    """

    text: str
    tree: ast.expr

    def rows(self, table: pa.Table) -> NDArray[np.bool_]:
        """Return, [N] bool, for which rows of a table the expression is true.

        Raises:
            ConfigError: it compares what cannot be compared, or is neither true nor false.
        """
        try:
            value = _value(self.tree, table)
            if isinstance(value, bool):
                return np.full(len(table), value)
            if isinstance(value, pa.Array | pa.ChunkedArray) and pa.types.is_boolean(value.type):
                return np.asarray(pc.fill_null(value, fill_value=False))
        except (pa.ArrowException, TypeError, KeyError) as error:
            first = str(error).splitlines()[0]
            raise ConfigError(f"{self.text!r} cannot be computed: {first}") from error
        raise ConfigError(f"{self.text!r} is neither true nor false: compare it, as in {self.text} > 0")


def parse(text: str, columns: Iterable[str]) -> Expression:
    """Read an expression over columns of these names.

    Raises:
        ConfigError: it is none, names another column, or has what expressions lack.
    """
    columns = list(columns)
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        for node in ast.walk(tree):
            _check(node, columns)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ConfigError(f"{text!r} is no expression ({message}): write one as 'width >= 512'") from error
    return Expression(text, tree)


def _check(node: ast.AST, columns: list[str]) -> None:
    if isinstance(node, ast.Name):
        if node.id not in columns and node.id not in FUNCTIONS:
            raise ConfigError(f"the index has no column {node.id!r}{choices(node.id, columns)}")
    elif isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS or len(node.args) != 1 or node.keywords:
            raise ConfigError(f"{ast.unparse(node)!r}: the functions are {', '.join(FUNCTIONS)}, of one value")
    elif isinstance(node, ast.Constant):
        if not isinstance(node.value, str | int | float | None):
            raise ConfigError(f"{ast.unparse(node)!r} is no value of an index: write numbers, text or None")
    elif not isinstance(node, _KNOWN):
        raise ConfigError(
            f"{ast.unparse(node)!r} is not among what expressions know: compare, and, or, not, in, + - * /"
        )


_KNOWN = (
    ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.Compare, *_COMPARE, ast.In, ast.NotIn, ast.Is,
    ast.IsNot, ast.BinOp, *_ARITHMETIC, ast.List, ast.Tuple, ast.Load,
)  # fmt: skip


def _value(node: ast.expr, table: pa.Table) -> Value:
    """Compute a part of an expression."""
    return _COMPUTE[type(node)](node, table)


def _call(node: Any, table: pa.Table) -> Value:  # noqa: ANN401 - ast.Call, as below for other kinds of node
    return FUNCTIONS[node.func.id](_value(node.args[0], table))


def _list(node: Any, table: pa.Table) -> Value:  # noqa: ANN401
    return [_value(part, table) for part in node.elts]


def _unary(node: Any, table: pa.Table) -> Value:  # noqa: ANN401
    value = _value(node.operand, table)
    return pc.invert(_column(value, table)) if isinstance(node.op, ast.Not) else pc.negate(value)


def _binary(node: Any, table: pa.Table) -> Value:  # noqa: ANN401
    return _ARITHMETIC[type(node.op)](_value(node.left, table), _value(node.right, table))


def _joined(node: Any, table: pa.Table) -> Value:  # noqa: ANN401
    join = pc.and_kleene if isinstance(node.op, ast.And) else pc.or_kleene
    return reduce(join, (_column(_value(part, table), table) for part in node.values))


def _comparison(node: Any, table: pa.Table) -> Value:  # noqa: ANN401
    values = pairwise([_value(part, table) for part in (node.left, *node.comparators)])
    results = (_column(_compare(op, *pair), table) for op, pair in zip(node.ops, values, strict=True))
    return reduce(pc.and_kleene, results)


_COMPUTE: Mapping[type[ast.expr], Callable[[Any, pa.Table], Value]] = {
    ast.Name: lambda node, table: table[node.id],
    ast.Constant: lambda node, _: node.value,
    ast.List: _list,
    ast.Tuple: _list,
    ast.Call: _call,
    ast.UnaryOp: _unary,
    ast.BinOp: _binary,
    ast.BoolOp: _joined,
    ast.Compare: _comparison,
}
"""How each kind of node is computed."""


def _column(value: Value, table: pa.Table) -> Value:
    return pa.array([value] * len(table), pa.bool_()) if isinstance(value, bool) else value


def _compare(op: ast.cmpop, left: Value, right: Value) -> Value:
    if isinstance(op, ast.In | ast.NotIn):
        found = _contains(right, left)
        if isinstance(op, ast.In):
            return found
        return not found if isinstance(found, bool) else pc.invert(found)
    if isinstance(op, ast.Is | ast.IsNot) or left is None or right is None:
        value = left if right is None else right
        missing = pc.is_null(value) if isinstance(value, pa.ChunkedArray | pa.Array) else value is None
        if isinstance(op, ast.Is | ast.Eq):
            return missing
        return not missing if isinstance(missing, bool) else pc.invert(missing)
    if not isinstance(left, pa.ChunkedArray | pa.Array) and not isinstance(right, pa.ChunkedArray | pa.Array):
        return bool(_PLAIN[type(op)](left, right))
    return _COMPARE[type(op)](left, right)


_PLAIN: Mapping[type[ast.cmpop], Callable[[Value, Value], Value]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def _contains(where: Value, what: Value) -> Value:
    """Whether a list, or a text, holds a value: a constant in a column, or a column's values in a list of constants."""
    if isinstance(where, list):
        return pc.is_in(what, value_set=pa.array(where)) if isinstance(what, pa.ChunkedArray) else what in where
    if not isinstance(where, pa.ChunkedArray):
        raise TypeError("'in' needs a column or a list on its right")
    if isinstance(what, pa.ChunkedArray):
        raise TypeError("'in' takes a text or a number on the left of a column")
    if not pa.types.is_list(where.type) and not pa.types.is_large_list(where.type):
        return pc.match_substring(where, what)
    flat, parents = pc.list_flatten(where), pc.list_parent_indices(where)
    held = np.zeros(len(where), bool)
    held[parents.to_numpy()[np.asarray(pc.fill_null(pc.equal(flat, what), fill_value=False))]] = True
    return pa.array(held)


def _as_float(value: Value) -> Value:
    return pc.cast(value, pa.float64()) if isinstance(value, pa.ChunkedArray | pa.Array) else float(value)


def _length(value: Value) -> Value:
    """Elements of a list, or characters of a text."""
    is_list = pa.types.is_list(value.type) or pa.types.is_large_list(value.type)
    return pc.list_value_length(value) if is_list else pc.utf8_length(value)


def _extreme(name: str) -> Callable[[Value], Value]:
    """The smallest ("min") or the largest ("max") element of each list; missing for an empty one."""

    def extreme(value: Value) -> Value:
        grouped = pa.table({"row": pc.list_parent_indices(value), "value": pc.list_flatten(value)})
        found = grouped.group_by("row").aggregate([("value", name)])
        places = pc.index_in(pa.array(range(len(value)), found["row"].type), value_set=found["row"].combine_chunks())
        return found[f"value_{name}"].take(places)

    return extreme


FUNCTIONS: Mapping[str, Callable[[Value], Value]] = {
    "len": _length,
    "lower": pc.utf8_lower,
    "min": _extreme("min"),
    "max": _extreme("max"),
}
"""What can be called: the length of a text or list, a text in lower case, the smallest and largest of a list."""
