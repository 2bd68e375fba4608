"""Boxes on the command line and in files: `generate --box`, `--layouts`, and the command `layouts`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.generate import Picture
from jobs.layouts import read_layouts
from jobs.make_layouts import sample_layout
from jobs.pictures import with_boxes
from schemas.errors import InputError
from schemas.layouts import layout_of
from schemas.samples.fastcomposer import FORMAT
from schemas.samples.gligen import FORMAT as GLIGEN
from tests.datasets import write_dataset
from tests.gligen import grounded_example
from tests.jobs.conftest import Run
from tests.training.models import CAPTIONS, save_tiny_autoencoder
from training.recipes import training_of

PROMPT = CAPTIONS[0]
BOX = "a red ball=0,0,0.5,0.5"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained run of captioned pictures."""
    folder = tmp_path_factory.mktemp("layouts")
    save_tiny_autoencoder(folder / "vae")
    training = training_of("captioned")
    config = training.config(**training.presets["sample"])
    training.model(training.small(folder / "vae", CAPTIONS, 0), config).save(folder / "run" / "model")
    note = {"recipe": "captioned", "preset": "sample", **config.model_dump(mode="json")}
    (folder / "run" / "config.json").write_text(json.dumps(note))
    return folder / "run"


def pixels(path: Path) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    return np.asarray(Image.open(path))


def test_boxes_are_obeyed_stated_in_the_picture_and_shown(run: Run, trained: Path, tmp_path: Path) -> None:
    quick = ("--count", 1, "--steps", 2, "--placing", "eta=500")
    status, printed = run("generate", trained, "--prompt", PROMPT, "--output", tmp_path / "a", "--box", BOX, *quick)
    assert status == 0, printed
    plain = run("generate", trained, "--prompt", PROMPT, "--output", tmp_path / "b", "--count", 1, "--steps", 2)
    assert plain[0] == 0
    assert (pixels(tmp_path / "a" / "000.png") != pixels(tmp_path / "b" / "000.png")).any()
    with Image.open(tmp_path / "a" / "000.png") as picture:
        stated = picture.info
    assert json.loads(stated["layout"]) == [{"text": "a red ball", "boxes": [[0, 0, 0.5, 0.5]]}]
    assert json.loads(stated["placing"])["eta"] == 500
    layouts = tmp_path / "layouts.yaml"
    layouts.write_text(f"- prompt: {PROMPT}\n  phrases:\n    - {{text: a red ball, boxes: [[0, 0, 0.5, 0.5]]}}\n")
    more = ("--layouts", layouts, *quick)
    status, printed = run("generate", trained, "--output", tmp_path / "c", *more)
    assert status == 0, printed
    assert (pixels(tmp_path / "a" / "000.png") == pixels(tmp_path / "c" / "000.png")).all()
    status, printed = run("generate", trained, "--output", tmp_path / "d", *more, "--show-boxes")
    assert status == 0, printed
    shown = pixels(tmp_path / "d" / "000.png")
    assert shown.shape == (256, 256, 3)
    inner = np.s_[140:256:4, 0:256:4]  # below the box, every fourth pixel is one of the picture's
    assert (shown[inner] == pixels(tmp_path / "a" / "000.png")[35:64]).all()


def test_a_narrow_box_is_said_to_be_widened(run: Run, trained: Path, tmp_path: Path) -> None:
    given = ("--box", "a red ball=0.3,0.3,0.31,0.31", "--count", 1, "--steps", 1)
    status, printed = run("generate", trained, "--prompt", PROMPT, "--output", tmp_path / "a", *given)
    assert status == 0, printed
    assert "'a red ball' is narrower than a cell" in " ".join(printed.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--box", "a red ball=0,0,2,1"), "outside the picture"),
        (("--box", "a red ball=0,0,nan,1"), "must be numbers"),
        (("--box", "a dog=0,0,1,1"), "does not contain 'a dog'"),
        (("--box", "a red ball"), "PHRASE="),
        (("--box", BOX, "--placing", "way=sideways"), "way"),
        (("--box", BOX, "--recipe", "mip-adapter"), "captioned"),
        (("--layouts", "missing.yaml"), "leave out --prompt"),
        (("--placing", "eta=3"), "leave it out, or give --box"),
    ],
)
def test_what_cannot_be_placed_is_one_line(
    run: Run, trained: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    status, printed = run("generate", trained, "--prompt", PROMPT, "--output", tmp_path / "out", *options)
    assert status == 1
    assert message in " ".join(printed.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "prompt: a red ball", "no list"),
        ("a.yaml", "", "no list"),
        ("a.yaml", "- prompt: [", "no layouts can be read"),
        ("a.jsonl", "{", "no layouts can be read"),
        ("a.yaml", "- {prompt: a red ball}", "layout 1: phrases: Field required"),
        ("a.yaml", "- {prompt: a ball, phrases: []}\n- {prompt: a, phrases: [{text: b, boxes: []}]}", "layout 2: "),
        ("a.yaml", "- {prompt: a ball, phrases: [{text: a ball, boxes: [[0, 0, .nan, 1]]}]}", "must be numbers"),
        ("a.yaml", "- {prompt: a ball, phrases: [{text: a ball, boxes: [[0, 0, wide, 1]]}]}", "layout 1: phrases.0"),
    ],
)
def test_files_that_hold_no_layouts_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"(?s){name}.*{message}"):
        read_layouts(tmp_path / name)


def test_relations_are_written_with_tokens_and_read_back(run: Run, trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "relations.jsonl"
    model = trained / "model"
    status, printed = run("layouts", output, "--relations", "--limit", 3, "--tokenizer", model)
    assert status == 0, printed
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["prompt"] for line in lines][:2] == [
        "a person to the left of a bicycle",
        "a person to the right of a bicycle",
    ]
    spans = [phrase["tokens"][str(model)] for phrase in lines[0]["phrases"]]
    assert spans[0][0] == 1 < spans[0][1] < spans[1][0] < spans[1][1]
    assert [layout.prompt for layout in read_layouts(output)] == [line["prompt"] for line in lines]
    assert run("layouts", output, "--relations")[0] == 1  # exists already
    assert run("layouts", tmp_path / "new.jsonl")[0] == 1


def test_layouts_of_a_dataset_leave_out_what_has_none(run: Run, tmp_path: Path) -> None:
    many = grounded_example("many", [("a dog", (0, 0, 9, 9))] * 31)
    write_dataset(
        tmp_path / "data",
        [[grounded_example("good"), grounded_example("classes", detection=True), many]],
        sample_format=GLIGEN,
    )
    status, printed = run("layouts", tmp_path / "out.jsonl", "--data", tmp_path / "data")
    assert status == 0, printed
    (line,) = (json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines())
    assert line["prompt"] == "a dog and a cat"
    assert line["phrases"][1]["boxes"] == [[40 / 64, 10 / 48, 60 / 64, 40 / 48]]
    assert "left out 2, such as classes: its caption names nothing" in " ".join(printed.split())


def test_subjects_of_a_sample_become_its_layout() -> None:
    caption = "two dogs and a cat"
    record = FORMAT.record.model_construct(caption=caption, width=200, height=100)

    class Thing:
        def __init__(self, start: int, end: int, bbox: tuple[int, int, int, int]) -> None:
            self.start, self.end, self.bbox = start, end, bbox

    layout = sample_layout(record, [Thing(13, 18, (100, 0, 100, 50)), Thing(0, 8, (0, 0, 50, 50))])
    assert layout is not None
    assert [(phrase.text, phrase.boxes) for phrase in layout.phrases] == [
        ("two dogs", ((0, 0, 0.25, 0.5),)),
        ("a cat", ((0.5, 0, 1, 0.5),)),
    ]
    assert sample_layout(record, []) is None


def test_each_phrase_has_boxes_of_its_own_colour() -> None:
    layout = layout_of(PROMPT, [("a red ball", [0, 0, 0.5, 0.5]), ("a blue cup", [0.5, 0.5, 1, 1])])
    grey = np.full((64, 64, 3), 128, np.uint8)
    shown = with_boxes(Picture(0, 0, grey, {}, grey[None][:0], layout))
    first, second = shown[60, 0], shown[255, 200]
    assert len({tuple(first), tuple(second), (128, 128, 128)}) == 3


def test_gligen_draws_in_boxes_with_the_sample_clip_s_embeddings(run: Run, tmp_path: Path) -> None:
    """Open gates make the box matter; without one there is nothing to draw in."""
    save_tiny_autoencoder(tmp_path / "vae")
    training = training_of("gligen")
    config = training.config(**training.presets["sample"])
    model = training.model(training.small(tmp_path / "vae", CAPTIONS, 0), config)
    with torch.no_grad():
        for name, parameter in model.unet.named_parameters():
            if name.endswith(("alpha_attn", "alpha_dense")):
                parameter.fill_(1.0)
            elif "position_net" in name or name.endswith("fuser.linear.weight"):
                parameter.mul_(5)  # untrained, boxes change a picture by less than a grey level
    model.save(tmp_path / "run" / "model")
    note = {"recipe": "gligen", "preset": "sample", **config.model_dump(mode="json")}
    (tmp_path / "run" / "config.json").write_text(json.dumps(note))

    def draw(name: str, *options: object) -> tuple[int, str]:
        given = ("--prompt", PROMPT, "--output", tmp_path / name, "--count", 1, "--steps", 2, *options)
        return run("generate", tmp_path / "run", *given)

    status, printed = draw("a", "--box", "a red ball=0,0,0.05,0.05", "--grounded-share", 1)
    assert status == 0, printed
    assert draw("b", "--box", "a red ball=0.4,0.4,1,1", "--grounded-share", 1)[0] == 0
    assert draw("c", "--box", "a red ball=0.4,0.4,1,1", "--grounded-share", 0)[0] == 0
    drawn = {name: pixels(tmp_path / name / "000.png").astype(int) for name in "abc"}
    assert all((drawn[x] != drawn[y]).any() for x, y in ("ab", "bc", "ac"))
    with Image.open(tmp_path / "a" / "000.png") as picture:
        assert "placing" not in picture.info
        assert json.loads(picture.info["grounded_share"]) == 1
    status, printed = draw("d")
    assert status == 1
    assert "--box" in printed
