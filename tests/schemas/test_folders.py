"""What errors about models say of a folder that holds something else."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from schemas.errors import ModelError
from schemas.folders import describe_folder
from training.recipes import training_of
from transforms.models.clip import load_clip
from transforms.models.parser import load_parser
from transforms.models.places import SAMPLE
from transforms.models.sam import load_sam
from transforms.models.segmenter import load_segmenter


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ([], "it is empty"),
        (["b.jpg", "a.jpg"], "it holds no model, but a.jpg, b.jpg"),
        (["4", "1", "2", "3"], "it holds no model, but 1, 2, 3, ..."),
        (["dataset.json", "index.parquet"], "it holds a dataset of Subjectloom"),
        (["checkpoints", "config.json", "model"], "it holds a training run, whose model is in model/"),
    ],
)
def test_a_folder_is_described_by_its_files(tmp_path: Path, names: list[str], sentence: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert describe_folder(tmp_path) == sentence


def test_a_diffusion_model_is_described_by_its_parts(tmp_path: Path) -> None:
    for name in ("unet", "vae", "fuser"):
        (tmp_path / name).mkdir()
    (tmp_path / "model_index.json").touch()
    assert describe_folder(tmp_path) == "it holds a diffusion model of fuser, unet, vae"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"model_type": "owlvit"}', "it holds a model of type owlvit"),
        ('{"_class_name": "AutoencoderKL"}', "it holds a model of type AutoencoderKL"),
        ('["model_type"]', "it holds no model, but config.json"),
        ("{", "it holds no model, but config.json"),
    ],
)
def test_a_config_states_the_type_of_a_model(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "config.json").write_text(text)
    assert describe_folder(tmp_path) == sentence


@pytest.mark.parametrize(
    ("kind", "other", "message"),
    [
        ("parser", "sam", "is not a spaCy pipeline .*: it holds a model of type segment-anything"),
        ("segmenter", "sam", "is a model of type segment-anything: give .* of type mask2former"),
        ("segmenter", "parser", "is no segmenter .*: it holds a spaCy pipeline"),
        ("clip", "segmenter", "is no CLIP .*: it holds a model of type mask2former"),
        ("sam", "clip", "is no SAM .*: it holds a CLIP of open_clip"),
        ("sam", "segmenter", "it is a model of type mask2former, not segment-anything"),
        ("train", "clipseg", "no model in .*: it holds a model of type clipseg.*Stable Diffusion 1.5's layout"),
    ],
)
def test_a_model_of_another_kind_is_named(kind: str, other: str, message: str) -> None:
    loaders: Mapping[str, Callable[..., object]] = {
        "parser": load_parser,
        "segmenter": load_segmenter,
        "clip": load_clip,
        "sam": load_sam,
    }
    load: Callable[..., object] = training_of("fastcomposer").load if kind == "train" else loaders[kind]
    with pytest.raises(ModelError, match=message):
        load(str(SAMPLE / other))
