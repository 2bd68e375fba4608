import pytest

from schemas.errors import InputError, RecordError
from schemas.example import Example
from schemas.rejects import Reason, Reject
from tests.examples import make_example
from transforms.sources.records import attempt


def raising(error: Exception) -> Example:
    raise error


@pytest.mark.parametrize(
    ("error", "reason", "detail"),
    [
        (RecordError(Reason.LONG_CAPTION, "too long"), Reason.LONG_CAPTION, "too long"),
        (OSError("no such file"), Reason.UNREADABLE_FILE, "no such file"),
        (MemoryError("no room"), Reason.OUT_OF_MEMORY, "MemoryError: no room"),
        (AssertionError(), Reason.STEP_FAILED, "AssertionError:"),
        (TypeError("an integer"), Reason.STEP_FAILED, "TypeError: an integer"),
        (OverflowError("an infinity"), Reason.STEP_FAILED, "OverflowError: an infinity"),
        (RecursionError("too deep"), Reason.STEP_FAILED, "RecursionError: too deep"),
    ],
)
def test_whatever_a_record_raises_is_its_reject(error: Exception, reason: Reason, detail: str) -> None:
    assert attempt("k", "k.jpg", lambda: raising(error)) == Reject("k", "k.jpg", "read", reason, detail)


def test_what_no_record_is_to_blame_for_stops_the_job() -> None:
    with pytest.raises(InputError, match="the captions are gone"):
        attempt("k", "k.jpg", lambda: raising(InputError("the captions are gone")))


def test_a_record_that_can_be_read_is_returned() -> None:
    example = make_example("k")
    assert attempt("k", "k.jpg", lambda: example) is example
