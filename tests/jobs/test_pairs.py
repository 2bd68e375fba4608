"""`build pairs`: true groups of photographs, scenes that show one object twice, resuming, and what is missing."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from jobs.build import Request, build
from jobs.exports.references import export_references
from jobs.inspect import inspect
from jobs.report.page import write_report
from jobs.settings import read_config
from pipelines import BUILDS
from schemas.dataset import DatasetInfo
from schemas.errors import ConfigError, InputError
from schemas.example import Example
from schemas.images import decode_image, encode_jpeg
from schemas.samples.pairs import Record
from schemas.shards import Sample, read_tar
from tests.datasets import example, write_dataset
from tests.paths import SHARED
from transforms.dataset import read_table
from transforms.models.presets import resolve

QUIET = Console(quiet=True)
DOG, CAT = (4, 6, 20, 16), (32, 4, 20, 30)


def pairs(source: Path, output: Path, *settings: str, **options: Any) -> DatasetInfo:  # noqa: ANN401
    config = read_config(BUILDS["pairs"], None, list(settings))
    return build(Request("pairs", str(source), str(output), config, resolve("sample", {}), **options), QUIET)


def records(output: Path) -> dict[str, tuple[Record, Sample]]:
    found: dict[str, tuple[Record, Sample]] = {}
    for path in sorted(output.glob("pairs-*.tar")):
        with path.open("rb") as stream:
            found |= {sample.key: (Record.from_sample(sample), sample) for _, sample in read_tar(stream)}
    return found


def painted(key: str, dog: tuple[int, int, int], uri: str) -> Example:
    """A picture whose dog has the given colour, and whose cat is grey."""
    plain = example(key, [("a dog", DOG), ("a cat", CAT)])
    pixels = plain.pixels().copy()
    pixels[6:22, 4:24] = dog
    pixels[4:34, 32:52] = 90
    stored = encode_jpeg(pixels)
    return type(plain)(**{**plain.__dict__, "image": stored, "source": type(plain.source)(uri, "CC0"), "_pixels": None})


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures of two dogs, in two folders, in two shards."""
    folder = tmp_path_factory.mktemp("pairs") / "subjects"
    red, blue = (220, 30, 30), (30, 30, 220)
    shards = [
        [painted("a", red, "red/a.jpg"), painted("b", blue, "blue/b.jpg")],
        [painted("c", red, "red/c.jpg"), painted("d", blue, "blue/d.jpg")],
    ]
    write_dataset(folder, shards)
    return folder


def test_each_subject_gets_one_of_another_picture_of_its_folder(subjects: Path, tmp_path: Path) -> None:
    info = pairs(subjects, tmp_path / "out", "lower=-1", "upper=1")
    assert (info.counts.read, info.counts.written, info.counts.shards) == (8, 8, 2)
    assert inspect(str(tmp_path / "out")).problems == ()
    found = records(tmp_path / "out")
    for record, sample in found.values():
        assert record.group == record.source.uri.split("/")[0] == record.reference.source.uri.split("/")[0]
        assert record.reference.source != record.source
        assert decode_image(sample.members["target.jpg"]).shape == (48, 64, 3)
    record, sample = found["a"]
    assert (record.subject.text, record.reference.key) == ("a dog", "c")
    assert record.subject.bbox == DOG
    # The subjects of one picture have keys of their own.
    assert Counter(record.source.uri for record, _ in found.values())["red/a.jpg"] == 2
    assert "no-partner" not in json.dumps(info.counts.model_dump())
    write_report(str(tmp_path / "out"))
    assert "a dog" in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_clusters_find_the_same_dog_in_any_folder_and_bounds_leave_out_copies(subjects: Path, tmp_path: Path) -> None:
    pairs(subjects, tmp_path / "out", "group=clusters", "lower=0.9", "upper=1")
    dogs = {record.source.uri: record.reference.key for record, _ in records(tmp_path / "out").values()
            if record.subject.text == "a dog"}  # fmt: skip
    assert dogs["red/a.jpg"] == "c"
    assert dogs["blue/d.jpg"] == "b"
    highest = max(record.similarity for record, _ in records(tmp_path / "out").values())
    info = pairs(subjects, tmp_path / "less", "group=clusters", "lower=-1", f"upper={highest - 0.01}")
    assert max((record.similarity for record, _ in records(tmp_path / "less").values()), default=0) < highest
    assert info.counts.read == 8


def test_a_subject_without_a_partner_is_a_reject_that_says_why(subjects: Path, tmp_path: Path) -> None:
    with_pattern = pairs(subjects, tmp_path / "out", "group=pattern", r"pattern=red/(a|c)", "lower=-1", "upper=1")
    assert with_pattern.counts.rejects == {"pair": {"no-partner": 8}}
    details = read_table(str(tmp_path / "out"), "rejects.parquet")["detail"].to_pylist()
    assert Counter(details) == {
        "its address has no pattern red/(a|c)": 4,
        "its group 'a' holds no other picture": 2,
        "its group 'c' holds no other picture": 2,
    }
    info = pairs(subjects, tmp_path / "strict", "lower=0.9999", "upper=0.99991")
    assert info.counts.written + info.counts.rejected == 8
    assert info.counts.rejects["pair"]["no-partner"] >= 1
    detail = read_table(str(tmp_path / "strict"), "rejects.parquet")["detail"][0].as_py()
    assert "of its group has" in detail
    assert detail.endswith("a reference has 0.9999 to 0.99991")


def test_the_same_pairs_are_made_by_several_shards_again_and_after_an_interruption(
    subjects: Path, tmp_path: Path
) -> None:
    settings = ("lower=-1", "upper=1")
    pairs(subjects, tmp_path / "out", *settings)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.tar")}
    (tmp_path / "out" / "dataset.json").unlink()
    (tmp_path / "out" / ".subjectloom" / "part-000001.parquet").unlink()
    (tmp_path / "out" / "pairs-000001.tar").unlink()
    pairs(subjects, tmp_path / "out", *settings, resume=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.tar")} == before
    pairs(subjects, tmp_path / "out", *settings, overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.tar")} == before


def test_pairs_are_exported_as_target_and_whole_reference(subjects: Path, tmp_path: Path) -> None:
    pairs(subjects, tmp_path / "out", "lower=-1", "upper=1")
    exported = export_references(str(tmp_path / "out"), tmp_path / "uno", trainer="uno")
    assert exported.per_target == {1: 8}
    rows = json.loads((tmp_path / "uno" / "train_1.json").read_text("ascii"))
    (row,) = (row for row in rows if row["image_tgt_path"] == "images/a.jpg")
    reference = np.asarray(Image.open(tmp_path / "uno" / row["image_paths"][0]).convert("RGB"))
    np.testing.assert_array_equal(reference, decode_image(records(tmp_path / "out")["a"][1].members["reference.jpg"]))


def test_a_folder_of_pictures_is_searched_for_subjects_first_and_captioned_by_its_folders(tmp_path: Path) -> None:
    for name, picture in (("red_ball/1", (200, 30, 30)), ("red_ball/2", (190, 40, 30)), ("cup/1", (30, 200, 30))):
        path = tmp_path / "in" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), picture).save(path)
    settings = ("subjects=captioned", "caption=a photo of a {group}", "lower=-1", "upper=1")
    info = pairs(tmp_path / "in", tmp_path / "out", *settings)
    assert (info.counts.read, info.counts.written) == (3, 2)
    assert {record.caption for record, _ in records(tmp_path / "out").values()} == {"a photo of a red ball"}
    assert not (tmp_path / "out" / ".subjectloom" / "subjects" / "dataset.json").exists()
    assert inspect(str(tmp_path / "out")).problems == ()


@pytest.mark.skipif(not (SHARED / "real" / "dreambooth").exists(), reason="needs shared/real/dreambooth")
def test_the_true_groups_of_dreambooth_give_pairs_within_and_none_across(tmp_path: Path) -> None:
    for path in sorted((SHARED / "real" / "dreambooth").glob("*/*.jpg")):
        small = tmp_path / "in" / path.parent.name / path.name
        small.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as picture:
            picture.draft("RGB", (128, 128))
            picture.convert("RGB").resize((96, 96)).save(small)
    settings = ("subjects=captioned", "caption=a photo of a {group}", "lower=-1", "upper=1")
    info = pairs(tmp_path / "in", tmp_path / "out", *settings)
    found = [record for record, _ in records(tmp_path / "out").values()]
    assert info.counts.written == info.counts.read == len(found) == 50
    assert len({record.group for record in found}) == 9
    assert all(record.source.uri.split("/")[0] == record.reference.source.uri.split("/")[0] for record in found)


def test_what_is_missing_is_named(subjects: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="group = 'pattern' and a pattern belong together"):
        pairs(subjects, tmp_path / "out", "group=pattern")
    with pytest.raises(ConfigError, match=r"lower 0\.9 must not be above upper 0\.1"):
        pairs(subjects, tmp_path / "out", "lower=0.9", "upper=0.1")
    with pytest.raises(ConfigError, match="is no regular expression"):
        pairs(subjects, tmp_path / "out", "group=pattern", "pattern=(")
    pairs(subjects, tmp_path / "out", "lower=-1", "upper=1")
    with pytest.raises(InputError, match="whose samples have no subjects"):
        pairs(tmp_path / "out", tmp_path / "again")
