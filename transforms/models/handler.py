"""The one Beam `ModelHandler`: loads a model once per worker and advances batches with it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from apache_beam.ml.inference.base import ModelHandler

from schemas.example import Example
from transforms.batch import Batch, advance

Model = TypeVar("Model")


class StepHandler(ModelHandler[Batch, Batch, Model], Generic[Model]):
    """Runs `step` over the examples of each batch, with what `load` returns.

    A `Batch` is one element to Beam, which must not form batches of its own: what goes through a model together would
    depend on the runner.

    Args:
        stage: names the step in rejects and timings.
        load: loads the model, once per worker. Beam keeps a weak reference to the result, so it must not be a tuple, a
            list, a dict or a dataclass with slots.
        step: takes the model and the examples of a batch; returns one example per example, in order.
    """

    def __init__(
        self, stage: str, load: Callable[[], Model], step: Callable[[Model, Sequence[Example]], Sequence[Example]]
    ) -> None:
        super().__init__(min_batch_size=1, max_batch_size=1)
        self._stage = stage
        self._load = load
        self._step = step

    def load_model(self) -> Model:
        """Load the model, once per worker."""
        return self._load()

    def run_inference(
        self,
        batches: Sequence[Batch],
        model: Model,
        inference_args: Mapping[str, Any] | None = None,  # noqa: ARG002 - Beam passes it
    ) -> list[Batch]:
        """Advance each batch; an example that fails becomes a reject in its place."""
        return [advance(batch, self._stage, lambda examples: self._step(model, examples)) for batch in batches]

    def get_num_bytes(self, batches: Sequence[Batch]) -> int:
        """Bytes of the encoded pictures; Beam's default pickles every batch to count them."""
        return sum(len(r.image) for batch in batches for r in batch.records if isinstance(r, Example))
