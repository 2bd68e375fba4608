"""SAM with segment-anything: masks of boxes, and of everything in a picture."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.utils.amg import batched_mask_to_box, build_point_grid, calculate_stability_score
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor
from torchvision.ops import nms
from torchvision.transforms.functional import resize, to_pil_image

from schemas.boxes import BBox, to_corners
from schemas.masks import Mask
from schemas.runs import masks_of_bits
from transforms.models.checkpoints import device, dtype_of, explaining
from transforms.models.pth import find_file, read_weights
from transforms.models.settings import Everything, Precision

REFINED = 4
"""Decoded masks have this many times as many pixels per side as the embedding."""

_EMBEDDED_AT_ONCE = 1
_DECODED_AT_ONCE = 64
_UPSAMPLED_PIXELS = 2**23
_STABILITY_OFFSET = 1.0
_DUPLICATE = 0.7


@dataclass(frozen=True)
class SamShape:
    """Sizes of a SAM other than the published three; `side` and `patch` in pixels.

    With a `window`, in patches, every other layer, beginning with the first, attends within windows of that size.
    """

    side: int = 256
    patch: int = 16
    width: int = 128
    depth: int = 4
    heads: int = 4
    prompt_width: int = 64
    window: int = 0


def new_sam(shape: SamShape) -> Sam:
    """Build an untrained SAM that normalises colours as the published ones do."""
    grid = shape.side // shape.patch
    return Sam(
        ImageEncoderViT(
            img_size=shape.side,
            patch_size=shape.patch,
            embed_dim=shape.width,
            depth=shape.depth,
            num_heads=shape.heads,
            out_chans=shape.prompt_width,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=shape.window,
            global_attn_indexes=tuple(range(1, shape.depth, 2)),
        ),
        PromptEncoder(shape.prompt_width, (grid, grid), (shape.side, shape.side), mask_in_chans=16),
        MaskDecoder(
            transformer_dim=shape.prompt_width,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=shape.prompt_width, num_heads=4, mlp_dim=4 * shape.prompt_width
            ),
            iou_head_hidden_dim=shape.prompt_width,
        ),
    )


def save_sam(sam: Sam, shape: SamShape, folder: Path) -> None:
    """Write a SAM to a folder that `load_sam` reads: `config.json` and `model.safetensors`, in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "segment-anything", **asdict(shape)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = {name: value.half().contiguous() for name, value in sam.state_dict().items()}
    save_file(weights, folder / "model.safetensors")


def load_sam(checkpoint: str | Path, precision: Precision = "fp32") -> Sam:
    """Load a SAM: a folder that `save_sam` wrote, or one of the published checkpoints.

    Those are files with their size in the name (`sam_vit_h_4b8939.pth`), local or on the Hugging Face hub as
    OWNER/REPOSITORY/PATH. Nothing that they hold is executed.

    Raises:
        ModelError: there is no such checkpoint, or it is broken or of another kind.
    """
    problem = (
        f"no SAM {checkpoint}: looked for a folder with config.json and model.safetensors, and for a published file "
        "named sam_vit_h*, sam_vit_l* or sam_vit_b*"
    )
    with explaining(problem, "Give --model sam=PATH"):
        sam = _from_folder(Path(checkpoint)) if Path(checkpoint).is_dir() else _published(str(checkpoint))
    return sam.eval().to(device(), dtype_of(precision))


def _from_folder(folder: Path) -> Sam:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.pop("model_type", "") != "segment-anything":
        raise ValueError("its config.json is not a SAM's")
    sam = new_sam(SamShape(**config))
    sam.load_state_dict(load_file(folder / "model.safetensors"))
    return sam


def _published(checkpoint: str) -> Sam:
    sizes = [size for size in sam_model_registry if size in Path(checkpoint).name]
    if not sizes:
        raise ValueError("its name has no size: vit_h, vit_l or vit_b")
    path = find_file(checkpoint)
    sam = sam_model_registry[sizes[0]]()
    # The registry itself would unpickle whatever the file holds.
    sam.load_state_dict(read_weights(path))
    return sam


@dataclass(frozen=True)
class _Picture:
    """A picture as the decoder takes it: `embedding` [1, C, h, w], and (height, width) as stored and as resized."""

    embedding: Tensor
    size: tuple[int, int]
    resized: tuple[int, int]


def segment_boxes(
    sam: Sam, images: Sequence[NDArray[np.uint8]], boxes: Sequence[Sequence[BBox]]
) -> list[list[Mask]]:
    """Segment the thing in each box; each picture is embedded once, and its boxes are decoded in one batch.

    Args:
        sam: the model.
        images: pictures, each [H, W, 3] uint8 RGB of any size.
        boxes: the boxes of each picture, [x, y, w, h] in pixels, any number.

    Returns:
        For each picture the masks of its boxes; a mask may be empty.
    """
    asked = [index for index, wanted in enumerate(boxes) if wanted]
    with torch.inference_mode():
        pictures = _embedded(sam, [images[index] for index in asked])
        bits = [_decode_boxes(sam, picture, boxes[index]) for index, picture in zip(asked, pictures, strict=True)]
    masks: list[list[Mask]] = [[] for _ in images]
    for index, planes in zip(asked, to_host(bits), strict=True):
        masks[index] = masks_of_bits(planes, len(boxes[index]))
    return masks


def segment_everything(
    sam: Sam, images: Sequence[NDArray[np.uint8]], settings: Everything
) -> list[list[tuple[Mask, float]]]:
    """Segment all things that a grid of point prompts finds in each picture.

    They are what segment-anything's `SamAutomaticMaskGenerator` finds. It upsamples every mask that it decodes, and
    encodes each before it looks for duplicates; here a mask that its predicted IoU excludes is not upsampled, and none
    that another filter excludes is encoded.

    Args:
        sam: the model.
        images: pictures, each [H, W, 3] uint8 RGB of any size.
        settings: the grid and the filters.

    Returns:
        For each picture its masks with their predicted IoU in [0, 1], the largest first; empty masks are left out.
    """
    with torch.inference_mode():
        found = [_find_everything(sam, picture, settings) for picture in _embedded(sam, images)]
    host = to_host([part for parts in found for part in parts])
    return [_largest_first(*host[i : i + 4]) for i in range(0, len(host), 4)]


def _embedded(sam: Sam, images: Sequence[NDArray[np.uint8]]) -> Iterator[_Picture]:
    """Embed pictures, several in one batch: all are resized to the model's side and padded to a square."""
    side = sam.image_encoder.img_size
    for begin in range(0, len(images), _EMBEDDED_AT_ONCE):
        chunk = images[begin : begin + _EMBEDDED_AT_ONCE]
        sizes = [image.shape[:2] for image in chunk]
        resized = [ResizeLongestSide.get_preprocess_shape(*size, side) for size in sizes]
        pixels = [sam.preprocess(_resize(image, size, sam.device)) for image, size in zip(chunk, resized, strict=True)]
        embeddings = sam.image_encoder(torch.stack(pixels)).split(1)
        yield from map(_Picture, embeddings, sizes, resized)


def _resize(image: NDArray[np.uint8], size: tuple[int, int], device: torch.device) -> Tensor:
    pixels = np.array(resize(to_pil_image(image), size))
    return torch.as_tensor(pixels, device=device).permute(2, 0, 1)


def _decode(
    sam: Sam, picture: _Picture, prompts: tuple[Tensor, Tensor], *, multimask: bool
) -> tuple[Tensor, Tensor]:
    """Decode N prompts: the logits [N, M, h, w] of their M masks and the predicted IoUs [N, M]."""
    logits, ious = sam.mask_decoder(
        image_embeddings=picture.embedding,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=prompts[0],
        dense_prompt_embeddings=prompts[1],
        multimask_output=multimask,
    )
    return logits, ious


def _decode_boxes(sam: Sam, picture: _Picture, boxes: Sequence[BBox]) -> Tensor:
    """Return the masks of boxes, [ceil(N / 8), W, H] uint8 as `masks_of_bits` takes them."""
    corners = torch.tensor([to_corners(box) for box in boxes], dtype=torch.float32, device=sam.device)
    corners = ResizeLongestSide(sam.image_encoder.img_size).apply_boxes_torch(corners, picture.size)
    logits, _ = _decode(sam, picture, sam.prompt_encoder(None, corners, None), multimask=False)
    return _pack(sam, picture, logits[:, 0])


def _find_everything(sam: Sam, picture: _Picture, settings: Everything) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the N masks of a picture.

    Returns:
        The masks as `masks_of_bits` takes them, their boxes [N, 4] (left, top, right, bottom) of the outermost pixels,
        areas [N] in pixels and predicted IoUs [N].
    """
    points = build_point_grid(settings.points) * picture.size[::-1]
    points = ResizeLongestSide(sam.image_encoder.img_size).apply_coords(points, picture.size)
    coordinates = torch.as_tensor(points, device=sam.device)[:, None]
    labels = torch.ones(coordinates.shape[:2], dtype=torch.int, device=sam.device)
    sparse, dense = sam.prompt_encoder((coordinates, labels), None, None)
    found = []
    for begin in range(0, len(points), _DECODED_AT_ONCE):
        prompts = sparse[begin : begin + _DECODED_AT_ONCE], dense[begin : begin + _DECODED_AT_ONCE]
        logits, ious = (each.flatten(0, 1) for each in _decode(sam, picture, prompts, multimask=True))
        if settings.predicted_iou > 0:
            sure = ious > settings.predicted_iou
            logits, ious = logits[sure], ious[sure]
        found.append((logits, ious, *_measure(sam, picture, logits)))
    logits, ious, stability, boxes, areas = map(torch.cat, zip(*found, strict=True))
    if settings.stability > 0:
        stable = stability >= settings.stability
        logits, ious, boxes, areas = logits[stable], ious[stable], boxes[stable], areas[stable]
    kept = nms(boxes.float(), ious, _DUPLICATE)
    return _pack(sam, picture, logits[kept]), boxes[kept], areas[kept], ious[kept]


def _upsampled(sam: Sam, picture: _Picture, logits: Tensor) -> Iterator[Tensor]:
    """Upsample the logits of masks, [N, h, w], to the picture's size, a multiple of 8 at a time."""
    largest = max(sam.image_encoder.img_size**2, math.prod(picture.size))
    for some in logits.split(8 * max(1, _UPSAMPLED_PIXELS // (8 * largest))):
        yield sam.postprocess_masks(some[None].float(), picture.resized, picture.size)[0]


def _measure(sam: Sam, picture: _Picture, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Measure the upsampled masks of `logits` [N, h, w]: stability scores [N], boxes [N, 4] and areas [N].

    An empty mask has the box (0, 0, 0, 0).
    """
    measured = []
    for upsampled in _upsampled(sam, picture, logits):
        stability = calculate_stability_score(upsampled, sam.mask_threshold, _STABILITY_OFFSET)
        inside = upsampled > sam.mask_threshold
        measured.append((stability, batched_mask_to_box(inside), inside.sum((1, 2))))
    stability, boxes, areas = map(torch.cat, zip(*measured, strict=True))
    return stability, boxes, areas


def _pack(sam: Sam, picture: _Picture, logits: Tensor) -> Tensor:
    """Upsample masks, given by logits [N, h, w], to [ceil(N / 8), W, H] uint8 as `masks_of_bits` takes them."""
    packed = []
    for upsampled in _upsampled(sam, picture, logits):
        inside = (upsampled > sam.mask_threshold).view(torch.uint8)
        planes = inside[::8].clone()
        for bit in range(1, 8):
            part = inside[bit::8]
            planes[: len(part)] |= part << bit
        packed.append(planes.transpose(1, 2))
    return torch.cat(packed)


def _largest_first(
    bits: NDArray[np.uint8], boxes: NDArray[np.int64], areas: NDArray[np.int64], ious: NDArray[np.float32]
) -> list[tuple[Mask, float]]:
    masks = masks_of_bits(bits, len(areas))
    left, top, right, bottom = boxes.T
    order = np.lexsort((bottom - top, right - left, top, left, -areas))
    return [(masks[i], min(1.0, float(ious[i]))) for i in order if areas[i]]


def to_host(tensors: Sequence[Tensor]) -> list[NDArray[Any]]:
    return [t.cpu().numpy() for t in tensors]
