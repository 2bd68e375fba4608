"""Publish a dataset on the Hugging Face hub, with a card that is written from `dataset.json`."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import yaml

from schemas.dataset import DatasetInfo
from schemas.errors import ConfigError, InputError, OutageError
from schemas.samples import format_of
from transforms.dataset import read_info
from transforms.files import is_remote, list_files

if TYPE_CHECKING:
    from huggingface_hub import HfApi

BESIDE = ("index.parquet", "rejects.parquet", "dataset.json", "report.html")
"""Files of a dataset beside its shards."""

SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
"""The hub's words for the number of samples, by their upper bounds."""

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def files_of(folder: str) -> list[str]:
    """Return the names of the files that are published: shards and what stands beside them, not the build's state.

    Raises:
        InputError: there is no finished dataset, or no report.
        ConfigError: the folder is not on this machine.
    """
    if is_remote(folder):
        raise ConfigError(f"{folder} is not on this machine: copy it to a folder, and push that")
    info = read_info(folder)
    names = list_files(folder)
    if absent := [name for name in BESIDE if name not in names]:
        way = ": `subjectloom report` writes it" if absent == ["report.html"] else ""
        raise InputError(f"{folder} has no {absent[0]}{way}")
    shards = re.compile(rf"{re.escape(info.recipe)}-\d{{6,}}\.tar")
    return [name for name in names if name in BESIDE or shards.fullmatch(name)]


def push(folder: str, repository: str, *, private: bool, api: "HfApi | None" = None) -> str:
    """Publish a dataset and return its address. A second push updates what changed.

    Args:
        folder: of a finished dataset, on this machine.
        repository: OWNER/NAME; it is created if there is none.
        private: create it as a private one.
        api: the hub; None: that of `huggingface_hub`, with the token that `hf auth login` stored, or HF_TOKEN.

    Raises:
        ConfigError: `repository` is no name of one.
        InputError: there is no finished dataset.
        OutageError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi  # noqa: PLC0415 - it takes a second
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    if not _REPOSITORY.fullmatch(repository):
        raise ConfigError(f"{repository!r} is no repository: write OWNER/NAME")
    names = files_of(folder)
    card = dataset_card(read_info(folder), repository)
    hub = api or HfApi(library_name="subjectloom")
    message = f"Upload a {read_info(folder).recipe} dataset"
    try:
        address = hub.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=repository, folder_path=folder, repo_type="dataset", allow_patterns=names,
            delete_patterns=["*.tar"], commit_message=message,
        )  # fmt: skip
        hub.upload_file(
            path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=repository, repo_type="dataset",
            commit_message=message,
        )  # fmt: skip
    except (HfHubHTTPError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OutageError(
            f"the hub did not take {repository} ({first}): `hf auth login` stores a token that may write there; the "
            "same command goes on"
        ) from error
    return str(address)


def dataset_card(info: DatasetInfo, repository: str) -> str:
    """Return the README.md of a dataset on the hub: metadata in YAML, then what it holds and how it was made."""
    counts, recipe = info.counts, info.recipe
    identifiers = sorted({license_id(name) for name in info.licenses})
    head = {
        "license": identifiers[0] if len(identifiers) == 1 else "other" if identifiers else "unknown",
        "task_categories": ["text-to-image"],
        "tags": ["webdataset", "subjectloom", recipe],
        "size_categories": [next((word for bound, word in SIZES if counts.written < bound), "n>10M")],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": f"{recipe}-*.tar"}]}],
    }
    sample_format = format_of(recipe)
    members = ", ".join(f"`KEY.{name}`" for name in [*sample_format.members, "json"])
    rejects = [(f"{s}: {r}", f"{n:,}") for s, reasons in counts.rejects.items() for r, n in reasons.items()]
    columns = ", ".join(f"`{name}`" for name in ("license", *sample_format.columns.names))
    licenses = [(name or "not stated", f"{number:,}") for name, number in info.licenses.items()]
    text = [
        f"# {repository.partition('/')[2]}",
        f"A `{recipe}` dataset of {counts.written:,} samples, made by Subjectloom. Of {counts.read:,} records that "
        f"were read, {counts.rejected:,} were rejected: `rejects.parquet` says why. `report.html` shows samples.",
        f"A sample is {members}. `index.parquet` has a row for each: key, shard, offset and size in the tar, caption, "
        f"{columns}.",
        "```python\nfrom datasets import load_dataset\n\n"
        f'samples = load_dataset("{repository}", split="train", streaming=True)\n```',
        "## Licences of the pictures",
        table(("licence, as the source states it", "samples"), licenses),
        "Each picture keeps the licence of its source, which `license` in the index states; `source` is its address.",
        "## How it was made",
        table(("field", "value"), [(name, f"{value}") for name, value in info.config.items()]),
        table(("model", "checkpoint"), [(k, f"{m.name} {m.revision}".strip()) for k, m in info.models.items()]),
    ]
    if small := info.small_models():
        text.append(f"**Small models** ({', '.join(small)}), which know sample scenes only, made it.")
    if derived := info.derived:
        text.append(f"`subjectloom {derived.command}` made it from other datasets; `dataset.json` says from which.")
    if rejects:
        text += ["## Rejects", table(("stage and reason", "records"), rejects)]
    return "---\n" + yaml.safe_dump(head, sort_keys=False) + "---\n\n" + "\n\n".join(filter(None, text)) + "\n"


def license_id(name: str) -> str:
    """Return the hub's identifier of a licence that a source states: "unknown" for none, "other" if it has none.

    >>> license_id("Attribution License (http://creativecommons.org/licenses/by/2.0/)")
    'cc-by-2.0'
    """
    if not name.strip():
        return "unknown"
    if re.search(r"publicdomain/zero|\bCC[ -]?0\b", name, re.IGNORECASE):
        return "cc0-1.0"
    found = re.search(r"creativecommons\.org/licenses/(by[a-z-]*)/(\d\.\d)", name, re.IGNORECASE)
    found = found or re.search(r"\bCC[ -](BY(?:-[A-Z]{2})*)[ -](\d\.\d)\b", name, re.IGNORECASE)
    return f"cc-{found[1].lower()}-{found[2]}" if found else "other"


def table(heads: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    """Return a table of Markdown with two columns; "" without rows. Text of sources is escaped."""
    cells = [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows]
    return "\n".join([f"| {heads[0]} | {heads[1]} |", "| --- | --- |", *cells]) if cells else ""


def _cell(text: str) -> str:
    flat = " ".join(text.split())
    return re.sub(r"([\\`*_<>\[\]|])", r"\\\1", flat)
