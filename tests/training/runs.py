"""Short training runs of a small FastComposer model, for the tests of the loop."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState

from tests.training.models import tiny_batch, tiny_parts
from training.config import RunConfig
from training.configs.fastcomposer import Config
from training.loop import train
from training.recipes.fastcomposer import Model
from training.shards import rank_and_world

CONFIG = Config(
    steps=5, batch=2, learning_rate=1e-3, warmup=2, average=0.5, checkpoint_every=2, sample_every=3, train_encoders=True
)


def new_model(vae: Path) -> Model:
    model = Model(tiny_parts(vae), Config(train_encoders=True))
    model.sampling_steps = 2  # of the sample pictures
    return model


def batches_of(model: Model) -> Callable[[int], Iterator[dict[str, Any]]]:
    """Return a function that yields batches, each determined by its number."""

    def batches(start: int) -> Iterator[dict[str, Any]]:
        done = start // (CONFIG.batch * rank_and_world()[1])
        while True:
            yield tiny_batch(model.parts, [[True, True], [True, False]], seed=done)
            done += 1

    return batches


def run(vae: Path, output: Path, config: RunConfig = CONFIG, **options: Any) -> list[dict[str, float]]:  # noqa: ANN401
    if AcceleratorState._shared_state:  # otherwise it keeps the precision of the first run
        AcceleratorState._reset_state()
    model = new_model(vae)
    return list(train(model, batches_of(model), config, output, **options))


def run_on(vae: Path, output: Path, steps: int) -> None:
    """Continue a run until it has made `steps` steps."""
    run(vae, output, CONFIG.model_copy(update={"steps": steps}), resume=True)


def losses(metrics: list[dict[str, float]]) -> list[tuple[float, ...]]:
    return [(m["step"], m["loss"], m["noise"], m["localization"], m["gradient_norm"]) for m in metrics]


def losses_of_run(output: Path) -> list[tuple[float, ...]]:
    """The losses in the metrics of a run."""
    return losses([json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()])
