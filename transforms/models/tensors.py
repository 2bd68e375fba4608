"""Pictures as tensors on the device that a model runs on: one copy per batch each way, resized and normalised there."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

Filter = Literal["bilinear", "bicubic"]
FILTERS: dict[int, Filter] = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}
"""The filters by their numbers in the configs of transformers' image processors."""


def upload(arrays: Sequence[NDArray[Any]], device: str | torch.device) -> list[torch.Tensor]:
    """Move arrays of any shapes and types to `device` in one copy; on the CPU nothing is copied.

    The tensors are views into one buffer, and must not be written to. The copy does not wait for the device.
    """
    if torch.device(device).type == "cpu":
        # torch warns of an array that is read-only, as one on bytes is.
        return [torch.from_numpy(array if array.flags.writeable else array.copy()) for array in arrays]
    ends = np.cumsum([_aligned(array.nbytes) for array in arrays]).tolist()
    buffer = torch.empty(ends[-1] if ends else 0, dtype=torch.uint8, pin_memory=torch.device(device).type == "cuda")
    places = [slice(end - _aligned(array.nbytes), None) for array, end in zip(arrays, ends, strict=True)]
    for array, place in zip(arrays, places, strict=True):
        np.frombuffer(buffer.numpy()[place], array.dtype, array.size).reshape(array.shape)[...] = array
    moved = buffer.to(device, non_blocking=True)
    return [
        moved[place][: array.nbytes].view(torch.from_numpy(array[:0]).dtype).view(array.shape)
        for array, place in zip(arrays, places, strict=True)
    ]


def _aligned(count: int) -> int:
    """Round bytes up, so that the next array begins where values of any type may."""
    return -(-count // 16) * 16


def upload_pictures(images: Sequence[NDArray[np.uint8]], device: str | torch.device) -> list[torch.Tensor]:
    """Move pictures, each [H, W, 3] uint8, to `device`: [3, H, W] uint8 each, as `upload` does."""
    return [image.permute(2, 0, 1) for image in upload(images, device)]


def resize(images: torch.Tensor, size: tuple[int, int], how: Filter) -> torch.Tensor:
    """Resize pictures [N, 3, H, W] uint8 to `size` (height, width), with antialiasing, as Pillow does.

    The result differs from Pillow's by at most one grey level, on any device; by two at a few pixels of steep edges
    that are enlarged. Pillow resizes rows first, rounds, then columns; a bicubic filter that does both at once differs
    by up to 17, as it overshoots at edges and nothing cuts that off in between.
    """
    if images.device.type == "cpu":
        # The kernel for bytes works as Pillow does, and copies what is not in the order [N, H, W, 3].
        return F.interpolate(images, size, mode=how, antialias=True)
    rows = _resize_float(images, (images.shape[-2], size[1]), how)
    return _resize_float(rows, size, how)


def _resize_float(images: torch.Tensor, size: tuple[int, int], how: Filter) -> torch.Tensor:
    """Resize uint8 pictures by an interpolation of floats, for devices that have none of bytes."""
    if images.shape[-2:] == size:
        return images
    resized = F.interpolate(images.float(), size, mode=how, antialias=True)
    # Halves are rounded up, as Pillow does; torch.round takes them to the even neighbour.
    return resized.add_(0.5).clamp_(0, 255).to(torch.uint8)


def fit(images: torch.Tensor, size: tuple[int, int], mode: str, how: Filter, fill: int = 0) -> torch.Tensor:
    """Resize pictures [N, 3, H, W] uint8 and cut or pad them to `size` (height, width), as open_clip and timm do.

    Args:
        images: of one size.
        size: of the result, in pixels.
        mode: "squash" changes the proportions; "shortest" fills `size` and cuts off what is beyond it; "longest" keeps
            the whole picture and pads it with the grey level `fill`.
        how: the filter.
        fill: for "longest".
    """
    source = images.shape[-2:]
    if mode == "squash":
        return resize(images, size, how)
    ratios = [side / wanted for side, wanted in zip(source, size, strict=True)]
    if mode == "longest":
        scaled = [round(side / max(ratios)) for side in source]
    elif size[0] == size[1]:  # the longer side is rounded down here, as torchvision does
        scaled = [size[0] if side == min(source) else int(size[0] * side / min(source)) for side in source]
    else:
        scaled = [round(side / min(ratios)) for side in source]
    resized = resize(images, (max(1, scaled[0]), max(1, scaled[1])), how)
    below, right = (max(0, wanted - side) for wanted, side in zip(size, resized.shape[-2:], strict=True))
    if below or right:
        resized = F.pad(resized, (right // 2, (right + 1) // 2, below // 2, (below + 1) // 2), value=fill)
    top, left = (round((side - wanted) / 2) for wanted, side in zip(size, resized.shape[-2:], strict=True))
    return resized[..., top : top + size[0], left : left + size[1]]


@lru_cache
def constant(values: tuple[float, ...], device: str | torch.device) -> torch.Tensor:
    """A float32 tensor of `values`, kept on `device`: copying it there each time would wait for the device."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def normalise(
    images: torch.Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Turn pictures [N, 3, H, W] uint8 into what models take: (x / 255 - mean) / std, computed in float32."""
    middle, spread = (constant(tuple(values), images.device).view(3, 1, 1) for values in (mean, std))
    return images.float().div_(255).sub_(middle).div_(spread).to(dtype)


def process_pictures(processor: Any, pictures: Sequence[torch.Tensor]) -> list[dict[str, torch.Tensor]]:  # noqa: ANN401
    """Prepare pictures [3, H, W] uint8 with an image processor of transformers, each as if it were alone.

    Pictures of one size are processed together, on the device that they are on.

    Returns:
        For each picture the inputs of the model, "pixel_values" and, where the processor makes one, "pixel_mask", each
        [1, ...].
    """
    inputs: list[dict[str, torch.Tensor]] = [{} for _ in pictures]
    for members in groups((picture.shape for picture in pictures), len(pictures)):
        # Stated, as the processor would take the rows of a picture that is one or three pixels high for its channels.
        batch = processor(
            images=[pictures[i] for i in members], input_data_format="channels_first", return_tensors="pt"
        )
        for name in ("pixel_values", "pixel_mask"):
            for index, row in zip(members, batch.get(name, ()), strict=name in batch):
                inputs[index][name] = row[None]
    return inputs


def download(tensors: Sequence[torch.Tensor]) -> list[NDArray[Any]]:
    """Move tensors of one type to the CPU in one copy; there, floats of 16 bits become float32."""
    if not tensors:
        return []
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors]) if len(tensors) > 1 else tensors[0].reshape(-1)
    if flat.is_cuda:
        # Waits for this copy only, not for what other threads have given the device to do since.
        host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True).copy_(flat, non_blocking=True)
        with torch.cuda.device(flat.device):
            copied = torch.cuda.Event()
            copied.record()
        copied.synchronize()
        flat = host
    flat = flat.cpu()
    flat = flat.float() if flat.dtype in (torch.bfloat16, torch.float16) else flat
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape).numpy() for part, tensor in zip(parts, tensors, strict=True)]


def groups(keys: Iterable[Hashable], at_most: int) -> list[list[int]]:
    """Group the indices of equal `keys`, as the shapes of pictures, into lists of at most `at_most`, in their order."""
    members: dict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        members[key].append(index)
    return [found[start : start + at_most] for found in members.values() for start in range(0, len(found), at_most)]
