"""Panoptic segmentation with transformers: Mask2Former, MaskFormer or EoMT, by checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation, PretrainedConfig
from transformers.image_transforms import get_size_with_aspect_ratio

from schemas.example import Segment
from schemas.runs import masks_of_labels
from transforms.models.checkpoints import HubModel, device, dtype_of
from transforms.models.places import located
from transforms.models.settings import Precision
from transforms.models.tensors import download, groups, process_pictures, upload_pictures

COCO_CLASSES, COCO_THINGS = 133, 80
"""Number of classes of COCO panoptic, and of things among them: the first 80 in every published checkpoint."""

SCORE_THRESHOLDS = {"mask2former": 0.5, "maskformer": 0.5, "eomt": 0.8, "eomt_dinov3": 0.8}
"""Supported types of model, and the class score below which a query is ignored: the defaults of their processors."""

OVERLAP = 0.8
"""A query is a segment if more than this share of its mask is left to it by others: the processors' default."""

MASK2FORMER_SIZE = (384, 384)
"""Mask2Former's processor resizes the masks of all models to this before it resizes them to the picture."""

AT_ONCE = 16
"""Pictures that go through the model together, at most."""

_CLAIMING = ("eomt", "eomt_dinov3")
"""Types whose processor itself leaves out pixels that no query claims; see `claimed_pixels`."""


@dataclass(eq=False)
class Segmenter:
    """A loaded checkpoint. `stuff` holds the class ids of stuff: a picture has at most one segment of each."""

    model: Any
    processor: Any
    device: str
    stuff: frozenset[int]

    @property
    def kind(self) -> str:
        """The type of model, a key of `SCORE_THRESHOLDS`."""
        return str(self.model.config.model_type)


def load_segmenter(checkpoint: str | Path, precision: Precision = "fp32") -> Segmenter:
    """Load a checkpoint for universal segmentation, from a folder or from the Hugging Face hub.

    One on the hub is NAME or NAME@REVISION, where a revision is a commit, a branch or a tag.

    Raises:
        ModelError: there is no such checkpoint, or it is broken or of another kind.
    """
    checkpoint = located(checkpoint)
    hub = HubModel("segmenter", "segmenter", str(checkpoint))
    with hub.loading() as place:
        hub.check_type(PretrainedConfig.get_config_dict(**place)[0].get("model_type"), list(SCORE_THRESHOLDS))
        processor = AutoImageProcessor.from_pretrained(**place)
        model, loaded = AutoModelForUniversalSegmentation.from_pretrained(
            **place, dtype=dtype_of(precision), output_loading_info=True
        )
    hub.check_weights(loaded)
    things = COCO_THINGS if len(model.config.id2label) == COCO_CLASSES else len(model.config.id2label)
    stuff = frozenset(range(things, len(model.config.id2label)))
    target = device()
    return Segmenter(model.eval().to(target), processor, target, stuff)


@dataclass(frozen=True)
class _Found:
    """What was found in a picture: K queries that name a class, with their class ids `labels` and `scores`.

    `regions` [W, H] holds 1 + the query that each pixel belongs to, or 0; `is_segment` [K] is 1 if enough of a query's
    mask is left for it to be a segment. Both are of one type of integers.
    """

    labels: Sequence[int]
    scores: Sequence[float]
    regions: Tensor
    is_segment: Tensor


def segment_images(segmenter: Segmenter, images: Sequence[NDArray[np.uint8]]) -> list[tuple[Segment, ...]]:
    """Segment pictures, each [H, W, 3] uint8 RGB of any size; return their segments in the model's order.

    Segments of a picture do not overlap. Pictures that the processor resizes to the same size go through the model in
    one batch. They are never padded to a common size: with padding, the result would depend on what else is in the
    batch.
    """
    found = _forward(segmenter, upload_pictures(images, segmenter.device))
    host = download([tensor for picture in found for tensor in (picture.regions, picture.is_segment)])
    return [
        _segments(segmenter, picture, regions, is_segment)
        for picture, regions, is_segment in zip(found, host[::2], host[1::2], strict=True)
    ]


@torch.inference_mode()
def _forward(segmenter: Segmenter, pictures: Sequence[Tensor]) -> list[_Found]:
    """Do all that runs on the device, for pictures [3, H, W] uint8."""
    inputs = process_pictures(segmenter.processor, pictures)
    found: dict[int, _Found] = {}
    for members in groups((picture["pixel_values"].shape for picture in inputs), AT_ONCE):
        together = {name: torch.cat([inputs[i][name] for i in members]) for name in inputs[members[0]]}
        together["pixel_values"] = together["pixel_values"].to(segmenter.model.dtype)
        outputs = segmenter.model(**together)
        classes = outputs.class_queries_logits.float()
        scores, labels = classes.softmax(-1).max(-1)
        # These few numbers come to the host first, as they say how many masks each picture has.
        host_scores, host_labels = torch.stack([scores, labels.float()]).cpu()
        is_sure = (host_labels != classes.shape[-1] - 1) & (host_scores > SCORE_THRESHOLDS[segmenter.kind])
        rows, queries = is_sure.nonzero().to(scores.device).T
        counts = is_sure.sum(1).tolist()
        masks = outputs.masks_queries_logits[rows, queries].float().split(counts)
        integers = torch.uint8 if classes.shape[1] < 256 else torch.int16
        for row, (index, own, logits) in enumerate(
            zip(members, scores[rows, queries].split(counts), masks, strict=True)
        ):
            regions, is_segment = _assign(segmenter, logits, own, tuple(pictures[index].shape[1:]))
            found[index] = _Found(
                host_labels[row][is_sure[row]].int().tolist(),
                host_scores[row][is_sure[row]].tolist(),
                regions.T.to(integers),
                is_segment.to(integers),
            )
    return [found[index] for index in range(len(pictures))]


def _assign(segmenter: Segmenter, masks: Tensor, scores: Tensor, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Assign the pixels of a picture to queries, as the processors' `post_process_panoptic_segmentation` does.

    Args:
        segmenter: the model.
        masks: [K, h, w] float32, the mask logits of the queries.
        scores: [K] float32, their class scores.
        size: (H, W) of the picture.

    Returns:
        [H, W], 1 + the query that each pixel belongs to, or 0; and [K] bool, which queries are segments.
    """
    if not len(scores):
        return torch.zeros(size, device=masks.device), torch.zeros(0, device=masks.device)
    inside = _upsampled(segmenter, masks, size)
    weighted = inside * scores.view(-1, 1, 1)
    best = weighted.argmax(0)
    if segmenter.kind in _CLAIMING:
        is_claimed = inside.gather(0, best[None])[0] >= 0.5
        whole = (inside >= 0.5).sum((1, 2))
    else:
        is_claimed = claimed_pixels(masks, scores, size)
        whole = (weighted >= 0.5).sum((1, 2))
    # Rounded to float32 and then compared in double precision, as there: 4 of 5 pixels are more than 0.8.
    is_segment = (whole > 0) & ((_count(best, len(scores)) / whole).double() > OVERLAP)
    if segmenter.kind in _CLAIMING:
        is_segment &= _count(best.where(is_claimed, len(scores)), len(scores)) > 0
    return (best + 1).where(is_claimed & is_segment[best], 0), is_segment


def _count(values: Tensor, below: int) -> Tensor:
    """Count how often each integer in [0, below) is in `values`, integers up to `below`: [below] int64."""
    counts = torch.zeros(below + 1, dtype=torch.int64, device=values.device)
    return counts.scatter_add_(0, values.flatten(), torch.ones_like(values).flatten())[:below]


def _upsampled(segmenter: Segmenter, masks: Tensor, size: tuple[int, ...]) -> Tensor:
    """Turn mask logits [K, h, w] into probabilities [K, H, W] at the size of the picture, as the processors do."""
    if segmenter.kind in _CLAIMING:
        shortest, longest = segmenter.processor.size["shortest_edge"], segmenter.processor.size["longest_edge"]
        height, width = get_size_with_aspect_ratio(size, shortest, longest)
        padded = _interpolate(masks, (shortest, longest or shortest))
        return _interpolate(padded[:, :height, :width], size).sigmoid()
    if segmenter.kind == "mask2former":
        masks = _interpolate(masks, MASK2FORMER_SIZE)
    return _interpolate(masks.sigmoid(), size)


def _interpolate(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize maps [K, h, w] to `size`."""
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]


def claimed_pixels(masks: Tensor, scores: Tensor, size: tuple[int, ...]) -> Tensor:
    """The pixels inside the mask of the query that they are assigned to: [H, W] bool.

    The processor assigns each pixel to the query with the highest product of class score and mask probability, however
    low that is. Mask2Former's own inference (Cheng et al. 2022, the published code) also requires that the mask
    probability is at least one half; without that, background pixels go to the least unlikely object.

    Args:
        masks: [K, h, w] float32, the mask logits of one or more queries.
        scores: [K] float32, their class scores.
        size: (H, W) of the picture.
    """
    inside = _interpolate(masks.sigmoid(), size)
    best = (inside * scores.view(-1, 1, 1)).argmax(0, keepdim=True)
    return inside.gather(0, best)[0] >= 0.5


def _segments(
    segmenter: Segmenter, found: _Found, regions: NDArray[np.integer], is_segment: NDArray[np.integer]
) -> tuple[Segment, ...]:
    infos = [(found.labels[k], round(found.scores[k], 6), k + 1) for k in np.flatnonzero(is_segment).tolist()]
    joined = fused(infos, segmenter.stuff)
    masks = masks_of_labels(regions, [ids for _, _, ids in joined])
    labels = segmenter.model.config.id2label
    return tuple(
        Segment(labels[label_id], round(score, 4), mask, label_id not in segmenter.stuff)
        for (label_id, score, _), mask in zip(joined, masks, strict=True)
        if mask.area
    )


def fused(infos: Sequence[tuple[int, float, int]], stuff: frozenset[int]) -> list[tuple[int, float, list[int]]]:
    """Merge the regions of each class of `stuff` into one, in the place of the first: a picture has one sky.

    Takes (class id, score, region id), returns (class id, highest score, region ids).
    """
    joined: list[tuple[int, float, list[int]]] = []
    place: dict[int, int] = {}
    for label_id, score, region in infos:
        if label_id in place:
            i = place[label_id]
            joined[i] = (label_id, max(joined[i][1], score), [*joined[i][2], region])
        else:
            if label_id in stuff:
                place[label_id] = len(joined)
            joined.append((label_id, score, [region]))
    return joined
