"""Reads that fail for a while: what is tried again, how often, and when a run gives up."""

import errno
import gzip
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import OutageError
from transforms.outages import LEAST_FAILURES, Recent, describe, is_passing, retry, retry_items


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    return slept


def outage(number: int = errno.EIO) -> OSError:
    return OSError(number, "it is gone", "a.jpg")


def calls(*results: object) -> Iterator[object]:
    yield from results


def test_a_read_is_tried_again_with_longer_and_longer_pauses(pauses: list[float]) -> None:
    results = calls(outage(), outage(errno.ENOENT), outage(errno.ESTALE), b"content")

    def read() -> object:
        result = next(results)
        if isinstance(result, Exception):
            raise result
        return result

    assert retry(read, 4) == b"content"
    assert pauses == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (outage(), 3),
        (outage(errno.EACCES), 1),  # nobody changes permissions within seconds
        (gzip.BadGzipFile("not a gzipped file"), 1),  # an OSError about the content
        (OSError("Corrupt snappy compressed data."), 1),
        (ValueError("no tar"), 1),
    ],
)
@pytest.mark.usefixtures("pauses")
def test_only_what_may_pass_is_tried_again(error: Exception, attempts: int) -> None:
    tried = []

    def read() -> None:
        tried.append(0)
        raise error

    with pytest.raises(type(error)):
        retry(read, 3)
    assert len(tried) == attempts


def test_what_may_pass_has_a_number() -> None:
    assert is_passing(outage(errno.EACCES))
    assert not is_passing(gzip.BadGzipFile("not a gzipped file"))
    assert not is_passing(ValueError())
    assert describe(outage()) == "a.jpg: it is gone"


@given(
    count=st.integers(0, 12),
    breaks=st.lists(st.integers(0, 12), max_size=6),
    attempts=st.integers(1, 4),
)
def test_items_come_once_and_in_order_wherever_reading_breaks_off(count: int, breaks: list[int], attempts: int) -> None:
    """Run i breaks off before item `breaks[i]`; attempts in a row without a new item are counted."""
    runs = iter(breaks)

    def iterate() -> Iterator[int]:
        end = next(runs, count + 1)
        for number in range(count):
            if number >= end:
                raise outage()
            yield number

    done = failures = 0
    for end in [*breaks, count + 1]:
        if end > done:
            failures = 0
        done = max(done, min(end, count))
        if end >= count:
            break
        failures += 1
        if failures >= attempts:
            break
    found: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.sleep", lambda _: None)
        with pytest.raises(OSError, match="gone") if failures >= attempts else nullcontext():
            found.extend(retry_items(iterate, attempts))  # what came before the error stays in the list
    assert found == [*range(done)]
    assert done == count or failures >= attempts


@given(share=st.sampled_from([0.05, 0.2, 1.0]), outcomes=st.lists(st.booleans(), max_size=500))
def test_a_run_stops_at_the_first_record_with_too_many_failures_before_it(share: float, outcomes: list[bool]) -> None:
    window = round(LEAST_FAILURES / share)
    expected = next(
        (n for n in range(len(outcomes)) if outcomes[n] and sum(outcomes[max(0, n + 1 - window) : n + 1]) >= 20), None
    )
    recent, stopped = Recent(share), None
    for number, failed in enumerate(outcomes):
        try:
            recent.add("a.jpg: it is gone" if failed else "")
        except OutageError:
            stopped = number
            break
        assert recent.is_out == failed
    assert stopped == expected


def test_a_run_stops_after_a_minute_in_which_every_record_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    recent = Recent(0.05)
    for now[0] in (0.0, 30.0, 59.0):
        recent.add("gone")
    recent.add()
    for now[0] in (61.0, 100.0):
        recent.add("gone")
    now[0] = 121.0
    with pytest.raises(OutageError, match=r"^6 of the last 7 records could not be read \(gone\): see"):
        recent.add("gone")
