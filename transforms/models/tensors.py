"""Pictures as tensors on the device that a model runs on: one copy per batch each way, resized and normalised there."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

Filter = Literal["bilinear", "bicubic"]


def upload(arrays: Sequence[NDArray[np.uint8]], device: str | torch.device) -> list[torch.Tensor]:
    """Move uint8 arrays of any shapes, as pictures [H, W, 3], to `device` in one copy; on the CPU nothing is copied.

    The tensors are views into one buffer, and must not be written to. The copy does not wait for the device.
    """
    if torch.device(device).type == "cpu":
        # An array that is read-only, as one on bytes, would only earn a warning.
        return [torch.from_numpy(a if a.flags.writeable else a.copy()) for a in arrays]
    pinned = torch.empty(sum(a.size for a in arrays), dtype=torch.uint8, pin_memory=torch.device(device).type == "cuda")
    host = pinned.numpy()
    ends = np.cumsum([a.size for a in arrays])
    for array, end in zip(arrays, ends, strict=True):
        host[end - array.size : end].reshape(array.shape)[...] = array
    parts = pinned.to(device, non_blocking=True).split([a.size for a in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


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
    return resized.add_(0.5).floor_().clamp_(0, 255).to(torch.uint8)


def normalise(
    images: torch.Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Turn pictures [N, 3, H, W] uint8 into what models take: (x / 255 - mean) / std, computed in float32."""
    middle, spread = (torch.tensor(v, dtype=torch.float32, device=images.device).view(3, 1, 1) for v in (mean, std))
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


def download(tensors: Sequence[torch.Tensor]) -> list[NDArray[np.generic]]:
    """Move tensors of one dtype to the CPU in one copy; bfloat16 becomes float32, which NumPy has."""
    if not tensors:
        return []
    flat = torch.cat([t.reshape(-1) for t in tensors]) if len(tensors) > 1 else tensors[0].reshape(-1)
    flat = (flat.float() if flat.dtype == torch.bfloat16 else flat).cpu()
    parts = flat.split([t.numel() for t in tensors])
    return [part.view(t.shape).numpy() for part, t in zip(parts, tensors, strict=True)]


def groups(keys: Iterable[Hashable], at_most: int) -> list[list[int]]:
    """Group the indices of equal `keys`, as the shapes of pictures, into lists of at most `at_most`, in their order."""
    members: dict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        members[key].append(index)
    return [found[start : start + at_most] for found in members.values() for start in range(0, len(found), at_most)]
