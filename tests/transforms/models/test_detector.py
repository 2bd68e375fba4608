import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from schemas.errors import ModelError
from schemas.machine import DEVICE
from tests.grounding import write_detector
from transforms.models.detector import Detector, detect_phrases, load_detector, tokens_of, write_prompt


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "detector"
    write_detector(path)
    return path


@pytest.fixture(scope="module")
def detector(folder: Path) -> Detector:
    return load_detector(folder)


def picture(seed: int, height: int = 48, width: int = 72) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


def test_a_phrase_has_its_own_tokens_though_its_words_stand_in_another_too(detector: Detector) -> None:
    phrases = ["a red ball", "the doggy", "a ball"]
    prompt, spans = write_prompt(phrases)
    assert prompt == "a red ball . the doggy . a ball ."
    encoded = detector.tokenizer(prompt, return_offsets_mapping=True)
    tokens = [np.flatnonzero(own) for own in tokens_of(np.array(encoded["offset_mapping"]), spans)]
    words = [detector.tokenizer.convert_ids_to_tokens([encoded["input_ids"][i] for i in own]) for own in tokens]
    assert words == [["a", "red", "ball"], ["the", "dog", "##gy"], ["a", "ball"]]
    assert len({token for own in tokens for token in own}) == 8


@given(st.lists(st.text(alphabet="aAé .", min_size=1).filter(lambda text: text.strip(" .")), min_size=1, max_size=4))
def test_spans_hold_the_phrases_in_lower_case(phrases: list[str]) -> None:
    prompt, spans = write_prompt(phrases)
    for phrase, (start, end) in zip(phrases, spans, strict=True):
        assert prompt[start:end] == phrase.replace(".", " ").lower()
    assert prompt.count(".") == len(phrases)


def test_scores_and_boxes_are_what_transformers_itself_says(detector: Detector) -> None:
    image = picture(0)
    (found,) = detect_phrases(detector, [image], [["a red ball", "the cup"]])
    inputs = detector.processor(images=image, return_tensors="pt")
    text = detector.tokenizer("a red ball . the cup .", return_tensors="pt")
    with torch.no_grad():
        answer = detector.model(**inputs, **text)
    # [CLS] a red ball . the cup . [SEP]
    logits = answer.logits[0].sigmoid()
    np.testing.assert_allclose(found.scores[0], logits[:, 1:4].amax(1), atol=1e-5)
    np.testing.assert_allclose(found.scores[1], logits[:, 5:7].amax(1), atol=1e-5)
    processed = detector.model.config  # boxes are shares of the picture: the peer's own step makes pixels of them
    assert processed.num_queries == len(found.corners)
    x, y, w, h = answer.pred_boxes[0].T
    peer = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1) * torch.tensor([72, 48, 72, 48])
    expected = np.clip(peer.numpy(), 0, [72, 48, 72, 48])
    np.testing.assert_allclose(found.corners, expected, atol=1e-3)


def test_pictures_of_one_size_together_give_what_each_gives(detector: Detector) -> None:
    images, phrases = [picture(0), picture(1)], [["a red ball"], ["the dog", "a tall cup"]]
    together = detect_phrases(detector, images, phrases)
    for image, own, found in zip(images, phrases, together, strict=True):
        (alone,) = detect_phrases(detector, [image], [own])
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-4)
        np.testing.assert_allclose(found.corners, alone.corners, atol=1e-2)


def test_pictures_of_several_sizes_are_not_padded(detector: Detector) -> None:
    """Padding would make what is found in a picture depend on the others."""
    images = [picture(0), picture(1, 72, 48), picture(2), picture(3, 24, 36)]  # the last is resized as the first is
    phrases = [["a red ball"], ["the dog", "a tall cup"], ["a cup"], ["a ball", "the dog", "a cup"]]
    for image, own, found in zip(images, phrases, detect_phrases(detector, images, phrases), strict=True):
        (alone,) = detect_phrases(detector, [image], [own])
        assert found.scores.shape == (len(own), len(found.corners))
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-4)
        np.testing.assert_allclose(found.corners, alone.corners, atol=1e-2)


def test_threads_share_a_detector(folder: Path) -> None:
    detector = load_detector(folder)  # its tokenizer has not been used
    images, phrases = [picture(0), picture(1)], [["a red ball"], ["the dog", "a tall cup"]]
    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(lambda _: detect_phrases(detector, images, phrases), range(8))
    for found in others:
        for detected, expected in zip(found, first, strict=True):
            np.testing.assert_array_equal(detected.corners, expected.corners)
            np.testing.assert_array_equal(detected.scores, expected.scores)


def test_in_bf16_boxes_are_not_rounded(folder: Path) -> None:
    detector = load_detector(folder, "bf16")
    (found,) = detect_phrases(detector, [picture(0, 640, 960)], [["a red ball"]])
    middles = found.corners[:, [0, 2]].mean(1) / 960
    # Between 1/2 and 1, bf16 has the multiples of 1/256 alone.
    steps = 256 * middles[(middles > 0.5) & (found.corners[:, 0] > 0) & (found.corners[:, 2] < 960)]
    assert len(steps) > 3
    assert np.mean(np.abs(steps - np.round(steps)) > 0.02) > 0.5


@pytest.mark.gpu
def test_on_cuda_the_boxes_are_those_of_the_cpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, phrases = [picture(0), picture(1, 72, 48)], [["a red ball"], ["the dog", "a tall cup"]]
    on_cuda = detect_phrases(load_detector(folder), images, phrases)
    assert detect_phrases(load_detector(folder, "bf16"), images, phrases)
    monkeypatch.setenv(DEVICE, "cpu")
    for found, expected in zip(on_cuda, detect_phrases(load_detector(folder), images, phrases), strict=True):
        np.testing.assert_allclose(found.scores.max(1), expected.scores.max(1), atol=0.02)


def test_a_phrase_beyond_the_longest_text_has_no_score(detector: Detector) -> None:
    (found,) = detect_phrases(detector, [picture(0)], [["a red ball"] * 3 + ["a blue cup"] * 3])
    assert (found.scores[0] > 0).all()
    assert (found.scores[5] == 0).all()


def test_no_picture_gives_nothing(detector: Detector) -> None:
    assert detect_phrases(detector, [], []) == []


def test_what_is_no_grounding_dino_is_refused_with_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "detr"}))
    with pytest.raises(ModelError, match=r"type detr: give --model detector=.* of type grounding-dino"):
        load_detector(other)
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match=r"no Grounding DINO .*--model detector=FOLDER"):
        load_detector(broken)
    poor = shutil.copytree(folder, tmp_path / "poor")
    weights = load_file(poor / "model.safetensors")
    weights.pop("model.text_projection.weight")
    save_file(weights, poor / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of its weights, such as model\.text_projection\.weight"):
        load_detector(poor)
