"""Run a transform over elements, on the runner that jobs use."""

from collections.abc import Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner


def apply(transform: beam.PTransform, elements: Sequence[Any]) -> list[Any]:
    """Return what `transform` makes of `elements`, in any order; an exception inside comes out as itself."""
    _collected.clear()
    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as pipeline:
        _ = pipeline | beam.Create(elements) | transform | "collect" >> beam.Map(_collect)
    return [*_collected]


# Beam pickles what it runs: only a module's own list is still the same list inside.
_collected: list[Any] = []


def _collect(element: Any) -> None:  # noqa: ANN401
    _collected.append(element)
