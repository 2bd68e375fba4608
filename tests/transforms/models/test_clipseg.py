import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import CLIPSegForImageSegmentation

from jobs.sample_models.clipseg import new_model, new_processor, save
from schemas.errors import ModelError
from schemas.example import Box, Example
from schemas.images import encode_jpeg
from tests.beam import apply
from tests.examples import make_example, phrase
from transforms.batch import Batch
from transforms.models.clipseg import ClipSeg, find_heatmaps, load_clipseg
from transforms.regions.heatmaps import FindHeatmaps, texts_of

SIDE = 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained CLIPSeg, its last layer large enough for the maps to differ."""
    torch.manual_seed(0)
    model = new_model()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.08)
    path = tmp_path_factory.mktemp("models") / "clipseg"
    save(model, path)
    return path


@pytest.fixture(scope="module")
def clipseg(folder: Path) -> ClipSeg:
    return load_clipseg(folder)


def picture(seed: int, height: int = 40, width: int = 56) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


def test_a_map_is_the_sigmoid_of_what_transformers_itself_computes(clipseg: ClipSeg) -> None:
    image = picture(0)
    (found,) = find_heatmaps(clipseg, [image], [["a red ball", "a cup"]])
    assert found.shape == (2, SIDE, SIDE)
    assert found.dtype == np.float32
    for text, one in zip(("a red ball", "a cup"), found, strict=True):
        inputs = clipseg.processor(text=[text], images=[image], return_tensors="pt")
        with torch.no_grad():
            expected = clipseg.model(**inputs).logits.sigmoid().numpy().reshape(SIDE, SIDE)
        np.testing.assert_allclose(one, expected, atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_threads_that_share_a_model_get_what_each_would_get_alone(clipseg: ClipSeg) -> None:
    texts = [["a dog"], ["a red ball", "a cup"], ["a tall tree on the lawn"], []]

    def find(index: int) -> bytes:
        return find_heatmaps(clipseg, [picture(index)], [texts[index % 4]])[0].tobytes()

    alone = [find(index) for index in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(find, range(8))) == alone


def test_in_bf16_maps_are_nearly_the_same(folder: Path, clipseg: ClipSeg) -> None:
    half = load_clipseg(folder, "bf16")
    images, texts = [picture(0), picture(1)], [["a red ball", "a cup"], ["a dog"]]
    for found, exact in zip(find_heatmaps(half, images, texts), find_heatmaps(clipseg, images, texts), strict=True):
        assert found.dtype == np.float32
        assert 0 < np.abs(found - exact).mean() < 0.02


def test_many_pictures_and_texts_together_give_what_each_pair_gives(clipseg: ClipSeg) -> None:
    images = [picture(i, 30 + i, 60 - 7 * i) for i in range(4)]
    texts = [["a dog", "the lawn"], [], ["a dog"], ["a big red umbrella beside it", "a dog", "a dog"]]
    together = find_heatmaps(clipseg, images, texts)
    assert [len(found) for found in together] == [2, 0, 1, 3]
    for image, wanted, found in zip(images, texts, together, strict=True):
        for text, one in zip(wanted, found, strict=True):
            np.testing.assert_allclose(one, find_heatmaps(clipseg, [image], [[text]])[0][0], atol=1e-5)


@pytest.mark.parametrize("size", [(1, 9), (3, 3), (3, 200), (1, 1)])
def test_a_picture_may_be_as_thin_as_its_channels_are_many(clipseg: ClipSeg, size: tuple[int, int]) -> None:
    (found,) = find_heatmaps(clipseg, [picture(1, *size)], [["a dog"]])
    assert found.shape == (1, SIDE, SIDE)


def test_nothing_asked_is_nothing_found(clipseg: ClipSeg) -> None:
    assert find_heatmaps(clipseg, [], []) == []
    assert find_heatmaps(clipseg, [picture(0)], [[]])[0].shape == (0, SIDE, SIDE)


def test_phrases_are_looked_for_and_of_boxes_the_labels() -> None:
    example = replace(make_example(), phrases=(phrase("a dog"), phrase("the lawn")))
    assert texts_of(example) == ["a dog", "the lawn"]
    assert texts_of(replace(example, boxes=(Box("Teddy bear", (0, 0, 4, 4)),))) == ["a teddy bear"]


def test_the_transform_fills_the_field(folder: Path, clipseg: ClipSeg) -> None:
    example = replace(
        make_example(size=(56, 40)), image=encode_jpeg(picture(2)), phrases=(phrase("a dog"),), _pixels=None
    )
    (batch,) = apply(FindHeatmaps(str(folder)), [Batch(3, (example,))])
    (record,) = batch.records
    assert isinstance(record, Example)
    assert record.heatmaps is not None
    np.testing.assert_allclose(record.heatmaps, find_heatmaps(clipseg, [example.pixels()], [["a dog"]])[0], atol=1e-6)


def test_what_is_no_clipseg_is_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    cases = {"empty": "no CLIPSeg that can be loaded", "other": "of type owlvit: give", "gap": "lacks 1 of its"}
    for name in cases:
        shutil.copytree(folder, tmp_path / name)
    (tmp_path / "empty" / "model.safetensors").write_bytes(b"")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"model_type": "owlvit"}))
    model = CLIPSegForImageSegmentation.from_pretrained(folder)
    weights = model.state_dict()
    del weights["decoder.reduces.0.weight"]
    model.save_pretrained(tmp_path / "gap", state_dict=weights)
    for name, message in cases.items():
        with pytest.raises(ModelError, match=message) as caught:
            load_clipseg(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_the_processor_resizes_to_the_models_side() -> None:
    pixels = new_processor()(images=picture(0), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, SIDE, SIDE)
