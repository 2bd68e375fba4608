"""`subjectloom evaluate`: its measures by hand, prompts and subjects, and the page.

tests/test_recipes.py draws a dataset of every recipe.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import jobs.evaluate
from jobs.drawing import Reference
from jobs.evaluate import without_subject
from jobs.evaluate_attention import shares_of
from jobs.evaluate_measures import (
    Judges,
    Score,
    identity,
    identity_of_others,
    interval,
    mean_cosine,
    measure,
    scores_of,
)
from jobs.evaluate_page import measure_rows, write_evaluation
from jobs.evaluate_samples import scene_ends
from jobs.evaluate_subjects import Benchmark, find_photographs, read_prompts
from jobs.references import choose_found, read_photograph
from schemas.errors import InputError
from schemas.example import Example, Match, Phrase
from schemas.rejects import Reason, Reject
from tests.datasets import box_mask, example, jpeg
from tests.evaluations import fake_evaluation
from tests.jobs.conftest import Run
from tests.training.models import CAPTIONS, save_tiny_autoencoder
from training.recipes import training_of
from transforms.models.clip import load_clip
from transforms.models.places import SAMPLE
from transforms.models.segmenter import load_segmenter

X, Y, Z = np.eye(3, dtype=np.float32)
BETWEEN = np.array([0.6, 0.8, 0], np.float32)


@pytest.mark.parametrize(
    ("references", "things", "expected"),
    [
        ([X], [Y, BETWEEN], 0.6),
        ([X, Y], [X, BETWEEN], 0.8),
        # X takes itself first, so that Y is left with Z.
        ([X, Y], [X, Z], 0.0),
        ([X, Y], [BETWEEN, Z, X], 0.8),
        ([X, Y], [X], 0.0),
        ([X], [-X], -1.0),
    ],
)
def test_identity_is_the_lowest_of_a_one_to_one_match(
    references: list[np.ndarray], things: list[np.ndarray], expected: float
) -> None:
    assert identity(np.array(references), np.array(things)) == pytest.approx(expected, abs=1e-6)


def test_without_references_there_is_no_identity() -> None:
    assert np.isnan(identity(np.zeros((0, 3), np.float32), np.array([X])))


def test_the_interval_is_that_of_the_mean() -> None:
    """For many normal values it is the mean and 1.96 standard errors on both sides."""
    values = np.random.default_rng(1).normal(3, 2, 400)
    mean, low, high = interval(np.append(values, np.nan))
    assert mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / 20
    assert [mean - low, high - mean] == pytest.approx([half, half], rel=0.1)
    assert interval(np.array([0.5, 0.5])) == (0.5, 0.5, 0.5)


def test_shares_of_a_worked_example() -> None:
    """Two objects, a quarter of the picture each; one token attends to its own, the other to the whole picture."""
    masks = torch.zeros(1, 3, 8, 8)
    masks[0, 0, :4, :4] = 1
    masks[0, 1, 4:, 4:] = 1
    first, second = torch.zeros(4, 4), torch.full((4, 4), 0.1)
    first[0, 0], first[1, 1] = 0.3, 0.1
    attention = torch.stack([first.flatten(), second.flatten(), first.flatten()], dim=-1)[None, None].repeat(1, 2, 1, 1)
    shares = shares_of(attention, masks, torch.tensor([[True, True, False]]))
    np.testing.assert_allclose(shares[0, :2], [[1, 0, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25]])
    assert shares[0, 2].isnan().all()


def test_heads_have_equal_weight() -> None:
    masks = torch.zeros(1, 1, 2, 2)
    masks[0, 0, 0] = 1
    attention = torch.tensor([[[0.9, 0.0, 0.0, 0.0], [0.0, 0.0, 0.001, 0.0]]]).transpose(1, 2)[..., None]
    shares = shares_of(attention.permute(0, 2, 1, 3), masks, torch.tensor([[True]]))
    assert shares[0, 0, 0] == pytest.approx(0.5)


def test_identity_of_others_is_that_of_the_matched_things_with_the_other_references() -> None:
    """X takes itself and Y takes `BETWEEN`; their cosines with the other reference are 0 and 0.6."""
    assert identity_of_others(np.array([X, Y]), np.array([BETWEEN, Z, X])) == pytest.approx(0.3)
    assert np.isnan(identity_of_others(np.array([X]), np.array([X])))
    assert np.isnan(identity_of_others(np.array([X, Y]), np.array([X])))


def test_cosines_are_averaged_over_the_real_pictures() -> None:
    assert mean_cosine(BETWEEN, np.array([Y, Y, BETWEEN])) == pytest.approx((0.8 + 0.8 + 1) / 3)


def test_pictures_of_a_group_count_as_one_for_the_interval() -> None:
    """Ten equal values in each of 40 groups know no more of the mean than 40 values."""
    values = np.random.default_rng(1).normal(3, 2, 40)
    groups = [str(group) for group in range(40) for _ in range(10)]
    mean, low, high = interval(np.repeat(values, 10), groups)
    assert mean == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / np.sqrt(40), rel=0.12)
    _, low, high = interval(np.repeat(values, 10))
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / np.sqrt(400), rel=0.12)


def test_a_measure_that_no_picture_has_is_left_out() -> None:
    values = {"identity": np.array([np.nan, 0.5]), "identity-others": np.array([np.nan, np.nan])}
    assert scores_of(values, "drawn", ["a", "b"]) == [Score("identity", "drawn", 0.5, 0.5, 0.5)]


DREAMBENCH = """Classes

subject_name,class
backpack_dog,backpack
bear_plushie,stuffed animal
dog6,dog

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
"a {0} {1} wearing a santa's hat".format(unique_token, class_token)
]
"""


def test_prompts_are_read_from_dreambench_s_file(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(DREAMBENCH)
    benchmark = read_prompts(tmp_path / "prompts.txt")
    assert benchmark.prompts_of("backpack_dog") == ["a backpack in the jungle", "a red backpack"]
    assert benchmark.prompts_of("bear_plushie")[0] == "a stuffed animal in the jungle"
    assert benchmark.prompts_of("dog6") == ["a dog wearing a santa's hat"]
    assert benchmark.class_of("red_cup2") == "red cup"


def test_prompts_are_read_from_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("# mine\n\na {} in the  snow\n{} at night\n")
    assert read_prompts(path) == Benchmark(["a {} in the snow", "{} at night"], (), {})
    assert read_prompts(path).prompts_of("teapot") == ["a teapot in the snow", "teapot at night"]
    path.write_text("a dog in the snow\n")
    with pytest.raises(
        InputError, match=r"prompts\.txt: 'a dog in the snow' has no single {}: write a prompt per line"
    ):
        read_prompts(path)
    path.write_text("\n")
    with pytest.raises(InputError, match=r"prompts\.txt: it holds none: write"):
        read_prompts(path)
    with pytest.raises(InputError, match=r"none\.txt: No such file or directory"):
        read_prompts(tmp_path / "none.txt")


def test_subjects_are_folders_of_photographs(tmp_path: Path) -> None:
    for name in ("dog/01.jpg", "dog/00.PNG", "dog/notes.txt", "cup/a.jpeg", ".hidden/00.jpg", "empty/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_photographs(tmp_path)
    assert {name: [path.name for path in paths] for name, paths in found.items()} == {
        "cup": ["a.jpeg"],
        "dog": ["00.PNG", "01.jpg"],
    }
    with pytest.raises(InputError, match="holds no subject: give a folder with a folder of photographs for each"):
        find_photographs(tmp_path / "dog")
    with pytest.raises(InputError, match="there is no such folder of subjects"):
        find_photographs(tmp_path / "none")


@pytest.mark.parametrize(
    ("template", "prompt", "expected"),
    [
        ("paper", "a dog in the snow", "a dog in the snow"),
        ("released", "a dog in the snow", "in the snow"),
        ("released", "a red dog", "red"),
        ("released", "an old dog house", "old house"),
    ],
)
def test_the_template_released_adds_the_subject_itself(template: str, prompt: str, expected: str) -> None:
    start: Any = SimpleNamespace(config=SimpleNamespace(template=template))
    assert without_subject(prompt, "dog", start) == expected


def test_a_photograph_without_its_subject_is_left_out_and_a_subject_without_any_is_an_error() -> None:
    lines: list[str] = []
    console: Any = SimpleNamespace(print=lambda line, **_: lines.append(line))
    read = example("key")
    found = replace(read, matches=(Match(0, 0, 1.0),))
    nothing = replace(read, matches=())
    reject = Reject("key", "a.jpg", "matches", Reason.NO_MATCH, "nothing like it")
    assert choose_found([(read, reject), (read, found), (read, nothing)], console, True) == [found]
    assert [line.split(": ")[0] for line in lines] == ["left out"] * 2
    assert "--reference" not in lines[0]
    with pytest.raises(InputError, match=r"is not found in a\.jpg: nothing like it"):
        choose_found([(read, reject), (read, found)], console, False)
    with pytest.raises(InputError, match=r"is not found in pictures/key\.jpg: nothing there is like it"):
        choose_found([(read, nothing)], console, True)


@pytest.fixture(scope="module")
def judges() -> Judges:
    return Judges(load_clip(SAMPLE / "clip"), load_segmenter(str(SAMPLE / "segmenter")))


def test_real_pictures_of_the_same_objects_score_highest_and_of_others_lowest(judges: Judges) -> None:
    ends = {name: measure(judges, items) for name, items in scene_ends([1, 2, 0, 1, 2, 1], 64, seed=0).items()}
    same, another = ends["same"], ends["another"]
    assert np.isnan(same["identity"][2])
    assert np.nanmean(same["identity"]) > np.nanmean(another["identity"]) + 0.3
    assert np.isnan(same["identity-others"][[0, 2, 3, 5]]).all()


def test_calibration_scenes_are_a_function_of_seed_and_number() -> None:
    first, again, other = scene_ends([1, 2], 48, 0), scene_ends([2, 2], 48, 0), scene_ends([1, 2], 48, 1)
    assert (first["same"][1].picture == again["same"][1].picture).all()
    assert (first["same"][1].picture != other["same"][1].picture).any()
    assert first["same"][0].picture.shape == (48, 48, 3)
    assert (first["same"][0].picture != first["same"][0].real.pictures[0]).any()
    assert [len(item.real.subjects[0]) for item in first["another"]] == [1, 2]


def test_the_folder_holds_page_figures_and_pictures(tmp_path: Path) -> None:
    found = fake_evaluation()
    page = write_evaluation(tmp_path / "out", found, {"run": "runs/a", "seed": 3}).read_text()
    assert page.count('<article class="card"') == 3
    assert "a &lt;b&gt;ball&lt;/b&gt; 0" in page
    assert "−0.020" in page
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert figures["run"] == "runs/a"
    assert figures["scores"][1] == {"measure": "identity", "pictures": "same", "mean": 0.9, "low": 0.8, "high": 1.0}
    assert [row["identity"] for row in figures["pictures"]] == [0.25, None, -0.5]
    with Image.open(tmp_path / "out" / "pictures" / "000002.png") as stored:
        assert (np.asarray(stored) == found.drawn[2].judged.picture).all()


def test_the_page_says_where_between_its_ends_a_measure_lies() -> None:
    identity_row, text_row = measure_rows(fake_evaluation().scores)
    assert (identity_row["share"], text_row["share"]) == (50.0, None)
    assert identity_row["ends"] == ["another −0.100", "same 0.900"]
    assert not identity_row["blind"]


def test_a_measure_whose_ends_meet_has_no_place_between_them() -> None:
    ends = [Score("clip-t", "another", 0.1, 0.0, 0.2), Score("clip-t", "same", 0.3, 0.19, 0.4)]
    (row,) = measure_rows([*ends, Score("clip-t", "drawn", 0.2, 0.1, 0.3)])
    assert (row["share"], row["blind"]) == (None, True)


def whole(text: str) -> Phrase:
    return Phrase(text, 0, len(text), text, (0, len(text)))


def found_in_boxes(_recipe: str, references: Sequence[Reference], *_: Any, **__: Any) -> list[list[Example]]:  # noqa: ANN401
    """Each subject as the box of its photograph's mask, without models."""
    return [
        [
            replace(read, phrases=(whole(reference.phrase),), matches=(Match(0, 0, 1.0),))
            for path in reference.photographs
            for read in [read_photograph(reference.phrase, path, path.with_suffix(".mask"))]
        ]
        for reference in references
    ]


def test_subjects_of_photographs_are_drawn_and_measured(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pictures of each of two prompts, for each of two subjects with two photographs."""
    save_tiny_autoencoder(tmp_path / "vae")
    training = training_of("fastcomposer")
    config = training.config(**training.presets["sample"])
    training.model(training.small(tmp_path / "vae", CAPTIONS, 0), config).save(tmp_path / "run" / "model")
    note = {"recipe": "fastcomposer", "preset": "sample", **config.model_dump(mode="json")}
    (tmp_path / "run" / "config.json").write_text(json.dumps(note))
    for number, name in enumerate(("dog", "cup2")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(2):
            photo = tmp_path / "photos" / name / f"{i}.jpg"
            photo.write_bytes(jpeg(64, 64, seed=number))
            Image.fromarray(box_mask(64, 64, (8, 8, 30 + 10 * i, 40))).convert("L").save(
                photo.with_suffix(".mask"), "PNG"
            )
    (tmp_path / "prompts.txt").write_text("a {} in the snow\na red {}\n")
    monkeypatch.setattr(jobs.evaluate, "find_subjects", found_in_boxes)
    command = ("evaluate", tmp_path / "run", "--subjects", tmp_path / "photos", "--prompts", tmp_path / "prompts.txt")
    status, printed = run(*command, "--count", 2, "--steps", 1, "--output", tmp_path / "out")
    assert status == 0, printed
    assert "pictures  8" in printed
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    means = {(score["measure"], score["pictures"]): score["mean"] for score in figures["scores"]}
    assert means["clip-i", "same"] > 0.99  # the same picture twice
    assert means["clip-i", "another"] < means["clip-i", "same"]
    assert {row["text"] for row in figures["pictures"]} == {
        "a cup in the snow", "a red cup", "a dog in the snow", "a red dog",
    }  # fmt: skip
    assert [row["group"] for row in figures["pictures"]] == ["cup2"] * 4 + ["dog"] * 4
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    status, printed = run(*command, "--data", tmp_path)
    assert status == 1
    assert "Give --data DATASET, or --subjects FOLDER with --prompts FILE" in " ".join(printed.split())
    status, printed = run(*command, "--output", tmp_path / "out")
    assert "out exists already" in printed
