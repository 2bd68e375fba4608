import logging

import pytest

from schemas.errors import RecordError
from schemas.example import Example
from schemas.rejects import Reason
from tests.examples import make_example
from transforms.batch import Batch, advance, each
from transforms.work import LOG


def refuse_b(example: Example) -> Example:
    if example.key == "b":
        raise RecordError(Reason.LOW_QUALITY, "it is blurred")
    return example


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO])
def test_a_step_logs_the_records_that_it_works_on(level: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(level, LOG.name)
    advance(Batch(0, (make_example("a"), make_example("b"))), "sharpness", each(refuse_b))
    expected = []
    for keys in (("a", "b"), ("a",), ("b",)):  # a batch that fails is tried in halves
        expected += [f"begins sharpness of {keys}", f"has ended sharpness of {keys}"]
    assert caplog.messages == (expected if level == logging.DEBUG else [])
