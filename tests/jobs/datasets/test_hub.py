"""Publishing a dataset, on a hub in this process: what is sent, and what the card says."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from jobs.datasets.hub import dataset_card, files_of, license_id, push, table
from jobs.report.page import write_report
from schemas.errors import ConfigError, InputError, OutageError
from schemas.rejects import Reason, Reject
from tests.datasets import example, write_dataset
from transforms.dataset import read_info


class Hub:
    """A hub that keeps what it is sent. Calls that huggingface_hub would not take fail."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"fastcomposer-000009.tar": b"of an earlier push"}
        self.created: dict[str, Any] = {}

    def create_repo(self, *arguments: Any, **options: Any) -> str:  # noqa: ANN401
        inspect.signature(HfApi.create_repo).bind(self, *arguments, **options)
        self.created = {"name": arguments[0], **options}
        return f"https://hub.example/datasets/{arguments[0]}"

    def upload_folder(self, **options: Any) -> None:  # noqa: ANN401
        inspect.signature(HfApi.upload_folder).bind(self, **options)
        assert options["delete_patterns"] == ["*.tar"]
        self.files = {
            path.name: path.read_bytes()
            for path in Path(options["folder_path"]).iterdir()
            if path.name in options["allow_patterns"]
        }

    def upload_file(self, **options: Any) -> None:  # noqa: ANN401
        inspect.signature(HfApi.upload_file).bind(self, **options)
        self.files[options["path_in_repo"]] = options["path_or_fileobj"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    output = tmp_path / "data"
    licences = ["CC BY 2.0", "Attribution License (http://creativecommons.org/licenses/by/2.0/)", ""]
    records: list[Any] = [example(key, license=name) for key, name in zip("abc", licences, strict=True)]
    write_dataset(output, [records, [Reject("r", "x", "matches", Reason.NO_MATCH, "-")]])
    write_report(str(output))
    (output / "private.txt").write_text("not part of the dataset")
    return output


def test_shards_and_what_stands_beside_them_are_sent(data: Path) -> None:
    hub: Any = Hub()
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    assert push(str(data), "me/dogs", private=True, api=hub) == "https://hub.example/datasets/me/dogs"
    assert hub.created == {"name": "me/dogs", "repo_type": "dataset", "private": True, "exist_ok": True}
    names = ["README.md", "dataset.json", "fastcomposer-000000.tar", "index.parquet", "rejects.parquet", "report.html"]
    assert sorted(hub.files) == names
    assert hub.files["index.parquet"] == (data / "index.parquet").read_bytes()
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before


def test_the_card_states_licences_models_and_rejects(data: Path) -> None:
    card = dataset_card(read_info(str(data)), "me/dogs")
    _, head, text = card.split("---\n", 2)
    fields = yaml.safe_load(head)
    assert fields["license"] == "other"  # some are not stated
    assert fields["configs"][0]["data_files"] == [{"split": "train", "path": "fastcomposer-*.tar"}]
    assert fields["size_categories"] == ["n<1K"]
    assert text.startswith("\n# dogs\n")
    for row in (
        "| not stated | 1 |",
        "| CC BY 2.0 | 1 |",
        "| threshold | 0.25 |",
        "| segmenter | sample 0123abc |",
        "| matches: no-match | 1 |",
    ):
        assert row in text
    assert "`KEY.jpg`, `KEY.json`" in text
    assert 'load_dataset("me/dogs"' in text


def test_a_licence_that_all_samples_share_is_the_card_s(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", [[example("a", license="CC BY-NC 2.0"), example("b", license="CC-BY-NC-2.0")]])
    head = dataset_card(read_info(str(tmp_path / "data")), "me/dogs").split("---\n", 2)[1]
    assert yaml.safe_load(head)["license"] == "cc-by-nc-2.0"


@pytest.mark.parametrize(
    ("name", "identifier"),
    [
        ("", "unknown"),
        ("  ", "unknown"),
        ("CC0", "cc0-1.0"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", "cc0-1.0"),
        ("CC BY 4.0", "cc-by-4.0"),
        ("CC-BY-SA 3.0", "cc-by-sa-3.0"),
        ("Licence (http://creativecommons.org/licenses/by-nc-sa/2.0/)", "cc-by-nc-sa-2.0"),
        ("all rights reserved", "other"),
        ("CC BY", "other"),
    ],
)
def test_licences_have_the_hub_s_names(name: str, identifier: str) -> None:
    assert license_id(name) == identifier


def test_what_a_source_states_cannot_break_the_card() -> None:
    drawn = table(("a", "b"), [("x|y\n# z", "<script>[a](b)`")])
    assert drawn.splitlines()[2] == r"| x\|y # z | \<script\>\[a\](b)\` |"
    assert len(drawn.splitlines()) == 3


def test_a_refusal_is_one_line(data: Path) -> None:
    class Closed(Hub):
        def upload_folder(self, **_: Any) -> None:  # noqa: ANN401
            import httpx2  # noqa: PLC0415 - what huggingface_hub's errors carry

            response = httpx2.Response(403, request=httpx2.Request("POST", "https://hub.example"))
            raise HfHubHTTPError("403 Forbidden: no right to write\nmore", response=response)

    closed: Any = Closed()
    with pytest.raises(
        OutageError, match=r"did not take me/dogs \(403 Forbidden: no right to write\): `hf auth login`"
    ):
        push(str(data), "me/dogs", private=False, api=closed)


@pytest.mark.parametrize("name", ["dogs", "me/", "/dogs", "me/do gs", "me/dogs/cats", "https://huggingface.co/me/dogs"])
def test_a_name_without_an_owner_is_refused_before_anything_is_sent(data: Path, name: str) -> None:
    hub: Any = Hub()
    with pytest.raises(ConfigError, match=re.escape(f"{name!r} is no repository: write OWNER/NAME")):
        push(str(data), name, private=False, api=hub)
    assert not hub.created


def test_a_dataset_without_a_report_and_one_elsewhere_are_refused(data: Path) -> None:
    (data / "report.html").unlink()
    with pytest.raises(InputError, match=r"has no report\.html: `subjectloom report` writes it"):
        files_of(str(data))
    with pytest.raises(ConfigError, match="is not on this machine"):
        files_of("gs://bucket/data")
