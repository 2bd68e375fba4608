"""CLIP's pictures are prepared on its device: as open_clip prepares them, and as `masked_crop` cuts segments out."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from open_clip.transform import image_transform
from PIL import Image

from schemas.masks import Mask
from tests.clip import save_random_clip
from transforms.models.clip import Clip, embed_images, embed_segments, embed_texts, load_clip
from transforms.models.settings import Precision
from transforms.models.tensors import fit, normalise
from transforms.regions.similarity import masked_crop

TEXTS = [["a dog", "a very red ball"], ["a cup"], ["a tall tree on a lawn"], ["a"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_random_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(folder: str) -> Clip:
    return load_clip(folder)


def picture(seed: int, height: int = 70, width: int = 90) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def mask(top: int, bottom: int, left: int, right: int) -> NDArray[np.bool_]:
    inside = np.zeros((70, 90), bool)
    inside[top:bottom, left:right] = True
    inside[top, left] = bottom - top == 1
    return inside


MASKS = [[mask(3, 50, 8, 30), mask(0, 1, 0, 90)], [], [mask(0, 70, 0, 90), mask(60, 61, 5, 6), mask(20, 40, 20, 41)]]
PICTURES = [picture(i) for i in range(3)]


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_pictures_are_prepared_as_open_clip_does(mode: str, size: tuple[int, int]) -> None:
    published = image_transform(size, is_train=False, resize_mode=mode, interpolation="bicubic", fill_color=7)
    how = published.transforms[-1]
    for height, width in ((100, 100), (31, 77), (300, 40), (64, 64), (33, 120)):
        image = picture(height, height, width)
        fitted = fit(torch.from_numpy(image).permute(2, 0, 1)[None], size, mode, "bicubic", 7)
        found = normalise(fitted, how.mean, how.std)[0]
        expected = published(Image.fromarray(image))
        levels = (found - expected).abs() * 255 * torch.tensor(how.std).view(3, 1, 1)
        assert found.shape == expected.shape
        # Noise that is enlarged is the worst there is; photographs: tests/transforms/models/test_tensors.py.
        assert levels.max() < 2.01
        assert (levels > 1.01).float().mean() < 1e-3


def test_segments_are_embedded_as_their_crops(clip: Clip) -> None:
    masks = [[Mask.from_array(m) for m in own] for own in MASKS]
    crops = [masked_crop(image, m) for image, own in zip(PICTURES, MASKS, strict=True) for m in own]
    np.testing.assert_allclose(embed_segments(clip, PICTURES, masks), embed_images(clip, crops), atol=1e-6)
    assert embed_segments(clip, PICTURES, [[], [], []]).shape == (0, 0)
    with pytest.raises(ValueError, match="an empty mask has no crop"):
        embed_segments(clip, PICTURES[:1], [[Mask.from_array(np.zeros((70, 90), bool))]])


def test_threads_that_share_a_model_get_what_each_would_get_alone(clip: Clip) -> None:
    def embed(index: int) -> tuple[bytes, bytes]:
        crops = [picture(index, 20 + index % 3, 30), picture(index, 40, 40)]
        return embed_images(clip, crops).tobytes(), embed_texts(clip, TEXTS[index % 4]).tobytes()

    alone = [embed(index) for index in range(12)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(embed, range(12))) == alone


def test_many_crops_go_through_the_model_in_parts(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    crops = [picture(i, 20, 20 + i % 2) for i in range(7)]
    whole, texts = embed_images(clip, crops), embed_texts(clip, [f"a {i}" for i in range(7)])
    monkeypatch.setattr("transforms.models.clip.AT_ONCE", 3)
    np.testing.assert_allclose(embed_images(clip, crops), whole, atol=1e-5)
    np.testing.assert_allclose(embed_texts(clip, [f"a {i}" for i in range(7)]), texts, atol=1e-5)


def check_half_precision(folder: str, clip: Clip, device: str, precision: Precision) -> None:
    half = load_clip(folder, precision)
    assert next(half.model.parameters()).dtype == torch.bfloat16
    assert next(half.model.parameters()).device.type == device
    crops = [picture(i) for i in range(3)]
    for found, exact in (
        (embed_images(half, crops), embed_images(clip, crops)),
        (embed_texts(half, TEXTS[0]), embed_texts(clip, TEXTS[0])),
    ):
        assert found.dtype == np.float32
        cosines = (found * exact).sum(1)
        assert cosines.min() > 0.99
        assert not np.array_equal(found, exact)


def test_in_bf16_embeddings_are_nearly_the_same(folder: str, clip: Clip) -> None:
    check_half_precision(folder, clip, "cpu", "bf16")


@pytest.mark.gpu
def test_on_cuda_auto_is_bf16_and_embeds_nearly_the_same(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBJECTLOOM_DEVICE", "cpu")
    exact = load_clip(folder, "fp32")
    monkeypatch.setenv("SUBJECTLOOM_DEVICE", "cuda")
    check_half_precision(folder, exact, "cuda", "auto")
