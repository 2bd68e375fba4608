"""Records as JSON and back: dataclasses of texts, numbers, bytes, arrays and other dataclasses, nothing executed."""

import base64
from collections.abc import Callable, Hashable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np


def to_plain(value: Any) -> Any:  # noqa: ANN401 - of any field
    """Return a value as what JSON has; fields of dataclasses whose names begin with "_" are left out.

    Raises:
        TypeError: it holds something else than dataclasses, tuples, lists, mappings, arrays, bytes and plain values.
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, np.ndarray):
        data = np.ascontiguousarray(value).tobytes()
        return {"dtype": value.dtype.str, "shape": list(value.shape), "data": base64.b64encode(data).decode("ascii")}
    if is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value) if field.name[0] != "_"}
    if isinstance(value, Mapping):
        return {str(name): to_plain(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(part) for part in value]
    raise TypeError(f"a {type(value).__name__} has no plain form")


def from_plain(kind: Any, value: Any) -> Any:  # noqa: ANN401 - of any type
    """Return the value of type `kind` that `to_plain` made `value` of; fields that are not there have their defaults.

    Raises:
        TypeError, ValueError, KeyError: `value` was not made of one.
    """
    origin: Any = get_origin(kind) or kind
    parts = get_args(kind)
    if value is None or origin in (Union, UnionType):
        kinds = [part for part in parts if part is not NoneType]
        return None if value is None else from_plain(kinds[0], value)
    if is_dataclass(origin):
        return _record(origin, value)
    return _CONTAINERS[origin](parts, value) if origin in _CONTAINERS else value


def _record(kind: Any, value: dict[str, Any]) -> Any:  # noqa: ANN401 - a dataclass
    hints = _hints(kind)
    return kind(**{name: from_plain(hints[name], part) for name, part in value.items()})


def _array(_: tuple[Any, ...], value: dict[str, Any]) -> Any:  # noqa: ANN401 - an array
    data = np.frombuffer(base64.b64decode(value["data"]), np.dtype(value["dtype"]))
    return data.reshape(value["shape"]).copy()


def _items(parts: tuple[Any, ...], value: list[Any]) -> list[Any]:
    kinds = parts[:1] * len(value) if parts[1:] in ((), (...,)) else parts
    return [from_plain(part, item) for part, item in zip(kinds, value, strict=True)]


def _named(parts: tuple[Any, ...], value: dict[str, Any]) -> dict[str, Any]:
    return {name: from_plain(parts[1], part) for name, part in value.items()}


_CONTAINERS: Mapping[Any, Callable[[tuple[Any, ...], Any], Any]] = {
    np.ndarray: _array,
    tuple: lambda parts, value: tuple(_items(parts, value)),
    list: _items,
    dict: _named,
    Mapping: _named,
    bytes: lambda _, value: base64.b64decode(value),
}
"""How values of these types are read, given the types of their parts."""


@cache
def _hints(kind: Hashable) -> dict[str, Any]:
    return get_type_hints(kind)
