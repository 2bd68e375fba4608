"""Pictures on the device: as Pillow resizes them, moved in one copy each way."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from schemas.images import decode_image
from tests.paths import SHARED
from transforms.models import tensors
from transforms.models.tensors import Filter, download, groups, normalise, resize, upload, upload_pictures

PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# What the published checkpoints of CLIP, the sample CLIP, SAM's and CLIPSeg's preprocessing ask for.
SIZES: list[tuple[Filter, tuple[int, int]]] = [
    ("bicubic", (224, 224)),
    ("bicubic", (64, 64)),
    ("bilinear", (352, 352)),
    ("bilinear", (768, 1024)),
]


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def photographs() -> list[NDArray[np.uint8]]:
    folder = SHARED / "real" / "skimage_photos"
    return [decode_image(path.read_bytes()) for path in sorted(folder.rglob("*.[jp][pn]g"))[:4]]


def as_devices_do(images: torch.Tensor, size: tuple[int, int], how: Filter) -> torch.Tensor:
    """What `resize` does on devices that interpolate floats only."""
    rows = tensors._resize_float(images, (images.shape[-2], size[1]), how)
    return tensors._resize_float(rows, size, how)


@pytest.mark.parametrize("function", [resize, as_devices_do])
@pytest.mark.parametrize(("how", "size"), SIZES)
def test_pictures_are_resized_as_pillow_does(function: object, how: Filter, size: tuple[int, int]) -> None:
    assert callable(function)
    images = [noise(300, 300), noise(37, 91), noise(1, 7), noise(480, 641), *photographs()]
    for image in images:
        pillow = np.asarray(Image.fromarray(image).resize(size[::-1], PILLOW[how])).astype(int)
        (found,) = function(torch.from_numpy(image).permute(2, 0, 1)[None], size, how)
        error = np.abs(found.permute(1, 2, 0).numpy().astype(int) - pillow)
        assert found.dtype == torch.uint8
        # Noise is the worst there is: nothing but steep edges.
        assert error.max() <= 2
        assert (error > 1).mean() < 2e-5, (image.shape, error.max())
        assert error.mean() < 0.06


@pytest.mark.parametrize("function", [resize, as_devices_do])
@pytest.mark.parametrize("side", [224, 64])
def test_photographs_are_resized_for_clip_within_one_grey_level(function: object, side: int) -> None:
    assert callable(function)
    for image in photographs():
        pillow = np.asarray(Image.fromarray(image).resize((side, side), PILLOW["bicubic"])).astype(int)
        (found,) = function(torch.from_numpy(image).permute(2, 0, 1)[None], (side, side), "bicubic")
        assert np.abs(found.permute(1, 2, 0).numpy().astype(int) - pillow).max() <= 1


def test_one_bicubic_filter_for_both_directions_would_be_another_one() -> None:
    image = noise(300, 300)
    pillow = np.asarray(Image.fromarray(image).resize((224, 224), PILLOW["bicubic"])).astype(int)
    at_once = tensors._resize_float(torch.from_numpy(image).permute(2, 0, 1)[None], (224, 224), "bicubic")[0]
    assert np.abs(at_once.permute(1, 2, 0).numpy().astype(int) - pillow).max() > 5


def test_pictures_of_one_size_are_resized_together_as_alone() -> None:
    images = torch.stack([torch.from_numpy(noise(40, 60 + i)[:, :60]).permute(2, 0, 1) for i in range(3)])
    together = resize(images, (20, 30), "bilinear")
    for image, found in zip(images, together, strict=True):
        assert torch.equal(resize(image[None], (20, 30), "bilinear")[0], found)


def test_normalised_pictures_by_hand() -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    found = normalise(pixels, (0.5, 0.1, 0.0), (0.25, 0.1, 2.0))
    np.testing.assert_allclose(found.flatten().numpy(), [-2.0, 1.0, 0.5], rtol=1e-6)
    assert normalise(pixels, (0, 0, 0), (1, 1, 1), torch.bfloat16).dtype == torch.bfloat16


def check_upload(device: str) -> None:
    images = [noise(4, 6), noise(9, 2)[::2], np.frombuffer(bytes(range(36)), np.uint8).reshape(3, 4, 3)]
    for image, found in zip(images, upload(images, device), strict=True):
        assert found.device.type == device
        np.testing.assert_array_equal(found.cpu().numpy(), image)
    for image, found in zip(images, upload_pictures(images, device), strict=True):
        np.testing.assert_array_equal(found.permute(1, 2, 0).cpu().numpy(), image)
    assert upload([], device) == []


def test_arrays_are_uploaded_as_they_are() -> None:
    check_upload("cpu")


@pytest.mark.gpu
def test_arrays_are_uploaded_to_cuda_in_one_buffer() -> None:
    check_upload("cuda")
    first, second = upload([noise(4, 6), noise(9, 2)], "cuda")
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


@pytest.mark.gpu
@pytest.mark.parametrize(("how", "size"), SIZES)
def test_pictures_are_resized_on_cuda_as_on_the_cpu(how: Filter, size: tuple[int, int]) -> None:
    images = torch.from_numpy(noise(300, 300)).permute(2, 0, 1)[None]
    error = (resize(images.cuda(), size, how).cpu().int() - resize(images, size, how).int()).abs()
    assert error.max() <= 2
    assert (error > 1).float().mean() < 1e-4


def test_tensors_are_downloaded_as_they_are() -> None:
    values = [torch.arange(6.0).view(2, 3), torch.tensor(7.0), torch.zeros(0, 4)]
    for value, found in zip(values, download(values), strict=True):
        np.testing.assert_array_equal(found, value.numpy())
    (half,) = download([torch.tensor([1.5, 2.5], dtype=torch.bfloat16)])
    assert half.dtype == np.float32
    assert half.tolist() == [1.5, 2.5]
    assert download([]) == []


def test_groups_have_one_key_and_at_most_so_many_members() -> None:
    assert groups(["a", "b", "a", "a", "b"], 2) == [[0, 2], [3], [1, 4]]
    assert groups([], 2) == []
