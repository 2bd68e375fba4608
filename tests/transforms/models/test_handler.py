"""The handler that runs all models: threads and processes that share one model."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Lock
from time import sleep

import pytest
from apache_beam.utils.multi_process_shared import MultiProcessShared

from schemas.errors import RecordError
from schemas.example import Example
from schemas.rejects import Reason, Reject
from tests.examples import make_example
from transforms.batch import Batch
from transforms.models.checkpoints import load_once
from transforms.models.handler import Advancer, StepHandler
from transforms.models.settings import HOSTING, Hosting


def load() -> str:
    return "model"


def describe(model: str, examples: Sequence[Example]) -> list[Example]:
    """Write the model's name into the captions; pictures "bad" are refused, and too many at once."""
    if any(example.key == "bad" for example in examples):
        raise RecordError(Reason.NO_SEGMENT, "it is bad")
    if len(examples) > 2:
        raise RuntimeError("CUDA out of memory")
    return [replace(example, caption=f"{model} {example.key}") for example in examples]


BATCH = Batch(0, tuple(make_example(key) for key in ("a", "b", "bad", "c")))


def check(batch: Batch) -> None:
    a, b, bad, c = batch.records
    assert [r.caption for r in (a, b, c) if isinstance(r, Example)] == ["model a", "model b", "model c"]
    assert isinstance(bad, Reject)
    assert (bad.reason, bad.detail) == (Reason.NO_SEGMENT, "it is bad")


def test_a_batch_is_advanced_and_halved_where_it_fails() -> None:
    handler = StepHandler("describe", load, describe)
    (batch,) = handler.run_inference([BATCH], handler.load_model())
    check(batch)


def test_a_model_behind_a_proxy_does_the_same(tmp_path_factory: pytest.TempPathFactory) -> None:
    handler = StepHandler("describe", load, describe, Hosting(large=True))
    assert handler.share_model_across_processes()
    shared = MultiProcessShared(
        handler.load_model, "test", path=str(tmp_path_factory.mktemp("shared")), always_proxy=True
    )
    model = shared.acquire()
    try:
        (batch,) = handler.run_inference([BATCH], model)
    finally:
        shared.release(model)
    check(batch)


def test_beam_hears_how_many_copies_there_are() -> None:
    assert not StepHandler("describe", load, describe, HOSTING).share_model_across_processes()
    copied = StepHandler("describe", load, describe, Hosting(copies=3))
    assert copied.share_model_across_processes()
    assert copied.model_copies() == 3


def test_threads_that_share_an_advancer_get_what_each_would_get_alone() -> None:
    advancer = Advancer("model", describe)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: advancer([make_example(str(i))])[0].caption, range(40)))
    assert found == [f"model {i}" for i in range(40)]


def test_a_model_that_is_loaded_late_is_loaded_once_for_all_threads() -> None:
    loaded, lock = [], Lock()

    def slowly() -> object:
        with lock:
            loaded.append(object())
        sleep(0.05)
        return loaded[-1]

    get = load_once(slowly)
    assert not loaded
    with ThreadPoolExecutor(4) as pool:
        found = set(map(id, pool.map(lambda _: get(), range(8))))
    assert len(loaded) == len(found) == 1
