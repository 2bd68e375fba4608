"""What a recipe's steps have in common: batches in, batches out, and what the books must know of them."""

from collections.abc import Callable, Mapping, Sequence

import apache_beam as beam

from schemas.example import Example
from transforms.batch import Batch, advance


class Step(beam.PTransform):
    """A step of a recipe: PCollection[Batch] -> PCollection[Batch].

    Subclasses are dataclasses (`@dataclass(eq=False)`) named by a verb.
    """

    def checkpoints(self) -> Mapping[str, str]:
        """The checkpoints that this step loads, by kind of model ("parser", "clip"): they go into `dataset.json`."""
        return {}

    def stamp(self) -> str:
        """What changes when an input beside source, config and checkpoints does, such as a folder of backgrounds."""
        return ""


def map_batches(
    batches: beam.PCollection[Batch],
    stage: str,
    step: Callable[[Sequence[Example]], Sequence[Example]],
) -> beam.PCollection[Batch]:
    """Apply a step that needs no model to every batch; `stage` names it in rejects and timings (see `advance`)."""
    return batches | stage >> beam.Map(lambda batch: advance(batch, stage, step))
