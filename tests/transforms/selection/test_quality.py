from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.example import Example, Object, Quality
from schemas.masks import Mask
from schemas.rejects import Reason
from schemas.samples.mip_adapter import FORMAT, Record
from tests.beam import apply
from tests.clip import save_random_clip
from tests.examples import make_example, phrase
from tests.pictures import encode
from transforms.batch import Batch
from transforms.models.clip import Clip, embed_images, embed_texts, load_clip
from transforms.regions.similarity import masked_crop
from transforms.selection.quality import EmbedObjects, ScoreQuality, add_quality, object_quality


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_random_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(checkpoint: str) -> Clip:
    return load_clip(checkpoint)


def annotated(key: str, *things: tuple[str, int, int]) -> Example:
    """An example with noise for a picture and, for each phrase, an object in a span of columns."""
    noise = np.random.default_rng(len(key)).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    objects, phrases, start = [], [], 0
    for index, (text, left, right) in enumerate(things):
        mask = np.zeros((12, 16), bool)
        mask[2:9, left:right] = True
        objects.append(Object(index, (left, 2, right - left, 7), 0.9, Mask.from_array(mask)))
        phrases.append(phrase(text, start=start))
        start += len(text) + 5
    caption = " and ".join(text for text, _, _ in things)
    example = make_example(key, caption)
    return replace(example, image=encode(noise, "JPEG"), phrases=tuple(phrases), objects=tuple(objects))


def unit_rows(seed: int, count: int, width: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_quality_by_hand() -> None:
    text = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    image = np.array([[1, 0, 0], [0.6, 0.8, 0], [0, 0.6, 0.8]], np.float32)
    quality = object_quality(text, image)
    assert quality.single == pytest.approx((1 + 0.8 + 0.8) / 3, abs=1e-7)
    assert quality.pair == pytest.approx(-2 * (0.6 + 0.0 + 0.48) / 6, abs=1e-7)
    assert quality.total == quality.single + quality.pair


def test_twins_cost_as_much_as_perfect_names_earn() -> None:
    row = np.array([[0, 1], [0, 1]], np.float32)
    assert object_quality(row, row) == Quality(1, -1, 0)


def test_one_object_has_no_pair() -> None:
    assert object_quality(np.array([[0.6, 0.8]]), np.array([[0.0, 1.0]])) == Quality(0.8, 0, 0.8)


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 64))
def test_quality_is_what_a_loop_finds(seed: int, count: int, width: int) -> None:
    text, image = unit_rows(seed, count, width), unit_rows(seed + 1, count, width)
    dot = [[sum(float(a) * float(b) for a, b in zip(t, i, strict=True)) for i in image] for t in text]
    twin = [[sum(float(a) * float(b) for a, b in zip(t, i, strict=True)) for i in image] for t in image]
    single = sum(dot[o][o] for o in range(count)) / count
    pairs = [-twin[a][b] for a in range(count) for b in range(count) if a != b]
    pair = sum(pairs) / len(pairs) if pairs else 0
    quality = object_quality(text, image)
    assert (quality.single, quality.pair, quality.total) == pytest.approx((single, pair, single + pair), abs=1e-14)


@given(st.integers(0, 2**32), st.integers(2, 6), st.permutations(range(6)))
def test_the_order_of_objects_does_not_matter(seed: int, count: int, order: list[int]) -> None:
    text, image = unit_rows(seed, count, 8), unit_rows(seed + 1, count, 8)
    order = [index for index in order if index < count]
    assert object_quality(text[order], image[order]).total == pytest.approx(
        object_quality(text, image).total, abs=1e-14
    )


@pytest.mark.parametrize(("texts", "images"), [(0, 0), (2, 1)])
def test_what_is_no_set_of_objects_is_refused(texts: int, images: int) -> None:
    message = rf"^embeddings of shape \({texts}, 2\) and \({images}, 2\): one of each per object is needed$"
    with pytest.raises(ValueError, match=message):
        object_quality(np.ones((texts, 2)), np.ones((images, 2)))


def test_examples_are_scored_together_and_each_by_its_own(clip: Clip) -> None:
    examples = [annotated("a", ("a dog", 0, 4), ("a cat", 6, 12)), annotated("bb", ("a cat", 3, 9))]
    for example in add_quality(clip, examples):
        texts = embed_texts(clip, [thing.text for thing in example.phrases])
        images = embed_images(clip, [masked_crop(example.pixels(), thing.mask.to_array()) for thing in example.objects])
        expected = object_quality(texts, images)
        assert example.quality is not None
        assert example.quality.single == pytest.approx(expected.single, abs=2e-4)
        assert example.quality.pair == pytest.approx(expected.pair, abs=2e-4)
        assert example.quality.total == pytest.approx(expected.total, abs=2e-4)
        for thing, text, image in zip(example.objects, texts, images, strict=True):
            assert thing.similarity == pytest.approx(float(text @ image), abs=2e-4)


def test_scores_are_stored_with_four_decimals(clip: Clip) -> None:
    examples = [annotated("k" * n, *((f"a thing number {i}", i, i + 3) for i in range(n))) for n in range(2, 8)]
    for example in add_quality(clip, examples):
        assert example.quality is not None
        stored = [example.quality.single, example.quality.pair, example.quality.total]
        texts = embed_texts(clip, [phrase.text for phrase in example.phrases])
        images = embed_images(clip, [masked_crop(example.pixels(), item.mask.to_array()) for item in example.objects])
        exact = object_quality(texts, images)
        # Half a step of the fourth decimal, and what a batch of another size changes.
        assert stored == pytest.approx([exact.single, exact.pair, exact.total], abs=6e-5)
        stored += [item.similarity for item in example.objects]
        assert stored == [round(value, 4) for value in stored]


def test_what_is_scored_agrees_with_what_the_record_states(clip: Clip) -> None:
    many = annotated("k" * 9, *((f"a thing number {i}", i, i + 3) for i in range(7)))
    (example,) = add_quality(clip, [many])
    row = FORMAT.pack(example)[1] | {"caption": example.caption, "source": "mem://" + example.key, "license": ""}
    sample = FORMAT.pack(example)[0]
    assert FORMAT.problems_of(sample, row | {"width": example.width, "height": example.height}) == []
    assert Record.from_sample(sample).quality.total == row["quality"]


def test_the_transform_scores_and_refuses_what_is_below_the_bound(checkpoint: str, clip: Clip) -> None:
    examples = [annotated("a", ("a dog", 0, 4), ("a cat", 6, 12)), annotated("bb", ("a cat", 3, 9))]
    totals = [thing.quality.total for thing in add_quality(clip, examples) if thing.quality]
    bound = max(totals)
    (batch,) = apply(ScoreQuality(bound), apply(EmbedObjects(checkpoint), [Batch(0, tuple(examples))]))
    refused, kept = sorted(batch.records, key=lambda record: isinstance(record, Example))
    assert kept.quality.total == bound  # the bound itself passes
    assert (refused.stage, refused.reason) == ("quality", Reason.LOW_QUALITY)
    assert refused.detail.startswith(f"{min(totals)} (")
    assert refused.detail.endswith(f"), the lowest allowed is {bound}")


def test_without_a_bound_all_stay(checkpoint: str) -> None:
    (batch,) = apply(ScoreQuality(), apply(EmbedObjects(checkpoint), [Batch(0, (annotated("a", ("a dog", 0, 4)),))]))
    (record,) = batch.records
    assert record.quality.single == record.objects[0].similarity != 0
    assert record.quality.pair == 0
    assert [stage for stage, _ in batch.seconds] == ["embeddings", "quality"]
