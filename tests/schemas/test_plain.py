import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from schemas.example import Example, Placement, Subject
from schemas.plain import from_plain, to_plain
from tests.datasets import example, scored


@dataclass(frozen=True)
class Inner:
    pair: tuple[int, float]
    data: bytes = b""


@dataclass(frozen=True)
class Outer:
    inner: Inner | None
    many: tuple[Inner, ...]
    named: Mapping[str, Inner]
    array: NDArray[np.float32] | None = None
    texts: list[str] = field(default_factory=list)
    _cache: Any = None


def through(kind: Any, value: Any) -> Any:  # noqa: ANN401
    return from_plain(kind, json.loads(json.dumps(to_plain(value))))


def test_a_record_comes_back_as_it_was() -> None:
    inner = Inner((3, 0.1), b"\x00\xff")
    value = Outer(inner, (inner, Inner((0, 1e-300))), {"a": inner}, None, ["x", "é"])
    assert through(Outer, value) == value
    assert through(Outer, Outer(None, (), {})) == Outer(None, (), {})
    array = np.array([[0.1, np.nan], [np.inf, -0.0]], np.float32)
    found = through(Outer, replace(value, array=array, _cache=object()))
    assert found.array.tobytes() == array.tobytes()
    assert (found.array.dtype, found.array.shape, found._cache) == (np.float32, (2, 2), None)


def test_examples_come_back_with_all_their_fields() -> None:
    matched = scored(example("a", extra_segments=2), 0.25)
    thing = replace(matched.objects[0], embeddings=np.arange(6, dtype=np.float32).reshape(2, 3))
    heatmap = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    full = replace(
        matched, objects=(thing,), similarity=((0.5, 0.25),), heatmaps=heatmap[None], phash=2**63,
        subject=Subject("dog", "a dog", None, None, heatmap), placement=Placement("sky", 1.5, (1, 2), flip=True),
    )  # fmt: skip
    found = through(Example, full)
    assert found == full
    assert (found.heatmaps == heatmap).all()
    assert (found.subject.heatmap == heatmap).all()
    assert (found.objects[0].embeddings == thing.embeddings).all()


def test_fields_that_are_not_there_have_their_defaults_and_unknown_ones_are_refused() -> None:
    plain = to_plain(Inner((1, 2.0)))
    del plain["data"]
    assert from_plain(Inner, plain) == Inner((1, 2.0))
    with pytest.raises(KeyError):
        from_plain(Inner, {**plain, "other": 1})
    with pytest.raises(TypeError, match="a set has no plain form"):
        to_plain({1})
