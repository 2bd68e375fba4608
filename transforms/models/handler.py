"""The one Beam `ModelHandler`: loads a model once per worker and advances batches with it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from apache_beam.ml.inference.base import ModelHandler

from schemas.example import Example
from transforms.batch import Batch, advance
from transforms.models.settings import HOSTING, Hosting

Model = TypeVar("Model")


class Advancer(Generic[Model]):
    """A loaded model and the step that runs it, called with examples.

    Beam hands a model that processes share to each of them behind a proxy, which passes on calls but no fields.
    Threads of a process call it at the same time: neither model nor step changes anything that lasts.
    """

    def __init__(self, model: Model, step: Callable[[Model, Sequence[Example]], Sequence[Example]]) -> None:
        self._model = model
        self._step = step

    def __call__(self, examples: Sequence[Example]) -> Sequence[Example]:
        """Return one example per example, in order."""
        return self._step(self._model, examples)


class StepHandler(ModelHandler[Batch, Batch, Advancer[Model]], Generic[Model]):
    """Runs `step` over the examples of each batch, with what `load` returns.

    Elements are 1-tuples of a `Batch`: Beam must not form batches of its own, as what goes through a model together
    would depend on the runner, and the Dask runner loses what is left over at the end of a bundle.

    Args:
        stage: names the step in rejects and timings.
        load: loads the model, once per worker.
        step: takes the model and the examples of a batch; returns one example per example, in order.
        hosting: how many copies of the model there are, and who shares them.
    """

    def __init__(
        self,
        stage: str,
        load: Callable[[], Model],
        step: Callable[[Model, Sequence[Example]], Sequence[Example]],
        hosting: Hosting = HOSTING,
    ) -> None:
        super().__init__(large_model=hosting.large, model_copies=hosting.copies)
        self._stage = stage
        self._load = load
        self._step = step

    def should_skip_batching(self) -> bool:
        """Elements are batches already."""
        return True

    def load_model(self) -> Advancer[Model]:
        """Load the model, once per worker."""
        return Advancer(self._load(), self._step)

    def run_inference(
        self,
        batches: Sequence[Batch],
        model: Advancer[Model],
        inference_args: Mapping[str, Any] | None = None,  # noqa: ARG002 - Beam passes it
    ) -> list[Batch]:
        """Advance each batch; an example that fails becomes a reject in its place."""
        return [advance(batch, self._stage, model) for batch in batches]

    def get_num_bytes(self, batches: Sequence[Batch]) -> int:
        """Bytes of the encoded pictures; Beam's default pickles every batch to count them."""
        return sum(len(r.image) for batch in batches for r in batch.records if isinstance(r, Example))
