import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.errors import ModelError
from schemas.example import Example, Segment
from schemas.masks import Mask
from tests.beam import apply
from tests.clip import save_random_clip
from tests.examples import make_example, phrase
from tests.pictures import encode
from tests.strategies import masks
from transforms.batch import Batch
from transforms.models.clip import Clip, embed_images, embed_texts, load_clip
from transforms.models.presets import PRESETS
from transforms.models.settings import FILL
from transforms.regions.similarity import (
    ScoreSimilarity,
    Similarity,
    add_clip_similarity,
    add_label_similarity,
    masked_crop,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_random_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(checkpoint: str) -> Clip:
    return load_clip(checkpoint)


def annotated(key: str, phrases: tuple[str, ...], boxes: tuple[tuple[int, int], ...]) -> Example:
    """An example with noise for a picture and a segment "thing" for each span of columns."""
    noise = np.random.default_rng(len(key)).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    segments = []
    for left, right in boxes:
        mask = np.zeros((12, 16), bool)
        mask[2:9, left:right] = True
        segments.append(Segment("thing", 1.0, Mask.from_array(mask)))
    return replace(make_example(key), phrases=tuple(map(phrase, phrases)), segments=tuple(segments), _pixels=noise)


def test_a_masked_crop_by_hand() -> None:
    image = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    mask = np.zeros((4, 5), bool)
    mask[1, 1:4] = True
    mask[2, 1] = True
    crop = masked_crop(image, mask)
    assert crop.shape == (3, 3, 3)
    assert np.array_equal(crop[0], image[1, 1:4])
    assert np.array_equal(crop[1, 0], image[2, 1])
    assert (crop[1, 1:] == FILL).all()
    assert (crop[2] == FILL).all()


@given(masks(), st.integers(0, 99))
def test_a_crop_is_the_segment_alone_in_the_middle_of_a_square(mask: NDArray[np.bool_], seed: int) -> None:
    assume(mask.any())
    image = np.random.default_rng(seed).integers(0, 256, (*mask.shape, 3), dtype=np.uint8)
    places = np.argwhere(mask)
    corner, size = places.min(0), np.ptp(places, axis=0) + 1
    expected = np.full((size.max(), size.max(), 3), (122, 116, 104))  # 255 times the mean that CLIP subtracts
    for place in places:
        y, x = place - corner + (size.max() - size) // 2
        expected[y, x] = image[tuple(place)]
    np.testing.assert_array_equal(masked_crop(image, mask), expected)


def test_an_empty_mask_has_no_crop() -> None:
    with pytest.raises(ValueError, match=r"^an empty mask has no crop$"):
        masked_crop(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), bool))


def test_similarity_is_the_cosine_of_phrase_and_crop(clip: Clip) -> None:
    examples = [annotated("a", ("a dog", "a cat"), ((0, 4), (6, 12), (12, 16))), annotated("bb", ("a cat",), ((3, 9),))]
    scored = add_clip_similarity(clip, examples, with_labels=False)
    assert [np.shape(example.similarity) for example in scored] == [(2, 3), (1, 1)]
    for example in scored:
        for p, one in enumerate(example.phrases):
            for s, segment in enumerate(example.segments):
                crop = masked_crop(example.pixels(), segment.mask.to_array())
                cosine = (embed_texts(clip, [one.text]) @ embed_images(clip, [crop]).T).item()
                assert example.similarity[p][s] == pytest.approx(cosine, abs=2e-4)


def test_the_product_with_the_label_never_makes_two_wrongs_right(clip: Clip) -> None:
    example = annotated("a", ("a dog", "a thing"), ((0, 4), (6, 12)))
    (plain,) = add_clip_similarity(clip, [example], with_labels=False)
    (product,) = add_clip_similarity(clip, [example], with_labels=True)
    label = (embed_texts(clip, ["a dog", "a thing"]) @ embed_texts(clip, ["a thing"]).T)[:, 0]
    expected = np.maximum(plain.similarity, 0) * np.maximum(label, 0)[:, None]
    assert np.allclose(product.similarity, expected, atol=2e-4)
    assert product.similarity[1] == pytest.approx(np.maximum(plain.similarity[1], 0), abs=2e-4)
    # A label that no phrase has is embedded too.
    dog = annotated("a", ("a dog",), ((0, 4), (6, 12)))
    (alone,) = add_clip_similarity(clip, [dog], with_labels=True)
    assert alone.similarity[0] == pytest.approx(product.similarity[0], abs=2e-4)


def test_embeddings_are_unit_rows_and_nothing_embeds_to_nothing(clip: Clip) -> None:
    rows = embed_texts(clip, ["a dog", "a very small cat " * 50])
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(2), abs=1e-5)
    assert embed_texts(clip, []).shape == (0, 0)
    assert embed_images(clip, []).shape == (0, 0)


def test_labels_need_no_model() -> None:
    example = annotated("a", ("a thing", "a cat"), ((0, 4),))
    (row,), (other,) = add_label_similarity(example).similarity
    assert row > 0.9
    assert other == 0


@pytest.mark.parametrize("similarity", ["clip", "clip-label", "label"])
def test_the_transform_compares_as_it_is_asked_to(similarity: Similarity, checkpoint: str, clip: Clip) -> None:
    example = annotated("a", ("a dog", "a thing"), ((0, 4), (5, 9)))
    example = replace(example, image=encode(example.pixels()), _pixels=None)  # decoded pixels do not travel
    (batch,) = apply(ScoreSimilarity(similarity, checkpoint), [Batch(0, (example,))])
    expected = {
        "clip": add_clip_similarity(clip, [example], with_labels=False)[0],
        "clip-label": add_clip_similarity(clip, [example], with_labels=True)[0],
        "label": add_label_similarity(example),
    }
    (record,) = batch.records
    assert record == expected[similarity]
    assert len({other.similarity for other in expected.values()}) == 3
    assert [stage for stage, _ in batch.seconds] == ["similarity"]


def test_similarities_have_four_decimals(clip: Clip) -> None:
    (scored,) = add_clip_similarity(clip, [annotated("a", ("a dog", "a cat"), ((0, 4), (6, 12)))], with_labels=False)
    values = [score for row in scored.similarity for score in row]
    assert [round(value, 4) for value in values] == values
    assert any(round(value, 3) != value for value in values)


def test_a_missing_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no CLIP .*missing/x: looked for a folder .* Give --model clip=FOLDER"):
        load_clip(tmp_path / "missing" / "x")


def test_weights_are_run_with_the_activation_that_they_were_trained_with(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, bool]] = []

    def create(name: str, tag: str, *, device: str, force_quick_gelu: bool) -> None:
        assert device
        asked.append((name, tag, force_quick_gelu))
        raise RuntimeError("no download in a test")

    monkeypatch.setattr(open_clip, "create_model_from_pretrained", create)
    for checkpoint in (
        PRESETS["hub"].clip,
        "ViT-H-14/laion2b_s32b_b79k",
        "hf-hub:laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    ):
        with pytest.raises(ModelError, match="no download in a test"):
            load_clip(checkpoint)
    assert asked == [
        ("ViT-L-14", "openai", True),
        ("ViT-H-14", "laion2b_s32b_b79k", False),
        ("hf-hub:laion/CLIP-ViT-H-14-laion2B-s32B-b79K", None, False),
    ]


def test_a_folder_without_weights_is_no_random_model(checkpoint: str, tmp_path: Path) -> None:
    shutil.copy(Path(checkpoint) / "open_clip_config.json", tmp_path)
    with pytest.raises(ModelError, match=f"no CLIP {tmp_path}"):
        load_clip(tmp_path)
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match=f"no CLIP {tmp_path}"):
        load_clip(tmp_path)


def test_loading_leaves_the_log_as_loud_as_it_was(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "level", logging.INFO)
    load_clip(checkpoint)
    assert logging.getLogger().level == logging.INFO
