"""The one Beam `ModelHandler`: loads a model once per worker and advances batches with it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from apache_beam.ml.inference.base import ModelHandler

from schemas.example import Example
from transforms.batch import Batch, advance

Model = TypeVar("Model")


class StepHandler(ModelHandler[Batch, Batch, Model], Generic[Model]):
    """Runs `step` over the examples of each batch, with what `load` returns.

    `load` is called once per worker; Beam keeps a weak reference to its result, so that must not be a tuple, a
    list, a dict or a slots dataclass. `step` takes the model and the examples and returns one example per
    example, in order; `stage` names it in rejects and timings. A `Batch` is the batch: Beam must make no
    others of its own, or what goes through a model together would depend on the runner.
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
        batch: Sequence[Batch],
        model: Model,
        inference_args: Mapping[str, Any] | None = None,  # noqa: ARG002 - Beam passes it
    ) -> list[Batch]:
        """Advance each batch; a failing example becomes a reject in its place."""
        return [advance(each, self._stage, lambda examples: self._step(model, examples)) for each in batch]

    def get_num_bytes(self, batch: Sequence[Batch]) -> int:
        """The size of the encoded pictures; Beam's default would pickle everything to find out."""
        return sum(len(r.image) for each in batch for r in each.records if isinstance(r, Example))
