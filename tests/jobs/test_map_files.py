"""Maps that `subjectloom generate` is given: how they are written, what is refused, and what the model is shown."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.drawing import DrawRequest
from jobs.generate import generate
from jobs.map_files import MapFile, check_maps
from jobs.maps import read_map
from schemas.errors import ConfigError, InputError, SubjectloomError
from schemas.images import decode_image, encode_jpeg
from schemas.maps import canny_edges
from tests.training.models import CAPTIONS, save_tiny_autoencoder
from training.configs import captioned, composer, controlnet, t2i_adapter
from training.diffusion import LatentDiffusion
from training.drawing import Drawing
from training.recipes import training_of
from training.small import small_parts
from transforms.maps.edges import canny_gradient


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An edge map, a depth map, a masked picture and a photograph."""
    folder = tmp_path_factory.mktemp("maps")
    rng = np.random.default_rng(0)
    Image.fromarray(np.where(rng.random((64, 96)) < 0.1, 255, 0).astype(np.uint8)).save(folder / "edges.png")
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / "depth.png")
    Image.fromarray(rng.integers(0, 256, (64, 64, 4), np.uint8)).save(folder / "masked.png")
    blocks = rng.integers(0, 256, (4, 6, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    (folder / "photo.jpg").write_bytes(encode_jpeg(blocks))
    (folder / "text.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that makes the folder of an untrained run of a recipe."""
    folder = tmp_path_factory.mktemp("runs")
    save_tiny_autoencoder(folder / "vae")
    LatentDiffusion(small_parts(folder / "vae", CAPTIONS, seed=0)).save(folder / "base")

    def make(recipe: str, **fields: Any) -> Path:  # noqa: ANN401
        place = folder / recipe
        if not place.exists():
            training = training_of(recipe)
            config = training.config(**{**training.presets["sample"], **fields})
            model: Any = training.model(training.small(folder / "base", CAPTIONS, 0), config)
            if recipe == "controlnet":
                torch.nn.init.normal_(model.controlnet.controlnet_mid_block.weight)
            model.save(place / "model")
            note = {"recipe": recipe, "preset": "sample", **config.model_dump(mode="json")}
            (place / "config.json").write_text(json.dumps(note))
        return place

    return make


def draw(run: Path, *maps: MapFile) -> tuple[np.ndarray, dict[str, Any], np.ndarray]:
    drawing = Drawing(count=1, steps=2)
    (picture,) = generate(DrawRequest(["a red ball"], run=run, drawing=drawing, maps=maps))
    return picture.pixels, dict(picture.settings), picture.references


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("canny=edges.png", ("canny", "edges.png", 1.0)),
        ("canny=edges.png:0.5", ("canny", "edges.png", 0.5)),
        (" depth = a:b.png ", ("depth", "a:b.png", 1.0)),
        ("depth=a:b.png:2", ("depth", "a:b.png", 2.0)),
    ],
)
def test_maps_are_written_name_file_weight(text: str, expected: tuple[str, str, float]) -> None:
    parsed = MapFile.parse(text, taken=True)
    assert (parsed.name, str(parsed.file), parsed.weight) == expected
    assert parsed.taken


@pytest.mark.parametrize("text", ["canny", "=edges.png", "canny=", ""])
def test_what_names_no_map_or_no_file_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write NAME=FILE or NAME=FILE:WEIGHT"):
        MapFile.parse(text, taken=False)


def test_impossible_maps_are_refused(files: Path) -> None:
    edges = MapFile("canny", files / "edges.png")
    cases: list[tuple[str, Any, list[MapFile], type[SubjectloomError], str]] = [
        ("captioned", captioned.Config(), [edges], ConfigError, "captioned draws without maps: leave out canny="),
        ("controlnet", controlnet.Config(), [], ConfigError, "draws from a map: give --map canny=FILE"),
        ("controlnet", controlnet.Config(map="depth"), [edges], ConfigError, "no map 'canny': choose from depth"),
        ("t2i-adapter", t2i_adapter.Config(), [edges, edges], ConfigError, "the map 'canny' is given twice"),
        ("composer", composer.Config(), [MapFile("palette", edges.file)], ConfigError, "--map-from palette=PHOTO"),
        ("controlnet", controlnet.Config(), [MapFile("canny", files / "x")], InputError, "there is no such file"),
    ]
    for recipe, config, maps, error, message in cases:
        with pytest.raises(error, match=message):
            check_maps(recipe, config, maps)
    check_maps("composer", composer.Config(), [])
    check_maps("captioned", captioned.Config(), [])
    with pytest.raises(InputError, match="it is no picture that can be read"):
        read_map(MapFile("canny", files / "text.txt"), 64)


def test_a_controlnet_is_shown_the_map_as_it_is(files: Path, run_of: Callable[..., Path]) -> None:
    run = run_of("controlnet")
    pixels, settings, references = draw(run, MapFile("canny", files / "edges.png"))
    with Image.open(files / "edges.png") as picture:
        middle = np.asarray(picture.convert("RGB"))[:, 16:80]
    np.testing.assert_array_equal(references[0], middle)
    assert settings["maps"] == [{"name": "canny", "file": "edges.png", "weight": 1.0, "taken": False}]
    weaker, _, _ = draw(run, MapFile("canny", files / "edges.png", 0.0))
    assert (pixels != weaker).any()


def test_a_map_taken_from_a_photograph_is_the_build_s(files: Path, run_of: Callable[..., Path]) -> None:
    _, _, references = draw(run_of("controlnet"), MapFile("canny", files / "photo.jpg", taken=True))
    gradient = canny_gradient(decode_image((files / "photo.jpg").read_bytes()))
    expected = canny_edges(gradient, 100, 200)[:, 16:80]
    assert expected.sum() > 100
    np.testing.assert_array_equal(references[0][..., 0], expected * 255)


def test_adapters_are_shown_one_map_or_two(files: Path, run_of: Callable[..., Path]) -> None:
    run = run_of("t2i-adapter", maps=("canny", "depth"))
    edges, depth = MapFile("canny", files / "edges.png"), MapFile("depth", files / "depth.png", 0.5)
    one, _, shown = draw(run, edges)
    two, settings, both = draw(run, edges, depth)
    assert (len(shown), len(both)) == (1, 2)
    assert [given["weight"] for given in settings["maps"]] == [1.0, 0.5]
    assert (one != two).any()


def test_a_composer_draws_from_any_conditions(files: Path, run_of: Callable[..., Path]) -> None:
    run = run_of("composer")
    text, _, none = draw(run)
    masked, _, _ = draw(
        run, MapFile("masked", files / "masked.png"), MapFile("palette", files / "photo.jpg", taken=True)
    )
    assert len(none) == 0
    assert text.shape == masked.shape == (64, 64, 3)
