"""How a build is described: models, precision and libraries, and the fingerprints of shards that follow from them."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from pipelines import BUILDS
from pipelines.recipe import LATER_FIELDS, RUN_FIELDS, BuildConfig
from schemas.dataset import Job, ModelName, shard_fingerprint
from schemas.errors import InputError
from transforms.candidates import candidates_stamp, model_steps
from transforms.dataset import finished_shards, library_versions, read_job
from transforms.models.presets import check_downloads, name_of, revision_of
from transforms.models.settings import Precision
from transforms.sources.records import Chunk
from transforms.step import Step


def describe_job(recipe: str, config: BuildConfig, steps: Sequence[Step], precision: Precision = "fp32") -> Job:
    """Describe recipe, config, models, seed and precision: the head of `dataset.json`."""
    checkpoints = checkpoints_of(steps)
    check_downloads(checkpoints)
    return Job(
        recipe=recipe,
        config=config.model_dump(mode="json"),
        models={kind: ModelName(name=name_of(path), revision=revision_of(path)) for kind, path in checkpoints.items()},
        seed=config.seed,
        precision=precision,
        libraries=library_versions(name for step in steps for name in step.libraries()) | instructions(checkpoints),
    )


def settle_precision(precision: Precision, steps: Sequence[Step]) -> Precision:
    """Return the precision of the models that `steps` run: "fp32" if there is none but the parser, else see `settled`.

    It is settled here, not on the workers, as it is a part of how shards are made.
    """
    if not checkpoints_of(steps).keys() - {"parser"}:
        return "fp32"
    from transforms.models.checkpoints import settled  # noqa: PLC0415 - it imports torch

    return settled(precision)


def checkpoints_of(steps: Sequence[Step]) -> dict[str, str]:
    """Return the checkpoints that `steps` load, by kind."""
    return {kind: checkpoint for step in steps for kind, checkpoint in step.checkpoints().items()}


def instructions(checkpoints: Mapping[str, str]) -> dict[str, str]:
    """The instruction set that torch computes with on this machine; {} if no step runs a model of torch.

    Another one may change the last digits of a score, and so a shard.
    """
    if not checkpoints.keys() - {"parser"}:
        return {}
    import torch  # noqa: PLC0415 - a build without such models does not wait for it

    return {"torch.cpu": torch.backends.cpu.get_cpu_capability()}


def with_earlier_versions(output: str, job: Job, *, mix: bool) -> Job:
    """Return the job with the versions of libraries that the finished shards in `output` were made with.

    Args:
        output: the dataset's folder.
        job: how the dataset is made.
        mix: make the other shards with other versions.

    Raises:
        InputError: they are not those of now, and it was not asked to go on.
    """
    if not finished_shards(output):
        return job
    earlier = read_job(output).libraries
    changed = [
        (name, v, job.libraries.get(name, "none")) for name, v in earlier.items() if job.libraries.get(name) != v
    ]
    if changed and not mix:
        words = ", ".join(f"{name} {then} (now {now})" for name, then, now in changed)
        raise InputError(
            f"the finished shards of {output} were made with {words}: --mix-versions keeps them and makes the "
            "others with what is installed, --overwrite makes all again"
        )
    return job.model_copy(update={"libraries": earlier})


def kept_candidates(config: BuildConfig, steps: Sequence[Step], job: Job) -> tuple[int, str]:
    """Return how many steps find candidates that are kept, and their stamp; (0, "") if none are."""
    count = model_steps(steps) if config.candidates else 0
    common = {name: job.config[name] for name in BuildConfig.model_fields if name not in RUN_FIELDS}
    return count, candidates_stamp(steps[:count], job, common) if count else ""


def without_run_fields(job: Job) -> Job:
    """The job without the fields of its config that do not change the bytes of a shard."""
    defaults = BuildConfig().model_dump(mode="json")
    own = BUILDS[job.recipe].__annotations__.keys() if job.recipe in BUILDS else ()
    later = {name for name in LATER_FIELDS.difference(own) if job.config.get(name) == defaults[name]}
    return job.model_copy(update={"config": {k: v for k, v in job.config.items() if k not in RUN_FIELDS | later}})


def with_fingerprints(
    chunks: Iterable[Chunk], stamps: str, job: Job, *, counts: bool, candidates: str = ""
) -> list[Chunk]:
    """Return the chunks with the fingerprints of their shards.

    Args:
        chunks: as they were listed.
        stamps: of the steps.
        job: how the dataset is made.
        counts: whether the number of records is known; it is not if each caption of a picture is one.
        candidates: the stamp of the steps that find candidates, if these are kept (`transforms.candidates`).
    """
    hashed = without_run_fields(job)
    return [
        replace(
            chunk,
            fingerprint=shard_fingerprint(chunk.fingerprint + stamps, hashed),
            expected=chunk.expected if counts else None,
            candidates=hashlib.sha256(f"{chunk.fingerprint}\n{candidates}".encode()).hexdigest() if candidates else "",
        )
        for chunk in chunks
    ]
