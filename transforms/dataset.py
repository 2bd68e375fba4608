"""The folder of a dataset: prepared before a job, finished after it, read by the report, the exports and training.

    OUT/.subjectloom/job.json              written first: marks the folder as ours, and states what is built
    OUT/RECIPE-000000.tar                  a shard
    OUT/.subjectloom/part-000000.parquet   its books, written after it: mark the shard as done
    OUT/.subjectloom/round.json            the shards that a process is making (jobs.rescue)
    OUT/index.parquet, rejects.parquet     made from the parts
    OUT/dataset.json                       written last: the dataset is finished

A file gets its name only when it is complete. Files that Subjectloom did not write are never deleted.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from schemas.dataset import (
    Counts,
    DatasetInfo,
    Job,
    Part,
    decode_part,
    part_name,
    rejects_table,
    table_to_parquet,
    to_json,
)
from schemas.errors import ConfigError, InputError, SubjectloomError
from schemas.samples import FORMATS
from schemas.samples.base import SampleFormat
from schemas.shards import shard_name
from transforms.files import join, list_files, open_file, read_file, remove_empty_folder, remove_files, replace_file
from transforms.outages import describe

STATE = ".subjectloom"
"""The folder inside a dataset that records the progress of its job."""

_PART = r"\.subjectloom/part-\d{6,}\.parquet"
_TEMPORARY = r"(\.[0-9a-f]{32}\.tmp)?"

LIBRARIES = (
    "subjectloom",
    "apache-beam",
    "numpy",
    "open_clip_torch",
    "pillow",
    "pyarrow",
    "pycocotools",
    "spacy",
    "torch",
    "transformers",
)
"""The libraries that the bytes of a dataset depend on; `dataset.json` records their versions."""


def prepare_output(output: str, job: Job, *, overwrite: bool = False, resume: bool = False) -> None:
    """Prepare the folder `output` for `job`: keep what a resumed job needs, remove what an overwritten one wrote.

    Raises:
        ConfigError: both `overwrite` and `resume` are asked for.
        InputError: `output` cannot be written to, holds files that are not ours, or holds a dataset and
            neither option is given.
    """
    if overwrite and resume:
        raise ConfigError("--overwrite and --resume contradict each other: choose one")
    try:
        names = list_files(output)
        earlier = _earlier_job(output, names)
        if earlier:
            _decide(output, names, earlier, job, overwrite=overwrite, resume=resume)
        replace_file(join(output, STATE, "job.json"), to_json(job.model_dump(mode="json")))
    except OSError as error:
        raise InputError(f"cannot write to {output}: {describe(error)}") from error


@contextmanager
def leaving_nothing(output: str) -> Iterator[None]:
    """Empty `output` again if the block fails before a shard is done: the corrected command finds it as it was."""
    try:
        yield
    except BaseException:
        with suppress(OSError):  # it may be what failed
            leave_nothing(output)
        raise


def leave_nothing(output: str) -> bool:
    """Empty `output` of what is ours unless a shard in it is done; return whether nothing of ours is left."""
    names = list_files(output)
    if "dataset.json" in names or finished_shards(output):
        return False
    if join(STATE, "job.json") in names:
        recipe = _read_job(output).recipe
        remove_files(join(output, name) for name in names if _is_ours(name, recipe))
    remove_empty_folder(join(output, STATE))
    return True


def finished_shards(output: str) -> dict[int, str]:
    """Return the fingerprint of every shard that is done, by its number."""
    names = set(list_files(output))
    if join(STATE, "job.json") not in names:
        return {}
    recipe = _read_job(output).recipe
    done = {}
    for name in sorted(names):
        if not re.fullmatch(_PART, name):
            continue
        try:
            with open_file(join(output, name)) as stream:
                metadata = pq.read_metadata(stream)
            part = decode_part(metadata.metadata)
        except (pa.ArrowInvalid, KeyError, ValidationError):
            continue  # of another version, or damaged: the shard is made again
        if recipe in FORMATS and metadata.schema.to_arrow_schema().names != FORMATS[recipe].index_columns.names:
            continue  # of another version: the index has other columns now
        if part.written == 0 or shard_name(recipe, part.shard) in names:
            done[part.shard] = part.fingerprint
    return done


def finish_dataset(
    output: str,
    job: Job,
    fingerprints: Mapping[int, str],
    sample_format: SampleFormat,
    gaps: Mapping[str, int] | None = None,
) -> DatasetInfo:
    """Write the index, the rejects and `dataset.json` from the shards' parts, and check the books.

    The index is sorted by key and held in memory meanwhile, about 300 bytes per sample. Shards and parts of
    an earlier run that do not belong to this one are removed.

    Args:
        output: the dataset's folder.
        job: how the dataset was made.
        fingerprints: of all its shards, by number.
        sample_format: the recipe's.
        gaps: pictures and annotations of the source without a counterpart, by a name.

    Raises:
        InputError: two samples have one key.
        SubjectloomError: a shard is not finished.
    """
    parts, rows = _read_parts(output, fingerprints, sample_format)
    index = pa.concat_tables([sample_format.index_columns.empty_table(), *rows]).sort_by("key")
    _refuse_twins(index)
    info = _compose(job, parts, index, gaps or {})
    _remove_stale(output, {part.shard: part.written for part in parts}, job.recipe)
    replace_file(join(output, "index.parquet"), table_to_parquet(index))
    replace_file(join(output, "rejects.parquet"), table_to_parquet(rejects_table(r for p in parts for r in p.rejects)))
    replace_file(join(output, "dataset.json"), to_json(info.model_dump(mode="json")))
    return info


def read_info(output: str) -> DatasetInfo:
    """Read `dataset.json`.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    names = list_files(output)
    if "dataset.json" not in names:
        if join(STATE, "job.json") in names:
            raise InputError(f"the dataset in {output} is not finished: run its build again with --resume")
        raise InputError(f"{output} holds no dataset: there is no dataset.json")
    try:
        return DatasetInfo.model_validate_json(read_file(join(output, "dataset.json")))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise InputError(f"{output}/dataset.json cannot be read: {where}: {first['msg']}") from error


def read_table(output: str, name: str) -> pa.Table:
    """Read a Parquet file of a dataset, `index.parquet` or `rejects.parquet`.

    Raises:
        InputError: it is missing or cannot be read.
    """
    try:
        with open_file(join(output, name)) as stream:
            return pq.read_table(stream)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{output}/{name} cannot be read: {error}") from error


def library_versions() -> dict[str, str]:
    """Return the versions of the installed ones of `LIBRARIES`."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _earlier_job(output: str, names: list[str]) -> Job | None:
    """Return the job that made the folder's contents, None for an empty folder."""
    if join(STATE, "job.json") in names:
        return _read_job(output)
    if names:
        raise InputError(
            f"{output} holds files that do not belong to a dataset, such as {names[0]}: name a new or an empty folder"
        )
    return None


def _read_job(output: str) -> Job:
    try:
        return Job.model_validate_json(read_file(join(output, STATE, "job.json")))
    except ValidationError as error:
        raise InputError(
            f"{output}/{STATE}/job.json cannot be read, so its contents are unknown: remove the folder or name another"
        ) from error


def _decide(output: str, names: list[str], earlier: Job, job: Job, *, overwrite: bool, resume: bool) -> None:
    ours = [join(output, name) for name in names if _is_ours(name, earlier.recipe)]
    if overwrite and earlier.recipe != job.recipe:
        raise InputError(
            f"{output} holds a {earlier.recipe} dataset, which a {job.recipe} build does not replace: "
            "remove the folder, or name another one"
        )
    if overwrite or ("dataset.json" in names and not resume and not read_info(output).counts.written):
        remove_files(ours)  # one without samples is of no use to anybody
    elif resume and earlier.recipe != job.recipe:
        raise InputError(
            f"{output} holds a {earlier.recipe} dataset: --resume cannot go on with {job.recipe}; name another folder"
        )
    elif resume:
        # The dataset must not look finished before it is finished again.
        remove_files([join(output, "dataset.json")])
        remove_files(path for path in ours if path.endswith(".tmp"))
    elif "dataset.json" in names:
        raise InputError(
            f"{output} already holds a {earlier.recipe} dataset: --overwrite replaces it, "
            "--resume makes only what is missing or out of date"
        )
    else:
        raise InputError(
            f"{output} holds an interrupted run with {len(finished_shards(output))} finished shards: "
            "--resume goes on with it, --overwrite starts again"
        )


def _is_ours(name: str, recipe: str) -> bool:
    own = rf"(dataset\.json|index\.parquet|rejects\.parquet|report\.html|{re.escape(recipe)}-\d{{6,}}\.tar)"
    return name.startswith(f"{STATE}/") or re.fullmatch(own + _TEMPORARY, name) is not None


def _read_parts(
    output: str, fingerprints: Mapping[int, str], sample_format: SampleFormat
) -> tuple[list[Part], list[pa.Table]]:
    done = finished_shards(output)
    missing = [shard for shard, fingerprint in fingerprints.items() if done.get(shard) != fingerprint]
    if missing:
        raise SubjectloomError(
            f"{len(missing)} of {len(fingerprints)} shards in {output} are not finished, "
            f"such as {shard_name(sample_format.recipe, min(missing))}: run again with --resume"
        )
    parts, rows = [], []
    for shard in sorted(fingerprints):
        with open_file(join(output, STATE, part_name(shard))) as stream:
            table = pq.read_table(stream)
        parts.append(decode_part(table.schema.metadata))
        rows.append(table.replace_schema_metadata(None))
    return parts, rows


def _refuse_twins(index: pa.Table) -> None:
    keys = index["key"]
    same = pc.equal(keys.slice(1), keys.slice(0, max(len(keys) - 1, 0)))
    first = pc.index(same, value=True).as_py()
    if first >= 0:
        shards = index["shard"].slice(first, 2).to_pylist()
        raise InputError(
            f"the key {keys[first].as_py()!r} is in {shards[0]} and in {shards[1]}: keys must differ, "
            "rename one of the inputs and run again with --resume"
        )


def _compose(job: Job, parts: list[Part], index: pa.Table, gaps: Mapping[str, int]) -> DatasetInfo:
    rejects: dict[str, Counter[str]] = defaultdict(Counter)
    seconds: dict[str, float] = defaultdict(float)
    for part in parts:
        for stage, spent in part.seconds.items():
            seconds[stage] += spent
        for reject in part.rejects:
            rejects[reject.stage][reject.reason] += 1
    counts = Counts(
        read=sum(part.read for part in parts),
        written=len(index),
        rejected=sum(len(part.rejects) for part in parts),
        shards=sum(part.written > 0 for part in parts),
        rejects={stage: dict(sorted(reasons.items())) for stage, reasons in sorted(rejects.items())},
    )
    check_books(counts.read, counts.written, counts.rejected, "the dataset")
    return DatasetInfo(
        **job.model_dump(),
        counts=counts,
        seconds={stage: round(spent, 3) for stage, spent in seconds.items()},
        libraries=library_versions(),
        licenses=dict(sorted(Counter(index["license"].to_pylist()).items())),
        gaps=dict(gaps),
    )


def check_books(read: int, written: int, rejected: int, what: str) -> None:
    """Raise a SubjectloomError unless every record of `what` was either written or rejected."""
    if read != written + rejected:
        raise SubjectloomError(
            f"the books of {what} do not balance: {read} read, {written} written, {rejected} rejected: "
            "this is a defect of Subjectloom, please report it"
        )


def _remove_stale(output: str, written: Mapping[int, int], recipe: str) -> None:
    kept = {shard_name(recipe, shard) for shard, samples in written.items() if samples}
    kept |= {join(STATE, part_name(shard)) for shard in written}
    stale = re.compile(rf"({re.escape(recipe)}-\d{{6,}}\.tar|{_PART})" + _TEMPORARY)
    names = (name for name in list_files(output) if stale.fullmatch(name) and name not in kept)
    remove_files(join(output, name) for name in names)
