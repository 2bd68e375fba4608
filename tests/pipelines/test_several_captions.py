"""COCO's several captions per picture, through whole builds."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from jobs.build import Request, build
from jobs.exports.folder import read_samples
from jobs.inspect import inspect
from jobs.report.page import write_report
from pipelines import RECIPES
from schemas.dataset import Counts
from schemas.errors import ConfigError
from schemas.keys import caption_key
from transforms.models.presets import resolve

SAMPLE = resolve("sample", {})
QUIET = Console(quiet=True)

B = ["A very long description of a pier", "A pier"]
CAPTIONS: dict[str, Sequence[str | None]] = {
    # Links: 1, none (no phrase), 2, 2.
    "a": ["A dog", "It is there", "", "A person with a dog", " A  dog ", "A dog beside a person", None],
    # Links: none (no such class).
    "b": B,
    "c": ["A dog"],
    # Not decodable.
    "d": ["A dog", "A person"],
}
A = ["A dog", "It is there", "A person with a dog", "A dog beside a person"]
"""The captions of "a" as they are stored."""


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures of a dog and a person, and their captions."""
    folder = tmp_path_factory.mktemp("several") / "coco"
    write_coco(folder, CAPTIONS)
    (folder / "d.jpg").write_bytes(b"no picture")
    return folder


def write_coco(folder: Path, captions: Mapping[str, Sequence[str | None]]) -> None:
    folder.mkdir()
    images, annotations, texts = [], [], []
    for number, (name, several) in enumerate(captions.items()):
        Image.new("RGB", (64, 48), (90, 120 + number, 90)).save(folder / f"{name}.jpg")
        images.append({"id": number, "file_name": f"{name}.jpg", "width": 64, "height": 48})
        for category, x in ((1, 4), (2, 30)):
            corners = [x, 4, x + 20, 4, x + 20, 24, x, 24]
            annotations.append({"image_id": number, "category_id": category, "iscrowd": 0, "segmentation": [corners]})
        texts += [{"image_id": number, "caption": text} for text in several]
    # Not in the order of their IDs.
    texts = [{"id": i, **text} for i, text in enumerate(texts)][::-1]
    content = {
        "images": images,
        "annotations": [{"id": i, **annotation} for i, annotation in enumerate(annotations)],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    (folder / "captions.json").write_text(json.dumps({"annotations": texts}))


def run(recipe: str, source: Path, output: Path, captions: str, options: dict[str, Any] | None = None) -> Counts:
    """Build, check that nothing is wrong with the dataset, and return its books."""
    fields = {"samples_per_shard": 2, "captions": captions}
    if recipe == "fastcomposer":
        fields["similarity"] = "label"
    if recipe == "mip-adapter":
        fields |= {"similarity": "label", "min_aspect": 0.1, "duplicates": None}
    config = RECIPES[recipe].config(**fields)
    counts = build(Request(recipe, str(source), str(output), config, SAMPLE, **(options or {})), QUIET).counts
    assert counts.read == counts.written + counts.rejected
    assert inspect(str(output)).problems == ()
    return counts


def stored(output: Path, recipe: str) -> dict[str, tuple[str, list[str]]]:
    """The source's caption of each sample and the others, by key."""
    records = [json.loads(sample.members["json"]) for sample in read_samples(str(output), recipe)]
    return {r["key"]: (r.get("source_caption", r["caption"]), r.get("other_captions", [])) for r in records}


def others(caption: str) -> tuple[str, list[str]]:
    return caption, [text for text in A if text != caption]


def tars(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.glob("*.tar")}


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        ("first", {"a": others(A[0]), "b": (B[0], [B[1]]), "c": ("A dog", [])}),
        ("longest", {"a": others(A[3]), "b": (B[0], [B[1]]), "c": ("A dog", [])}),
        (
            "all",
            {
                **{caption_key("a", number): others(text) for number, text in enumerate(A, start=1)},
                "b": (B[0], [B[1]]),
                caption_key("b", 2): (B[1], [B[0]]),
                "c": ("A dog", []),
            },
        ),
    ],
)
def test_captions_are_chosen_as_they_are(coco: Path, tmp_path: Path, captions: str, expected: Any) -> None:  # noqa: ANN401
    counts = run("captioned", coco, tmp_path / "out", captions)
    assert f"{counts.read} read = {counts.written} written" in Path(write_report(str(tmp_path / "out"))).read_text()
    assert (counts.read, counts.rejects) == (len(expected) + 1, {"read": {"undecodable-image": 1}})
    assert stored(tmp_path / "out", "captioned") == expected


@pytest.mark.parametrize(
    ("recipe", "captions", "expected", "rejects"),
    [
        ("fastcomposer", "first", {"a": A[0], "c": "A dog"}, {"matches": {"no-match": 1}}),
        ("fastcomposer", "most-linked", {"a": A[2], "c": "A dog"}, {"matches": {"no-match": 1}}),
        (
            "fastcomposer",
            "all",
            {"a": A[0], caption_key("a", 3): A[2], caption_key("a", 4): A[3], "c": "A dog"},
            {"matches": {"no-match": 2}, "phrases": {"no-phrase": 1}},
        ),
        ("mip-adapter", "most-linked", {"a": A[2]}, {"gates": {"few-objects": 1}, "matches": {"no-match": 1}}),
    ],
)
def test_captions_are_chosen_by_their_links(
    coco: Path, tmp_path: Path, recipe: str, captions: str, expected: dict[str, str], rejects: dict[str, dict[str, int]]
) -> None:
    counts = run(recipe, coco, tmp_path / "out", captions)
    assert counts.rejects == {**rejects, "read": {"undecodable-image": 1}}
    assert {key: caption for key, (caption, _) in stored(tmp_path / "out", recipe).items()} == expected


def test_a_subject_of_an_annotation_is_cut_out_once_for_all_captions(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco", {"a": ["A pet", "A dog"]})
    config = RECIPES["blip-diffusion"].config(captions="all", min_side=8, rival=1, people=True, min_centrality=0)
    request = Request("blip-diffusion", str(tmp_path / "coco"), str(tmp_path / "out"), config, SAMPLE)
    counts = build(request, QUIET).counts
    samples = {sample.key: sample.members for sample in read_samples(str(tmp_path / "out"), "blip-diffusion")}
    assert (counts.read, set(samples)) == (2, {"a", caption_key("a", 2)})
    first, second = samples["a"], samples[caption_key("a", 2)]
    assert first["alpha.png"] == second["alpha.png"]
    assert first["input.jpg"] != second["input.jpg"]  # each has a background of its own
    assert inspect(str(tmp_path / "out")).problems == ()


@pytest.mark.parametrize("recipe", ["captioned", "blip-diffusion"])
def test_recipes_without_links_refuse_to_compare_them(coco: Path, tmp_path: Path, recipe: str) -> None:
    with pytest.raises(ConfigError, match="captions = 'most-linked' needs phrases that are linked to segments"):
        run(recipe, coco, tmp_path / "out", "most-linked")
    assert not (tmp_path / "out").exists()


def test_samples_of_one_picture_are_no_near_duplicates_of_each_other(coco: Path, tmp_path: Path) -> None:
    config = RECIPES["mip-adapter"].config(captions="all")
    with pytest.raises(ConfigError, match="of which duplicates = 3 would keep one: add --duplicates none"):
        build(Request("mip-adapter", str(coco), str(tmp_path / "out"), config, SAMPLE), QUIET)


def test_a_source_with_one_caption_each_gives_the_same_bytes_for_every_choice(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco", {"a": ["A person with a dog"], "b": ["Two dogs", ""], "c": ["It", None, "It"]})
    for choice in ("first", "longest", "most-linked", "all"):
        run("fastcomposer", tmp_path / "coco", tmp_path / choice, choice)
        assert tars(tmp_path / choice) == tars(tmp_path / "first")
    assert all(b"other_captions" not in data for data in tars(tmp_path / "first").values())


def test_a_picture_with_the_key_of_a_caption_is_not_merged_with_it(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco", {"a": ["A dog", "A pet"], "b": ["A cat"], caption_key("a", 2): ["A twin"]})
    counts = run("captioned", tmp_path / "coco", tmp_path / "out", "all")
    assert (counts.read, counts.written) == (4, 3)
    assert list(counts.rejects.values()) == [{"duplicate-key": 1}]


def test_a_resumed_job_gives_the_same_bytes(coco: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    expected = run("fastcomposer", coco, output, "all")
    whole, parts = tars(output), {path: path.stat().st_mtime_ns for path in output.rglob("part-*.parquet")}
    assert len(parts) == 2
    (output / "dataset.json").unlink()
    (output / ".subjectloom" / "part-000000.parquet").unlink()
    (output / "fastcomposer-000000.tar").unlink()
    assert run("fastcomposer", coco, output, "all", {"resume": True}) == expected
    assert tars(output) == whole
    done = output / ".subjectloom" / "part-000001.parquet"
    assert done.stat().st_mtime_ns == parts[done]
    first = run("fastcomposer", coco, output, "first", {"resume": True})  # another choice: built again
    assert first.written == 2
    assert tars(output) != whole


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "captions"), [("captioned", "all"), ("fastcomposer", "most-linked")])
def test_two_workers_write_the_same_bytes_as_one(coco: Path, tmp_path: Path, recipe: str, captions: str) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    options = {"beam_options": ("--direct_num_workers=2", "--direct_running_mode=multi_processing")}
    assert run(recipe, coco, alone, captions) == run(recipe, coco, together, captions, options)
    assert tars(alone) == tars(together)
    assert pq.read_table(alone / "rejects.parquet") == pq.read_table(together / "rejects.parquet")
