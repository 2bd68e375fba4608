"""`subjectloom weights`: models from the checkpoints of a run."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from jobs.train import fingerprint, load_model
from schemas.errors import InputError
from training.checkpoint import load_checkpoint
from training.loop import save_model
from training.recipes import training_of
from training.resume import check_export
from training.setup import set_up_lora
from training.shards import find_shards
from training.trainer import copy_weights, trained_parameters


def export_checkpoint(run: Path, output: Path, step: int | None, data: Sequence[str] = ()) -> Path:
    """Write the model of a run's checkpoint as the run itself writes RUN/model/ at its end, and return `output`.

    What was not trained is loaded again from where the run started.

    Args:
        run: folder of the run.
        output: a new or an empty folder.
        step: of the checkpoint; None for the newest one.
        data: the run's datasets; none for where they were.

    Raises:
        InputError: there is no such run, checkpoint or dataset, or `output` holds files.
        ModelError: the checkpoint is damaged, or the model that the run started from is missing.
    """
    note, checkpoint = check_export(run, output, step)
    training = training_of(note["recipe"])
    try:
        config = training.config(**{name: note[name] for name in training.config.model_fields if name in note})
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"the config of {run} is another version's: {first['loc'][0]} {first['input']!r}: {first['msg']}"
        ) from error
    places = data or note.get("data_path", [])
    if not places:
        raise InputError(f"{run} does not say where its dataset is: give --data")
    shards = find_shards(places, note["recipe"])
    if fingerprint(shards) != note["data"]:
        raise InputError(f"{', '.join(places)} is not the dataset that {run} was trained on: name that with --data")
    model = load_model(training, shards, config, note["preset"], note["model"])
    set_up_lora(model, config)
    kind = "average" if (checkpoint / "average.safetensors").exists() else "weights"
    tensors, _ = load_checkpoint(checkpoint, [kind])
    copy_weights(trained_parameters(model), tensors[kind])
    output.parent.mkdir(parents=True, exist_ok=True)
    save_model(model, output)
    return output
