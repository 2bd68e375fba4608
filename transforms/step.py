"""What a recipe's steps have in common: batches in, batches out, and what `dataset.json` says of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import apache_beam as beam

from schemas.example import Example
from transforms.batch import Batch, advance
from transforms.models.settings import HOSTING, Hosting

Model = TypeVar("Model")


@dataclass(frozen=True)
class Compiler:
    """Compiles code to a cache on disk: `name` says for people what, `run` does it."""

    name: str
    run: Callable[[], None]


class Step(beam.PTransform):
    """A step of a recipe: PCollection[Batch] -> PCollection[Batch].

    Subclasses are dataclasses (`@dataclass(eq=False)`) named by a verb.
    """

    def checkpoints(self) -> Mapping[str, str]:
        """The checkpoints that this step loads, by kind of model ("parser", "clip"): they go into `dataset.json`."""
        return {}

    def stamp(self) -> str:
        """A text that changes when an input beside source, config and checkpoints does, as a folder of backgrounds."""
        return ""

    def libraries(self) -> Sequence[str]:
        """Packages, beside those of every build, whose version may change what this step makes."""
        return ()

    def compiler(self) -> Compiler | None:
        """What compiles the code that this step runs, where that takes long the first time on a machine."""
        return None


def map_batches(
    batches: beam.PCollection[Batch],
    stage: str,
    step: Callable[[Sequence[Example]], Sequence[Example]],
) -> beam.PCollection[Batch]:
    """Apply a step that needs no model to every batch; `stage` names it in rejects and timings (see `advance`)."""
    return batches | stage >> beam.Map(lambda batch: advance(batch, stage, step))


def run_model(
    batches: beam.PCollection[Batch],
    stage: str,
    load: Callable[[], Model],
    step: Callable[[Model, Sequence[Example]], Sequence[Example]],
    hosting: Hosting = HOSTING,
) -> beam.PCollection[Batch]:
    """Apply a step that needs a model to every batch.

    Args:
        batches: the batches.
        stage: names the step in rejects and timings.
        load: loads the model, once per worker (see `StepHandler`).
        step: takes the model and the examples of a batch; returns one example per example, in order. Threads call it
            at the same time with the same model.
        hosting: how workers hold the model.
    """
    # RunInference imports torch: only a recipe that runs such a model waits for it.
    from apache_beam.ml.inference.base import RunInference

    from transforms.models.handler import StepHandler

    single = batches | f"{stage} batches" >> beam.Map(lambda batch: (batch,))
    return single | f"{stage} model" >> RunInference(StepHandler(stage, load, step, hosting))
