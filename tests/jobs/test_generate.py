"""`subjectloom generate`: references from photographs, samples of prompts, pictures, and what is refused."""

import json
import runpy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from jobs.compose import compose
from jobs.drawing import DrawRequest, Reference, check_files, find_model
from jobs.generate import Picture, compose_samples, generate, known_subject
from jobs.references import find_subjects, read_photograph, samples_of
from jobs.scenes import write_scenes
from schemas.errors import ConfigError, InputError
from schemas.example import Example, Placement, Subject
from schemas.images import encode_grey
from tests.datasets import box_mask, jpeg
from tests.jobs.conftest import Run
from tests.training.models import CAPTIONS, save_tiny_autoencoder
from training.drawing import Drawing
from training.generate import batch_of, join_samples
from training.recipes import training_of

QUIET = Console(quiet=True)
BOXES = {"ball": (6, 10, 30, 24), "cup": (20, 4, 16, 40), "cup2": (2, 30, 30, 12)}
SIZES = {"ball": (64, 48), "cup": (40, 56), "cup2": (64, 64)}


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs NAME.jpg with the masks NAME.png."""
    folder = tmp_path_factory.mktemp("photos")
    for seed, (name, box) in enumerate(BOXES.items()):
        (folder / f"{name}.jpg").write_bytes(jpeg(*SIZES[name], seed=seed))
        Image.fromarray(box_mask(*SIZES[name], box)).convert("L").save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="session")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that makes the folder of an untrained run of a recipe, once for each."""
    folder = tmp_path_factory.mktemp("runs")
    save_tiny_autoencoder(folder / "vae")

    def make(recipe: str, **fields: Any) -> Path:  # noqa: ANN401
        place = folder / "-".join([recipe, *fields])
        if not place.exists():
            training = training_of(recipe)
            config = training.config(**{**training.presets["sample"], **fields})
            model: Any = training.model(training.small(folder / "vae", CAPTIONS, 0), config)
            if fields.get("finetune"):
                model.subjects = {"dog": torch.full((16, 64), 0.1)}
            model.save(place / "model")
            note = {"recipe": recipe, "preset": "sample", **config.model_dump(mode="json")}
            (place / "config.json").write_text(json.dumps(note))
        return place

    return make


def masked(photos: Path, phrase: str, *names: str) -> Reference:
    return Reference.parse(f"{phrase}=" + ",".join(f"{photos / name}.jpg:{photos / name}.png" for name in names))


def draw(run: Path, prompt: str, references: Sequence[Reference] = (), **drawing: Any) -> list[Picture]:  # noqa: ANN401
    settings = Drawing(**{"count": 1, "steps": 2, **drawing})
    return list(generate(DrawRequest([prompt], references, run, drawing=settings)))


def distance(first: Picture, second: Picture) -> int:
    return int(np.abs(first.pixels.astype(int) - second.pixels).max())


def truth(scenes: Path, key: str) -> list[dict[str, Any]]:
    things: list[dict[str, Any]] = json.loads((scenes / "truth" / f"{key}.json").read_text())["objects"]
    return things


def test_subjects_of_several_photographs_become_one_sample(photos: Path, run_of: Callable[..., Path]) -> None:
    """Each reference shows the pixels of its own photograph inside its mask, whatever the photographs' sizes."""
    references = [masked(photos, "a blue cup", "cup"), masked(photos, "a red ball", "ball")]
    prompt = "A red ball and a blue cup"
    request = DrawRequest([prompt], references, run_of("mip-adapter"))
    start, training = find_model(request), training_of("mip-adapter")
    found = find_subjects("mip-adapter", references, "sample", QUIET)
    sample = compose([group[0] for group in found], prompt)
    assert [(phrase.text, phrase.start) for phrase in sample.phrases] == [("a blue cup", 15), ("A red ball", 0)]
    model: Any = training.model(training.load(start.folder), start.config)
    batch = batch_of(training, compose_samples("mip-adapter", found, "", prompt), model, start.config)
    words = [model.tokenizer.decode(ids, skip_special_tokens=True) for ids in batch["object_input_ids"][0]]
    assert words == ["cup", "ball"]
    for shown, name in zip(batch["object_pixel_values"][0], ("cup", "ball"), strict=True):
        x, y, w, h = BOXES[name]
        with Image.open(photos / f"{name}.jpg") as photo:
            scale = 64 / max(w, h)
            cut = photo.crop((x, y, x + w, y + h)).resize(
                (round(w * scale), round(h * scale)), Image.Resampling.BILINEAR
            )
        left, top = (64 - cut.width) // 2, (64 - cut.height) // 2
        inside = shown[:, top : top + cut.height, left : left + cut.width].permute(1, 2, 0).numpy() * 255
        assert np.abs(inside - np.asarray(cut)).mean() < 2.5  # once more through a JPEG
        assert shown.mean() > 0.2
        assert shown[:, 0, 0].tolist() == [1, 1, 1]  # white around it


def test_pictures_depend_on_seed_and_number_alone(run_of: Callable[..., Path]) -> None:
    """Not on how many are drawn, nor, but for rounding, on how many at a time."""
    run, prompt = run_of("captioned"), "a red ball"
    three = draw(run, prompt, count=3, batch=3)
    again = draw(run, prompt, count=2, batch=1)
    assert [distance(*pair) <= 1 for pair in zip(three, again, strict=False)] == [True, True]
    assert (draw(run, prompt, count=3, batch=3)[2].pixels == three[2].pixels).all()
    assert distance(three[0], three[1]) > 8
    assert distance(three[0], draw(run, prompt, seed=1)[0]) > 8


def laid_on_another_background(reference: Reference, number: int) -> Example:
    """What BLIP-Diffusion's build makes of a photograph, here the photograph itself."""
    example = read_photograph(reference.phrase, reference.photographs[number], None)
    opaque = encode_grey(np.full((example.height, example.width), 255, np.uint8))
    return replace(
        example, subject=Subject("ball"), alpha=opaque, trimap=opaque, composite=example.image,
        placement=Placement("none"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "average"),
    [
        ("fastcomposer", "subject_embeddings"),
        ("mip-adapter", "object_tokens"),
        ("blip-diffusion", "subject_prompts"),
    ],
)
def test_photographs_of_a_subject_are_averaged(
    recipe: str, average: str, photos: Path, run_of: Callable[..., Path]
) -> None:
    reference, prompt = masked(photos, "a red ball", "cup", "cup2"), "a red ball in the snow"
    start, training = find_model(DrawRequest([prompt], [reference], run_of(recipe))), training_of(recipe)
    model: Any = training.model(training.load(start.folder), start.config)
    if recipe == "blip-diffusion":  # without the matting, which takes seconds to load
        found = [[laid_on_another_background(reference, i) for i in range(2)]]
    else:
        found = find_subjects(recipe, [reference], "sample", QUIET)
    samples = compose_samples(recipe, found, "", prompt)
    both, cup, cup2 = (
        batch_of(training, chosen, model, start.config) for chosen in (samples, samples[:1], samples[1:])
    )

    def embed(batch: Any) -> torch.Tensor:  # noqa: ANN401
        if recipe == "blip-diffusion":
            embedded: torch.Tensor = model.compute_prompts(batch)
        elif recipe == "mip-adapter":
            embedded = model.embed_references(batch).tokens
        else:
            embedded = model.embed(batch["subject_pixel_values"][:, 0])[:, None]
        return embedded

    joined = join_samples(model, both)
    assert joined["keys"] == ["cup"]
    torch.testing.assert_close(joined[average], (embed(cup) + embed(cup2)) / 2)
    assert not torch.allclose(embed(cup), embed(cup2), atol=1e-3)
    assert join_samples(model, cup) is cup

    def conditions(batch: Any) -> torch.Tensor:  # noqa: ANN401
        """What the U-Net gets: the half without conditions, then the other."""
        last = model.sampling_conditions(batch, 1)[-1]
        references = last.get("cross_attention_kwargs", {}).get("references")
        tokens: torch.Tensor = last["encoder_hidden_states"] if references is None else references.tokens
        return tokens

    mean, single = conditions(joined), conditions(cup)
    torch.testing.assert_close(mean[0], single[0])
    assert not torch.allclose(mean[1], single[1], atol=1e-3)
    twice = join_samples(model, batch_of(training, samples[:1] * 2, model, start.config))
    torch.testing.assert_close(conditions(twice), single)


def test_all_photographs_of_a_subject_count_equally() -> None:
    groups: Any = [["a", "b"], ["c", "d", "e"]]
    samples: Any = samples_of(groups)
    assert len(samples) == 6
    assert sorted(sample[0] for sample in samples) == ["a"] * 3 + ["b"] * 3
    assert sorted(sample[1] for sample in samples) == ["c", "c", "d", "d", "e", "e"]


def test_one_command_writes_pictures_a_sheet_and_settings(
    run: Run, photos: Path, run_of: Callable[..., Path], tmp_path: Path
) -> None:
    command = ("generate", run_of("fastcomposer"), "--output", tmp_path / "out", "--count", 2, "--steps", 2)
    prompts = ("--prompt", "a red ball in the snow", "--prompt", "two red balls and a red ball")
    reference = ("--reference", f"a red ball={photos}/ball.jpg:{photos}/ball.png")
    status, printed = run(*command, *prompts, *reference, "--subject-share", 1, "--scheduler", "euler", "--size", 80)
    assert status == 0, printed
    names = [f"{prompt:03}-{number:03}.png" for prompt in range(2) for number in range(2)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*names, "settings.json", "sheet.png"]
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert list(settings) == names
    with Image.open(tmp_path / "out" / names[3]) as picture:
        assert picture.size == (80, 80)
        text: Any = picture.text  # type: ignore[attr-defined]
    assert text["prompt"] == "two red balls and a red ball"
    assert (text["number"], text["seed"], text["scheduler"], text["subject_share"]) == ("1", "0", "euler", "1.0")
    assert text["fingerprint"].startswith("sha256:")
    assert json.loads(text["references"]) == settings[names[3]]["references"]
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.size == (3 * 84 + 4, 2 * 84 + 4)
    status, printed = run(*command, *prompts, *reference)
    assert status == 1
    assert "out exists already: name a new or an empty folder" in printed


def test_a_fine_tuned_model_draws_its_subject_without_a_photograph(photos: Path, run_of: Callable[..., Path]) -> None:
    run = run_of("blip-diffusion", finetune=True)
    (picture,) = draw(run, "in the snow")
    assert len(picture.references) == 0
    assert (draw(run, "in the snow", [Reference("dog")])[0].pixels == picture.pixels).all()
    with pytest.raises(ConfigError, match="the model knows 'dog': name one, with --reference 'dog'"):
        draw(run, "in the snow", [Reference("cat")])
    found = [[laid_on_another_background(masked(photos, "a ball", "ball"), 0)]]
    with pytest.raises(ConfigError, match="fine-tuned on its own pictures of 'ball': leave out the photographs"):
        known_subject("blip-diffusion", SimpleNamespace(subjects={"ball": None}), [], found)


def test_captions_alone_are_drawn_by_the_recipe_without_subjects(photos: Path, run_of: Callable[..., Path]) -> None:
    assert draw(run_of("captioned"), "a house")[0].pixels.shape == (64, 64, 3)
    with pytest.raises(ConfigError, match="captioned draws no subjects: leave out --reference 'a ball'"):
        draw(run_of("captioned"), "a ball", [masked(photos, "a ball", "ball")])


@pytest.mark.parametrize(
    ("recipe", "phrases", "fields", "message"),
    [
        ("fastcomposer", ["a cat"], {}, "the prompt 'a red ball' does not contain 'a cat', which is given as a ref"),
        ("fastcomposer", ["a red ball"] * 2, {}, "does not contain 'a red ball' 2 times"),
        ("fastcomposer", ["red ball", "a red ball"], {}, "two of them end in one word"),
        ("fastcomposer", [], {}, "fastcomposer draws subjects, and none is given"),
        ("fastcomposer", ["a red ball"], {"scale": 0.5}, "fastcomposer has no setting 'scale', a field of mip-adapter"),
        ("fastcomposer", ["a red ball"], {"subject_share": 2}, "--subject-share = '2': Input should be less"),
        ("mip-adapter", ["a red ball"], {"merge": "sum"}, "--merge = 'sum': "),
        ("blip-diffusion", ["a ball", "a cup"], {}, "blip-diffusion draws 1 subject, and 2 are given"),
        ("blip-diffusion", [], {}, "blip-diffusion draws a subject: show it"),
    ],
)
def test_what_does_not_go_together_is_refused(
    recipe: str, phrases: list[str], fields: dict[str, Any], message: str, photos: Path, run_of: Callable[..., Path]
) -> None:
    references = [masked(photos, phrase, "ball") for phrase in phrases]
    request = DrawRequest(["a red ball"], references, run_of(recipe), drawing=Drawing(count=1, steps=1), fields=fields)
    with pytest.raises(ConfigError, match=message):
        list(generate(request))


def test_files_that_cannot_be_used_are_named(photos: Path) -> None:
    ball, cup = photos / "ball.jpg", photos / "cup.png"
    with pytest.raises(InputError, match=r"none\.png: there is no such file, which --reference 'a ball' names"):
        check_files([Reference("a ball", (ball,), (photos / "none.png",))])
    with pytest.raises(InputError, match=r"none\.jpg: No such file"):
        read_photograph("a ball", photos / "none.jpg", None)
    with pytest.raises(InputError, match=r"cup\.png has 40 x 56 pixels, .*ball\.jpg has 64 x 48: give one of the same"):
        read_photograph("a ball", ball, cup)
    (photos / "text.jpg").write_text("no picture")
    with pytest.raises(InputError, match=r"text\.jpg: not a picture"):
        read_photograph("a ball", photos / "text.jpg", None)
    Image.new("L", (64, 48)).save(photos / "black.png")
    with pytest.raises(InputError, match=r"black\.png is black everywhere: white is where 'a ball' is"):
        read_photograph("a ball", ball, photos / "black.png")


def test_references_are_read_from_one_text(photos: Path) -> None:
    assert Reference.parse("a  dog = a.jpg:m.png, b.jpg") == Reference(
        "a dog", (Path("a.jpg"), Path("b.jpg")), (Path("m.png"), None)
    )
    assert Reference.parse("dog") == Reference("dog")
    (photos / "odd,name:1.jpg").write_bytes(b"")
    assert Reference.parse(f"x={photos}/odd,name:1.jpg").photographs == (photos / "odd,name:1.jpg",)
    for text in ("=a.jpg", "a dog=", "a dog=a.jpg,"):
        with pytest.raises(ConfigError, match="write PHRASE=PHOTOGRAPH"):
            Reference.parse(text)


def test_a_subject_that_is_not_found_says_what_is_there(tmp_path: Path) -> None:
    for _ in write_scenes(tmp_path, 1, seed=7, size=256):
        pass
    (photo,) = (tmp_path / "images").glob("*.jpg")
    nouns = {thing["noun"] for thing in truth(tmp_path, photo.stem)}
    absent = next(noun for noun in ("kite", "boat", "key") if noun not in nouns)
    message = (
        rf"'a {absent}' is not found in .*: the best similarity is .* \('a {absent}' with a '({'|'.join(nouns)})'\)"
    )
    with pytest.raises(InputError, match=message):
        find_subjects("fastcomposer", [Reference.parse(f"a {absent}={photo}")], "sample", QUIET)


def test_a_run_without_a_model_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no training run"):
        find_model(DrawRequest(["x"], run=tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"recipe": "captioned"}))
    with pytest.raises(InputError, match=r"has no model/ yet, .*weights export"):
        find_model(DrawRequest(["x"], run=tmp_path))
    with pytest.raises(ConfigError, match="which model"):
        find_model(DrawRequest(["x"]))
    assert find_model(DrawRequest(["x"], run=tmp_path, model="elsewhere")).folder == "elsewhere"


def test_the_example_draws(photos: Path, run_of: Callable[..., Path], tmp_path: Path) -> None:
    program = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "generate.py"))
    reference = f"a ball={photos}/ball.jpg:{photos}/ball.png"
    program["main"](str(run_of("fastcomposer")), reference, str(tmp_path / "out"), count=1, steps=1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000.png", "settings.json", "sheet.png"]
