import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from jobs.scenes import scene_of
from schemas.example import Example
from schemas.images import decode_image
from tests.beam import apply
from tests.examples import make_example
from tests.pictures import encode, scene
from transforms.batch import Batch
from transforms.selection.phash import HashPictures, phash_of


def waves() -> NDArray[np.uint8]:
    y, x = np.mgrid[:96, :64]
    channels = 127 + 120 * np.sin(x / 9) * np.cos(y / 17), 127 + 120 * np.sin(y / 7), 255 * x * y / (63 * 95)
    return np.stack(channels, axis=2).astype(np.uint8)


def patterns() -> NDArray[np.uint8]:
    y, x = np.mgrid[:48, :64]
    return np.stack([(x * x + 3 * y) % 256, (y * y * 2 + x) % 256, (x * y) % 256], axis=2).astype(np.uint8)


def test_hashes_are_those_of_imagehash() -> None:
    """What `imagehash.phash` of ImageHash 4.3.2 makes of these pictures."""
    assert f"{phash_of(waves()):016x}" == "9fe0e09fe01f6215"
    assert f"{phash_of(patterns()):016x}" == "80011f2e574f3b7d"


def test_a_bit_is_a_sum_of_cosines_against_their_median() -> None:
    grey = np.asarray(Image.fromarray(waves()).convert("L").resize((32, 32), Image.Resampling.LANCZOS), float)
    n = np.arange(32)
    low = np.empty((8, 8))
    for u in range(8):
        for v in range(8):
            wave = np.outer(np.cos(np.pi * u * (2 * n + 1) / 64), np.cos(np.pi * v * (2 * n + 1) / 64))
            low[u, v] = (grey * wave).sum()
    bits = "".join("1" if value > np.median(low) else "0" for value in low.ravel())
    assert phash_of(waves()) == int(bits, 2)


def test_copies_have_near_hashes_and_other_pictures_have_not() -> None:
    hashes = []
    for index in range(20):
        picture = scene_of(11, index, 128).image
        hashes.append(phash_of(picture))
        copies = (
            decode_image(encode(picture, "JPEG", quality=50)),
            np.asarray(Image.fromarray(picture).resize((96, 96), Image.Resampling.BICUBIC)),
            np.clip(picture * 0.95 + 8, 0, 255).astype(np.uint8),
        )
        assert max((hashes[-1] ^ phash_of(copy)).bit_count() for copy in copies) <= 4
    others = [(a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(others) > 10


@pytest.mark.parametrize("size", [(1, 1), (5, 700), (64, 64)])
def test_pictures_of_one_colour_have_one_hash(size: tuple[int, int]) -> None:
    shades = [phash_of(np.full((*size, 3), shade, np.uint8)) for shade in (1, 90, 255)]
    assert set(shades) == {1 << 63}  # light alone, and nothing in it
    assert phash_of(np.zeros((*size, 3), np.uint8)) == 0


def test_the_transform_fills_the_field() -> None:
    jpeg = encode(scene(), "JPEG")
    example = Example("k", jpeg, 32, 24, "a dog", make_example().source, "a dog")
    (batch,) = apply(HashPictures(), [Batch(0, (example,))])
    assert batch.records[0].phash == phash_of(decode_image(jpeg)) != 0
    assert [stage for stage, _ in batch.seconds] == ["look"]
