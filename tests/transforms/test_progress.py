import json
import logging
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from jobs.progress import Counter
from schemas.rejects import Reason, Reject
from tests.datasets import example
from transforms.batch import Batch
from transforms.progress import NAMESPACE, CountRecords

REFUSED = Reject("b", "b.jpg", "matches", Reason.NO_MATCH, "nothing above 0.25")


def test_records_are_counted_by_beam_in_a_file_and_rejects_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.disable(logging.NOTSET)
    batches = [Batch(0, (example("a"), REFUSED), (("read", 0.5),)), Batch(0, (example("c"),), (("read", 0.25),))]
    path = tmp_path / "progress"
    with caplog.at_level(logging.INFO, "subjectloom.rejects"):
        pipeline = beam.Pipeline(runner=FnApiRunner())
        _ = pipeline | beam.Create(batches, reshuffle=False) | CountRecords(str(path))
        result = pipeline.run()
        result.wait_until_finish()
    found = result.metrics().query(beam.metrics.MetricsFilter().with_namespace(NAMESPACE))
    counters = {m.key.metric.name: m.committed for m in found["counters"]}
    assert counters == {"records": 3, "rejects": 1, "rejects at matches: no-match": 1}
    (distribution,) = found["distributions"]
    assert distribution.key.metric.name == "read milliseconds"
    assert (distribution.committed.count, distribution.committed.sum) == (2, 750)
    assert sorted(path.read_bytes()) == sorted(b"..x")
    lines = [json.loads(r.getMessage()) for r in caplog.records if r.name == "subjectloom.rejects"]
    assert lines == [
        {"key": "b", "stage": "matches", "reason": "no-match", "detail": "nothing above 0.25", "source": "b.jpg"}
    ]


def test_the_file_is_counted_from_where_it_was_left_and_anew_when_it_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "progress"
    path.write_bytes(b"..x")
    counter = Counter(path)
    assert counter.read() == (3, 1)
    path.write_bytes(b"..xx..")
    assert counter.read() == (6, 2)
    path.write_bytes(b"x")  # a round is made again
    assert counter.read() == (1, 1)
