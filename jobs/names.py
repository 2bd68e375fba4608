"""Names of classes in a config that no class has: a line that says so, with the names that are close."""

import difflib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from schemas.dataset import Job
from transforms.dataset import read_table
from transforms.text.synonyms import plain_labels

FIELDS = ("only", "never")
"""Fields that name classes or head nouns of phrases."""


def check_names(job: Job, segmenter: str) -> Iterator[str]:
    """Yield a line for each name of a config that no class of the segmenter has, if that runs and is here."""
    if names_classes(job) and "segmenter" in job.models and (classes := model_classes(segmenter)):
        yield from unknown_names(job, classes, "of the segmenter")


def check_names_afterwards(job: Job, output: str) -> Iterator[str]:
    """Yield such a line for a finished dataset whose segments are annotated: only its index lists their classes."""
    if names_classes(job) and "segmenter" not in job.models:
        yield from unknown_names(job, dataset_classes(output), "in this dataset")


def names_classes(job: Job) -> bool:
    """Whether the config of a job names classes."""
    return any(job.config.get(field) for field in FIELDS)


def unknown_names(job: Job, labels: Iterable[str], whose: str) -> Iterator[str]:
    """Yield a line for each name in `only` and `never` that is none of `labels`; `whose` says where these come from."""
    known = {name for label in labels for name in (label, *plain_labels(label))}
    for field in FIELDS:
        for name in job.config.get(field, ()):
            if name not in known and name != "things":
                close = difflib.get_close_matches(name, sorted(known), n=3)
                near = f" (near: {', '.join(close)})" if close else ""
                yield (
                    f"--{field} {name}: no class {whose} has this name{near}, it only counts as the head noun of a "
                    "phrase"
                )


def model_classes(checkpoint: str) -> list[str]:
    """Return the class names of a segmenter that is on this machine, a folder or a download; none if it is not."""
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - only for a config that names classes
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415

    folder = Path(checkpoint)
    name, _, revision = checkpoint.partition("@")
    try:
        cached = None if folder.is_dir() else try_to_load_from_cache(name, "config.json", revision=revision or None)
        path = folder / "config.json" if folder.is_dir() else Path(str(cached))
        return [str(label) for label in json.loads(path.read_text(encoding="utf-8"))["id2label"].values()]
    except (HFValidationError, OSError, ValueError, LookupError, TypeError, AttributeError):
        return []


def dataset_classes(output: str) -> list[str]:
    """Return the class names of the subjects of a finished dataset."""
    index = read_table(output, "index.parquet")
    return sorted({label for labels in index["labels"].to_pylist() for label in labels})
