"""The folder of a dataset: prepared before a job, finished after it, read by the report, the exports and training.

    OUT/.subjectloom/job.json              written first: marks the folder as ours, and states what is built
    OUT/RECIPE-000000.tar                  a shard
    OUT/RECIPE-000000.json                 where the files in it are, for webshart (schemas.webshart)
    OUT/.subjectloom/part-000000.parquet   its books, written after it: mark the shard as done
    OUT/.subjectloom/members.parquet       which input is in which shard (transforms.members)
    OUT/.subjectloom/plan, plan-items      what a remote runner's workers read (transforms.read)
    OUT/.subjectloom/candidates-N.parquet  what models found for a shard (transforms.candidates)
    OUT/.subjectloom/pieces/               results of batches whose shard is not done (transforms.pieces)
    OUT/.subjectloom/round.json            the shards that a process is making (jobs.rescue)
    OUT/index.parquet, rejects.parquet     made from the parts (transforms.finish)
    OUT/.huggingface.yaml                  what Hugging Face `datasets` reads of the folder: the tars
    OUT/dataset.json                       written last: the dataset is finished

A file gets its name only when it is complete. Files that Subjectloom did not write are never deleted.
"""

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from schemas.dataset import DatasetInfo, Job, decode_part, to_json
from schemas.errors import ConfigError, InputError, SubjectloomError
from schemas.samples import FORMATS
from schemas.shards import shard_name
from transforms.files import (
    join,
    list_files,
    open_file,
    read_file,
    remove_empty_folder,
    remove_files,
    replace_file,
    replacing,
)
from transforms.outages import describe
from transforms.tables import ROW_GROUP

STATE = ".subjectloom"
"""The folder inside a dataset that records the progress of its job."""

PART_PATTERN = r"\.subjectloom/part-\d{6,}\.parquet"
TEMPORARY_PATTERN = r"(\.[0-9a-f]{32}\.tmp)?"
"""Regular expressions of the names of parts, and of what follows the name of a file that is not complete."""

MEMBERS, PIECES = "members.parquet", "pieces"

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


def prepare_output(
    output: str, job: Job, *, overwrite: bool = False, resume: bool = False, members: Path | None = None
) -> None:
    """Prepare the folder `output` for `job`: keep what a resumed job needs, remove what an overwritten one wrote.

    `members` is a local file that states which inputs are in which shard (`transforms.members`); it is copied.

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
        if members:
            with members.open("rb") as stream, replacing(join(output, STATE, MEMBERS)) as copy:
                shutil.copyfileobj(stream, copy)
    except OSError as error:
        raise InputError(f"cannot write to {output}: {describe(error)}") from error


@contextmanager
def leaving_nothing(output: str) -> Iterator[None]:
    """Empty `output` again if the block fails before any work is done: the corrected command finds it as it was."""
    try:
        yield
    except BaseException:
        with suppress(OSError):  # it may be what failed
            leave_nothing(output)
        raise


def leave_nothing(output: str) -> bool:
    """Empty `output` of what is ours unless a part of the work is done; return whether nothing of ours is left."""
    names = list_files(output)
    if "dataset.json" in names or finished_shards(output) or any(map(_is_piece, names)) or _has_subjects(names):
        return False
    if join(STATE, "job.json") in names:
        recipe = read_job(output).recipe
        remove_files(join(output, name) for name in names if _is_ours(name, recipe))
    remove_empty_folder(join(output, STATE))
    return True


def finished_shards(output: str) -> dict[int, str]:
    """Return the fingerprint of every shard that is done, by its number."""
    names = set(list_files(output))
    if join(STATE, "job.json") not in names:
        return {}
    recipe = read_job(output).recipe
    done = {}
    for name in sorted(names):
        if not re.fullmatch(PART_PATTERN, name):
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
    with open_table(output, name) as file:
        return file.read()


@contextmanager
def open_table(output: str, name: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file of a dataset, to read some rows at a time.

    Raises:
        InputError: it is missing or cannot be read; also if that shows while the block reads.
    """
    try:
        with open_file(join(output, name)) as stream:
            yield pq.ParquetFile(stream)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{output}/{name} cannot be read: {error}") from error


def read_tables(
    output: str, name: str = "index.parquet", *, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Yield the rows of a Parquet file of a dataset, some ten thousand at a time.

    Raises:
        InputError: it is missing or cannot be read.
    """
    with open_table(output, name) as file:
        for batch in file.iter_batches(ROW_GROUP, columns=columns):
            yield pa.Table.from_batches([batch]).replace_schema_metadata(None)


def library_versions(others: Iterable[str] = ()) -> dict[str, str]:
    """Return the versions of the installed ones of `LIBRARIES` and `others`."""
    versions = {}
    for name in (*LIBRARIES, *others):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def both_versions(earlier: Mapping[str, str]) -> dict[str, str]:
    """Return the versions of the libraries; after those of an earlier run, where they are others."""
    now = library_versions()
    both = {name: v if earlier.get(name, v) == v else f"{earlier[name]}, {v}" for name, v in now.items()}
    return {**earlier, **both}


def _earlier_job(output: str, names: list[str]) -> Job | None:
    """Return the job that made the folder's contents, None for an empty folder."""
    if join(STATE, "job.json") in names:
        return read_job(output)
    if names:
        raise InputError(
            f"{output} holds files that do not belong to a dataset, such as {names[0]}: name a new or an empty folder"
        )
    return None


def read_job(output: str) -> Job:
    """Read how the dataset in a folder is made, finished or not.

    Raises:
        InputError: its description cannot be read.
    """
    try:
        return Job.model_validate_json(read_file(join(output, STATE, "job.json")))
    except ValidationError as error:
        raise InputError(
            f"{output}/{STATE}/job.json cannot be read, so its contents are unknown: remove the folder or name another"
        ) from error


def refuse_derived(output: str) -> None:
    """Refuse to go on building a dataset that was made from others.

    Raises:
        InputError: `output` holds one.
    """
    if join(STATE, "job.json") in list_files(output) and (derived := read_job(output).derived):
        raise InputError(
            f"{output} was made from other datasets by `subjectloom {derived.command}`: --resume goes on with builds "
            "only; name the dataset's own folder, or --overwrite this one"
        )


def remove_dataset(output: str) -> None:
    """Remove all files of the dataset in `output`, finished or not; those of others stay."""
    names = list_files(output)
    if join(STATE, "job.json") in names:
        recipe = read_job(output).recipe
        remove_files(join(output, name) for name in names if _is_ours(name, recipe))
    remove_empty_folder(join(output, STATE))


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


def _has_subjects(names: list[str]) -> bool:
    """Whether shards of subjects, of which pairs are to be made, are done."""
    return any(re.match(rf"{re.escape(STATE)}/subjects/{PART_PATTERN}", name) for name in names)


def _is_piece(name: str) -> bool:
    return name.startswith(f"{STATE}/{PIECES}/") and not name.endswith(".tmp")


def _is_ours(name: str, recipe: str) -> bool:
    shard = rf"{re.escape(recipe)}-\d{{6,}}\.(tar|json)"
    own = rf"(dataset\.json|\.huggingface\.yaml|index\.parquet|rejects\.parquet|report\.html|{shard})"
    return name.startswith(f"{STATE}/") or re.fullmatch(own + TEMPORARY_PATTERN, name) is not None


def check_books(read: int, written: int, rejected: int, what: str) -> None:
    """Raise a SubjectloomError unless every record of `what` was either written or rejected."""
    if read != written + rejected:
        raise SubjectloomError(
            f"the books of {what} do not balance: {read} read, {written} written, {rejected} rejected: "
            "this is a defect of Subjectloom, please report it"
        )
