"""Run a transform over elements, on the runner that jobs use."""

from collections.abc import Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner


def apply(transform: beam.PTransform, elements: Sequence[Any]) -> list[Any]:
    """Return the results of `transform` for `elements`, in any order; exceptions inside it reach the caller."""
    _collected.clear()
    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as pipeline:
        _ = pipeline | beam.Create(elements) | transform | "collect" >> beam.Map(_collect)
    return [*_collected]


# Beam pickles what it runs. A list at module level is not pickled, so that workers append to this one.
_collected: list[Any] = []


def _collect(element: Any) -> None:  # noqa: ANN401
    _collected.append(element)
