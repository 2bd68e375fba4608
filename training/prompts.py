"""Sample pictures for captions of the user's own, with the references of samples of a dataset."""

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import ValidationError

from schemas.errors import ConfigError
from schemas.samples import FORMATS
from training.config import Prompt, RunConfig
from training.recipe import Training
from training.shards import Batch, Raw, Shards, find_shards, make_batch, read_samples, to_device


def batch_of_prompts(recipe: str, training: Training, shards: Shards, tools: Any, config: RunConfig) -> Batch:  # noqa: ANN401
    """Make the batch of `config.prompts`, one sample for each; what is random in a view is switched off.

    Raises:
        ConfigError: there is no such sample, or the caption names nothing of which it has a reference.
        InputError: there is no such dataset.
    """
    found: dict[str | None, dict[str, Raw]] = {}
    for dataset in {prompt.dataset for prompt in config.prompts}:
        source = shards if dataset is None else find_shards(dataset, recipe)
        keys = [prompt.sample for prompt in config.prompts if prompt.dataset == dataset]
        found[dataset] = find_samples(read_samples(source), keys)
    raws = [with_prompt(recipe, found[prompt.dataset][prompt.sample], prompt) for prompt in config.prompts]
    batch = make_batch([(0, raw) for raw in raws], training.view, tools, config.plain())
    if batch["skipped"]:
        raise ConfigError(f"prompts: sample {batch['skipped'][0]}")
    return to_device(batch, "cpu")


def find_samples(samples: Iterable[Raw], keys: Sequence[str]) -> dict[str, Raw]:
    """Find samples by their keys.

    Raises:
        ConfigError: there is no such sample.
    """
    missing, found = set(keys), {}
    for raw in samples:
        if raw["__key__"] in missing:
            found[raw["__key__"]] = raw
            missing.remove(raw["__key__"])
            if not missing:
                return found
    raise ConfigError(f"prompts: the dataset has no sample {min(missing)!r}")


def with_prompt(recipe: str, raw: Raw, prompt: Prompt) -> Raw:
    """Replace the caption of a sample.

    Raises:
        ConfigError: the new one names nothing of which the sample has a reference, or the sample is damaged.
    """
    try:
        record = FORMATS[recipe].record.model_validate_json(raw.get("json", b"")).with_caption(prompt.prompt)
    except ValidationError as error:
        raise ConfigError(
            f"prompts: sample {prompt.sample} is no {recipe} sample: {error.errors()[0]['msg']}"
        ) from error
    except ValueError as error:
        raise ConfigError(f"prompts: sample {prompt.sample}: {error}") from error
    return {**raw, "json": record.to_json()}
