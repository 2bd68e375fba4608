"""What programs may import of Subjectloom: the names in `__all__`, which keep their meaning within a major version.

A name is imported from its module when it is first used, so that `import subjectloom` itself takes no time.
"""

from importlib import import_module
from typing import Any

_MODULES = {
    "jobs.build": ("Request", "build"),
    "jobs.exports": ("export_dataset",),
    "jobs.drawing": ("DrawRequest", "Reference"),
    "jobs.generate": ("generate",),
    "jobs.inspect": ("inspect",),
    "jobs.pictures": ("write_pictures",),
    "jobs.report.page": ("write_report",),
    "jobs.train": ("run_training",),
    "pipelines": ("RECIPES",),
    "schemas.dataset": ("DatasetInfo",),
    "schemas.errors": ("ConfigError", "InputError", "ModelError", "SubjectloomError"),
    "schemas.samples": ("FORMATS",),
    "schemas.shards": ("Sample", "read_sample"),
    "training.drawing": ("Drawing",),
    "training.recipes": ("training_of",),
    "training.shards": ("batches", "find_shards"),
    "transforms.dataset": ("read_info", "read_table"),
    "transforms.models.presets": ("resolve",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - a list of text all the same


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    if name not in _HOMES:
        raise AttributeError(f"module 'subjectloom' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__]
