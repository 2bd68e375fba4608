"""SAM with segment-anything: masks of boxes, and of everything in a picture."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

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

from schemas.boxes import BBox, to_corners
from schemas.masks import Mask
from schemas.runs import masks_of_bits
from transforms.models.checkpoints import check_folder, device, dtype_of, explaining
from transforms.models.places import located
from transforms.models.pth import find_file, read_weights
from transforms.models.settings import Everything, Precision
from transforms.models.tensors import download, resize, upload_pictures

REFINED = 4
"""Decoded masks have this many times as many pixels per side as the embedding."""

EMBEDDED_AT_ONCE, UPSAMPLED_PIXELS = 4, 2**26
"""Pictures that go through the encoder together, at most, and pixels of masks that are upsampled together.

A published encoder takes some 2 GB for each picture.
"""

CPU_EMBEDDED_AT_ONCE, CPU_UPSAMPLED_PIXELS = 1, 2**20
"""The same on a CPU, which is faster with less: with what its cache holds."""

DECODED_AT_ONCE = 64
"""Point prompts that are decoded together: as in segment-anything's generator."""

UPSAMPLED_PIXELS = 2**26
"""Pixels of the masks that are upsampled together, 256 MB."""

STABILITY_OFFSET = 1.0
"""By how much the threshold of the logits is moved for the stability score: the generator's default."""

DUPLICATE = 0.7
"""IoU of two masks' boxes above which the one with the lower predicted IoU is left out: the generator's default."""


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
    checkpoint = located(checkpoint)
    check_folder("--model sam=", "SAM", checkpoint, "config.json")
    problem = (
        f"no SAM {checkpoint}: looked for a folder with config.json and model.safetensors, and for a published file "
        "named sam_vit_h*, sam_vit_l* or sam_vit_b*"
    )
    with explaining(problem, "Give --model sam=PATH"):
        sam = _from_folder(Path(checkpoint)) if Path(checkpoint).is_dir() else _published(str(checkpoint))
    sam = sam.eval().to(device())
    # Not the prompt encoder: bf16 would round the coordinates of prompts to 1/256 of the picture.
    for part in (sam.image_encoder, sam.mask_decoder):
        part.to(dtype_of(precision))
    return sam


def _from_folder(folder: Path) -> Sam:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if (kind := config.pop("model_type", "")) != "segment-anything":
        raise ValueError(f"it is a model of type {kind}, not segment-anything")
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


def segment_boxes(sam: Sam, images: Sequence[NDArray[np.uint8]], boxes: Sequence[Sequence[BBox]]) -> list[list[Mask]]:
    """Segment the thing in each box; each picture is embedded once, and its boxes are decoded in one batch.

    Args:
        sam: the model.
        images: pictures, each [H, W, 3] uint8 RGB of any size.
        boxes: the boxes of each picture, [x, y, w, h] in pixels, any number.

    Returns:
        For each picture the masks of its boxes; a mask may be empty.
    """
    asked = [index for index, wanted in enumerate(boxes) if wanted]
    pictures = upload_pictures([images[index] for index in asked], sam.device)
    host = download(_forward_boxes(sam, pictures, [boxes[index] for index in asked]))
    masks: list[list[Mask]] = [[] for _ in images]
    for index, bits in zip(asked, host, strict=True):
        masks[index] = masks_of_bits(bits, len(boxes[index]))
    return masks


def segment_everything(
    sam: Sam, images: Sequence[NDArray[np.uint8]], settings: Everything
) -> list[list[tuple[Mask, float]]]:
    """Segment all things that a grid of point prompts finds in each picture.

    They are the masks of segment-anything's `SamAutomaticMaskGenerator`. That upsamples every mask that it decodes, and
    encodes each before it looks for duplicates; here a mask that is excluded by its predicted IoU is not upsampled, and
    only those that are returned are encoded.

    Args:
        sam: the model.
        images: pictures, each [H, W, 3] uint8 RGB of any size.
        settings: the grid and the filters.

    Returns:
        For each picture its masks with their predicted IoU in [0, 1], the largest first; empty masks are left out.
    """
    found = _forward_everything(sam, upload_pictures(images, sam.device), settings)
    # One type for one copy: the numbers travel as bytes.
    host = download([tensor.view(torch.uint8) for masks in found for tensor in (masks.bits, masks.measures)])
    return [_largest_first(bits, bytes_) for bits, bytes_ in zip(host[::2], host[1::2], strict=True)]


def _largest_first(bits: NDArray[np.uint8], measures: NDArray[np.uint8]) -> list[tuple[Mask, float]]:
    """Sort masks as they came from the device, in the bytes of `_Everything`: by area, then by their boxes."""
    numbers = np.frombuffer(measures.tobytes(), np.float64).reshape(-1, 6)
    area, iou, left, top, right, bottom = numbers.T
    order = np.lexsort((bottom - top, right - left, top, left, -area))
    masks = masks_of_bits(bits, len(numbers))
    return [(masks[i], min(1.0, float(iou[i]))) for i in order if area[i]]


@dataclass(frozen=True)
class _Everything:
    """N masks of a picture: `bits` as `masks_of_bits` takes them, and `measures` [N, 6] float64.

    The measures are area, predicted IoU, and the outermost pixels: left, top, right, bottom.
    """

    bits: Tensor
    measures: Tensor


@dataclass(frozen=True)
class _Picture:
    """A picture as the decoder takes it: `embedding` [1, C, h, w], and (height, width) as stored and as resized."""

    embedding: Tensor
    size: tuple[int, int]
    resized: tuple[int, int]


@torch.inference_mode()
def _forward_boxes(sam: Sam, pictures: Sequence[Tensor], boxes: Sequence[Sequence[BBox]]) -> list[Tensor]:
    """Do all that runs on the device: the masks of each picture's boxes, as `masks_of_bits` takes them."""
    transform = ResizeLongestSide(sam.image_encoder.img_size)
    bits = []
    for picture, own in zip(_embedded(sam, pictures), boxes, strict=True):
        corners = torch.tensor([to_corners(box) for box in own], dtype=torch.float32, device=sam.device)
        prompts = sam.prompt_encoder(None, transform.apply_boxes_torch(corners, picture.size), None)
        logits, _ = _decode(sam, picture, prompts, multimask=False)
        bits.append(_pack(sam, picture, logits[:, 0])[0])
    return bits


@torch.inference_mode()
def _forward_everything(sam: Sam, pictures: Sequence[Tensor], settings: Everything) -> list[_Everything]:
    """Do all that runs on the device for automatic masks."""
    return [_find_everything(sam, picture, settings) for picture in _embedded(sam, pictures)]


def _embedded(sam: Sam, pictures: Sequence[Tensor]) -> Iterator[_Picture]:
    """Embed pictures [3, H, W] uint8 of any size, several in one batch: they are resized and padded to one square."""
    side = sam.image_encoder.img_size
    dtype = sam.image_encoder.patch_embed.proj.weight.dtype
    at_once = CPU_EMBEDDED_AT_ONCE if sam.device.type == "cpu" else EMBEDDED_AT_ONCE
    for begin in range(0, len(pictures), at_once):
        some = pictures[begin : begin + at_once]
        sizes = [(picture.shape[1], picture.shape[2]) for picture in some]
        resized = [ResizeLongestSide.get_preprocess_shape(*size, side) for size in sizes]
        squares = [
            sam.preprocess(resize(picture[None], size, "bilinear")) for picture, size in zip(some, resized, strict=True)
        ]
        embeddings = sam.image_encoder(torch.cat(squares).to(dtype))
        yield from map(_Picture, embeddings.split(1), sizes, resized)


def _decode(sam: Sam, picture: _Picture, prompts: Sequence[Tensor], *, multimask: bool) -> tuple[Tensor, Tensor]:
    """Decode the embeddings of N prompts: logits [N, M, h, w] and predicted IoUs [N, M] float32 of their M masks."""
    dtype = picture.embedding.dtype
    sparse, dense = prompts
    logits, ious = sam.mask_decoder(
        image_embeddings=picture.embedding,
        image_pe=sam.prompt_encoder.get_dense_pe().to(dtype),
        sparse_prompt_embeddings=sparse.to(dtype),
        dense_prompt_embeddings=dense.to(dtype),
        multimask_output=multimask,
    )
    return logits, ious.float()


def _find_everything(sam: Sam, picture: _Picture, settings: Everything) -> _Everything:
    points = build_point_grid(settings.points) * picture.size[::-1]
    points = ResizeLongestSide(sam.image_encoder.img_size).apply_coords(points, picture.size)
    places = torch.as_tensor(points, device=sam.device)[:, None]
    prompts = sam.prompt_encoder((places, torch.ones(places.shape[:2], dtype=torch.int, device=sam.device)), None, None)
    found = []
    for some in zip(*(each.split(DECODED_AT_ONCE) for each in prompts), strict=True):
        logits, ious = (each.flatten(0, 1) for each in _decode(sam, picture, some, multimask=True))
        if settings.predicted_iou > 0:
            is_good = ious > settings.predicted_iou
            logits, ious = logits[is_good], ious[is_good]
        found.append((logits, ious))
    logits, ious = map(torch.cat, zip(*found, strict=True))
    boxes, stability = _measure(sam, picture, logits)
    if settings.stability > 0:
        is_stable = stability >= settings.stability
        logits, ious, boxes = logits[is_stable], ious[is_stable], boxes[is_stable]
    kept = nms(boxes.float(), ious, DUPLICATE)
    bits, areas = _pack(sam, picture, logits[kept])
    return _Everything(bits, torch.cat([areas[:, None], ious[kept, None], boxes[kept]], 1).double())


def _upsampled(sam: Sam, picture: _Picture, logits: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Upsample logits [N, h, w] to the size of the picture, some at a time: which, and their logits [n, H, W].

    All parts but the last one are a multiple of 8.
    """
    largest = max(sam.image_encoder.img_size**2, math.prod(picture.size))
    pixels = CPU_UPSAMPLED_PIXELS if sam.device.type == "cpu" else UPSAMPLED_PIXELS
    at_once = 8 * max(1, pixels // (8 * largest))
    for begin in range(0, len(logits), at_once):
        some = slice(begin, begin + at_once)
        yield some, sam.postprocess_masks(logits[some][None].float(), picture.resized, picture.size)[0]


def _measure(sam: Sam, picture: _Picture, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the boxes [N, 4] of masks, given by their logits [N, h, w], and their stability scores [N].

    A box holds the outermost pixels, (left, top, right, bottom); an empty mask has (0, 0, 0, 0).
    """
    boxes = torch.empty((len(logits), 4), dtype=torch.int64, device=logits.device)
    stability = torch.empty(len(logits), device=logits.device)
    for some, upsampled in _upsampled(sam, picture, logits):
        boxes[some] = batched_mask_to_box(upsampled > sam.mask_threshold)
        stability[some] = calculate_stability_score(upsampled, sam.mask_threshold, STABILITY_OFFSET)
    return boxes, stability


def _pack(sam: Sam, picture: _Picture, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return N masks, given by their logits [N, h, w], as `masks_of_bits` takes them, and their areas [N] in pixels."""
    height, width = picture.size
    bits = torch.empty((math.ceil(len(logits) / 8), width, height), dtype=torch.uint8, device=logits.device)
    areas = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    for some, upsampled in _upsampled(sam, picture, logits):
        inside = upsampled > sam.mask_threshold
        areas[some] = inside.sum((1, 2))
        planes = inside[::8].to(torch.uint8)
        for bit in range(1, 8):
            with_bit = inside[bit::8]
            planes[: len(with_bit)] |= with_bit.to(torch.uint8) << bit
        bits[some.start // 8 : math.ceil(some.stop / 8)] = planes.transpose(1, 2)
    return bits, areas
